"""Results on disk: OUTPUT/MODEL/DATASET/TASK/result.json, one for each task, written atomically; the page needs nothing else.

A file has the fields of CLIP_benchmark's results (`dataset`, `model`, `pretrained`, `task`, `language`, and `metrics` under its
names, as fractions), so that other tools can read it. It also has ours, in percent: `scores` with `intervals`, `baselines` and
`sample_sizes`, the name of the `main` score, and `details`, which each task defines.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.task_info import TaskInfo
from pipelines.io.storage import written
from pipelines.program.errors import UserError

_COLUMNS = ["model", "dataset", "task", "score", "main", "value", "low", "high", "chance", "largest_class", "n"]


@dataclass(frozen=True)
class Result:
    """Scores of one model on one task and set."""

    model: str
    dataset: str  # the entry of the config's `data`, with _LABEL where the entry has several labels
    task: str  # of evaluation.metrics.TASKS
    main: str  # the main score
    scores: dict[str, float]  # percent; percentage points for effective_robustness
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95 %, over items
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)  # score -> chance, largest_class
    sample_sizes: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)  # JSON values
    about: dict[str, Any] = field(default_factory=dict)  # model and data: what was scored, fingerprints, attribution, coverage

    def write(self, output: Path, info: TaskInfo) -> Path:
        """Write it into the folder of its model, set and task. `info`: of its task, for CLIP_benchmark's names of the scores."""
        path = output / self.model / self.dataset / self.task / "result.json"
        tree = {
            "language": "en",
            "pretrained": str(self.about.get("pretrained", "")),
            "metrics": {info.measure(name).clip_benchmark or name: value / 100 for name, value in self.scores.items()},
        }
        with written(path) as aside:
            aside.write_text(json.dumps(asdict(self) | tree, indent=1), encoding="utf-8")
        return path


def read_results(output: Path) -> list[Result]:
    """All results below a folder, sorted by path. Raises `UserError` where there is none, or one cannot be read."""
    results = [_read(path) for path in sorted(output.glob("*/*/*/result.json"))]
    if not results:
        raise UserError("output", f"there is no result in {output}", "run python -m evaluation CONFIG.yaml first")
    return results


def to_table(results: Iterable[Result]) -> pd.DataFrame:
    """A row for every model, set, task and score."""
    rows = []
    for result in results:
        for score, value in result.scores.items():
            baselines, ends = result.baselines.get(score, {}), result.intervals.get(score, (None, None))
            row = [result.model, result.dataset, result.task, score, score == result.main, value, *ends]
            row += [baselines.get("chance"), baselines.get("largest_class"), result.sample_sizes.get(score)]
            rows.append([None if isinstance(entry, float) and not math.isfinite(entry) else entry for entry in row])
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"n": "Int64"})


def find_result(output: Path, model: str, dataset: str, task: str, identity: str) -> Result | None:
    """An earlier result, if `about.identity` says that it is of the same rows and task; else None."""
    path = output / model / dataset / task / "result.json"
    if not path.exists():
        return None
    result = _read(path)
    return result if result.about.get("identity") == identity else None


def _read(path: Path) -> Result:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        tree["intervals"] = {name: (low, high) for name, (low, high) in tree["intervals"].items()}
        return Result(**{name: tree[name] for name in Result.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"this is not a result of python -m evaluation ({error})"
        raise UserError(str(path), problem, "delete it and run python -m evaluation again") from None
