"""The source of a prepared dataset, from open_clip's --train-data or --val-data."""

import re
from collections.abc import Callable
from typing import Any

from pipelines.program.errors import UserError

_PIPE = re.compile(r"^pipe:\s*(?:aws s3 cp|gsutil cp|gcloud storage cp)\s+(\S+)\s+-\s*$")
Get = Callable[[str], Any]  # an argument's value, or open_clip's default


def kind_of(data: str, get: Get) -> str:
    """open_clip's name for the kind of data: csv or webdataset. Raises `UserError` if it cannot tell."""
    kind = get("--dataset-type")
    if kind != "auto":
        return kind
    ending = data.rpartition(".")[2]
    if ending in ("csv", "tsv"):
        return "csv"
    if ending == "tar" or _PIPE.match(data):
        return "webdataset"
    raise UserError("--dataset-type", f"auto, but '{data}' ends neither in csv, tsv nor tar", "pass --dataset-type")


def source_of(data: str, get: Get, weights: str | None = None) -> dict[str, Any]:
    """The config's `source`; of several sources, which :: separates, a mix. Raises `UserError`."""
    if kind_of(data, get) == "csv":
        # pandas reads quotes whatever the separator is, and paths as they are.
        columns = {"separator": get("--csv-separator"), "quoting": True, "image": get("--csv-img-key")}
        columns |= {"caption": get("--csv-caption-key"), "root": ".", "outside": True}
        return {"name": "table", "paths": data} | columns
    parts = [_of_pipe(part) for part in data.split("::")]
    sources = [{"name": "webdataset", "paths": part} for part in parts]
    if len(sources) == 1 and weights is None:
        return sources[0]
    factors = [float(factor) for factor in weights.split("::")] if weights else [1.0] * len(sources)
    if len(factors) != len(sources):
        problem = f"{len(factors)} factors for {len(sources)} sources of --train-data"
        raise UserError("--train-data-upsampling-factors", problem, "give one for each")
    return {"name": "mix", "sources": [{"weight": w, "source": s} for w, s in zip(factors, sources, strict=True)]}


def _of_pipe(part: str) -> str:
    """A URI of a store, from a command that copies it to its output."""
    if not part.startswith("pipe:"):
        return part
    found = _PIPE.match(part)
    if found is None:
        raise UserError("--train-data", f"'{part}' runs a command, which has no equal", "give files or s3:// and gs:// URIs")
    return found[1]
