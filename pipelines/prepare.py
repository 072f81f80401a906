"""From a source to a prepared dataset: read, decode, resize and encode in the cluster, number and write here.

Ray Data reads the source's units in parallel and hands the rows back in the source's order; the driver gives out dense
ids, writes shards and rejected rows into a folder aside, and renames it when all is done. A folder without
`manifest.json` is never taken for a dataset.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import cluster
from pipelines.captions import CaptionSettings, exchange, usable
from pipelines.config import PrepareSettings
from pipelines.display import Display
from pipelines.images import BadImage, decode, encode, resize_shorter
from pipelines.prepared import FORMAT_VERSION, MANIFEST, Prepared, split_of
from pipelines.randomness import generator
from pipelines.settings import UserError, difference, digest
from pipelines.sources.base import Pair, Rejected, Unit

_READ = pa.schema(
    [
        ("key", pa.string()),
        ("origin", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("image", pa.binary()),
        ("digest", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("group", pa.string()),
        ("labels", pa.string()),
    ]
)
_REJECTED = pa.schema([(name, pa.string()) for name in ("key", "origin", "reason", "detail")])


def prepare(settings: PrepareSettings, display: Display) -> Prepared:
    """Prepare, or say that it was done before. Raises `UserError` for an empty source or too many unusable rows."""
    units = settings.source.units()
    total = sum(unit.rows for unit in units)
    if total == 0:
        raise UserError(f"source: nothing to read for {settings.source.title()}; check the source's keys")
    recipe = digest({"config": settings.recipe(), "listing": [unit.data for unit in units], "format": FORMAT_VERSION})
    done = _prepared_before(settings, recipe)
    if done is not None:
        display.line(f"{settings.output}: already prepared by this config from this source, {summary(done)}")
        return done
    start = time.monotonic()
    cluster.start(display.verbose)
    _clear_leftovers(settings.output)
    aside = _aside(settings.output)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        writer = _Writer(settings, aside)
        with display.task(f"prepare {settings.source.title()}", total) as task:
            for table in _read(settings, units):
                writer.add(table)
                task.update(writer.read, f"{sum(writer.reasons.values())} rejected")
        manifest = writer.finish(recipe)
        _replace(settings.output, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    prepared = Prepared(settings.output.absolute(), manifest)
    display.line(f"{settings.output}: prepared in {time.monotonic() - start:.0f} s, {summary(prepared)}")
    if writer.reasons:
        rows = [[reason, str(count)] for reason, count in writer.reasons.most_common()]
        display.table(f"rejected rows, listed in {settings.output / 'rejected.parquet'}", ["reason", "rows"], rows)
    return prepared


def summary(prepared: Prepared) -> str:
    """One clause about a prepared dataset."""
    splits = ", ".join(f"{name} {count:,}" for name, count in prepared.manifest["splits"].items())
    counts = prepared.manifest["counts"]
    kept = f"{counts['kept']:,} of {counts['read']:,} rows kept ({splits})"
    if prepared.manifest["config"]["captions"]["shuffled"]:
        kept += f", captions of {prepared.shuffled:,} rows shuffled"
    return f"{kept}, fingerprint {prepared.fingerprint[:12]}"


def _prepared_before(settings: PrepareSettings, recipe: str) -> Prepared | None:
    if not settings.output.exists():
        return None
    if not settings.output.is_dir():
        raise UserError(f"output: {settings.output} is a file; choose another output")
    if not (settings.output / MANIFEST).exists():
        if any(settings.output.iterdir()) and not settings.overwrite:
            raise UserError(
                f"output: {settings.output} is not empty and no prepared dataset; choose another output or pass overwrite=true"
            )
        return None
    try:
        prepared = Prepared.open(settings.output)
    except UserError:
        if settings.overwrite:
            return None
        raise
    if prepared.manifest["recipe"] == recipe:
        return prepared
    if settings.overwrite:
        return None
    changed = difference(prepared.manifest["config"], settings.recipe())
    what = "; ".join(changed[:3]) if changed else "the source's files changed"
    raise UserError(f"output: {settings.output} was prepared differently ({what}); choose another output or pass overwrite=true")


def _aside(output: Path) -> Path:
    """A folder beside the output that names its process; other machines may share the disk."""
    return output.with_name(f"{output.name}.partial-{platform.node()}-{os.getpid()}")


def _clear_leftovers(output: Path) -> None:
    """Delete what killed processes of this machine left aside; a living one keeps its folder."""
    for folder in output.parent.glob(f"{output.name}.partial-{platform.node()}-*"):
        try:
            os.kill(int(folder.name.rsplit("-", 1)[1]), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:  # alive, somebody else's
            continue


def _replace(output: Path, aside: Path) -> None:
    """Put the finished folder in place; an old dataset goes away only after the new one is there."""
    old = output.with_name(f"{output.name}.old-{os.getpid()}")
    if output.exists():
        output.rename(old)
    aside.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _read(settings: PrepareSettings, units: list[Unit]) -> Iterator[pa.Table]:
    """All rows, kept and rejected, in the source's order."""
    import ray.data

    source, image, captions = settings.source, settings.image, settings.captions

    def work(batch: pa.Table) -> Iterator[pa.Table]:
        for text in batch["unit"].to_pylist():
            rows = [_row(found, image, captions) for found in source.read(json.loads(text))]
            yield pa.Table.from_pylist(rows, schema=_READ)

    items = [{"unit": json.dumps(unit.data)} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset = dataset.map_batches(work, batch_size=1, batch_format="pyarrow", zero_copy_batch=True)
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)


def _row(found: Pair | Rejected, image: Any, captions: CaptionSettings) -> dict[str, Any]:
    """One row as it goes to the driver: with a reason, or with its picture."""
    if isinstance(found, Pair):
        found = usable(found, captions)
    if isinstance(found, Pair):
        try:
            picture = resize_shorter(decode(found.image, image.background, svg_size=image.size), image.size)
            data = encode(picture, image.format, image.quality)
        except BadImage as bad:
            found = Rejected(found.key, found.origin, bad.reason, bad.detail)
    if isinstance(found, Rejected):
        return {"key": found.key, "origin": found.origin, "reason": found.reason, "detail": found.detail}
    return {
        "key": found.key,
        "origin": found.origin,
        "image": data,
        "digest": digest([data.hex()]),
        "captions": found.captions,
        "group": found.group,
        "labels": json.dumps(found.labels),
    }


class _Writer:
    """Numbers the rows and writes shards, `rejected.parquet` and the manifest into one folder."""

    def __init__(self, settings: PrepareSettings, folder: Path):
        self._settings, self._folder = settings, folder
        self._pending: list[dict[str, Any]] = []
        self._rejected: list[dict[str, Any]] = []
        self._image_ids: dict[str, int] = {}
        self._text_ids: dict[str, int] = {}
        self._keys: set[str] = set()
        self._shards: list[dict[str, Any]] = []
        self._splits: Counter[str] = Counter()
        self._labels: dict[str, Counter[str]] = {}
        self._content: list[Any] = []
        self._captions: Counter[str] = Counter(chosen=0, shuffled=0)
        self.read = 0
        self.kept = 0
        self.reasons: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        """Rows in the source's order."""
        for row in table.to_pylist():
            self.read += 1
            if row["reason"] is None and row["key"] in self._keys:
                row |= {"reason": "duplicate_key", "detail": "another row of the source has this key"}
            if row["reason"] is not None:
                self._rejected.append({name: row[name] for name in _REJECTED.names})
                self.reasons[row["reason"]] += 1
            else:
                self._keep(row)
        if len(self._pending) >= self._settings.shard_rows:
            self._flush(whole=True)

    def _keep(self, row: dict[str, Any]) -> None:
        labels = json.loads(row["labels"])
        split = split_of(row["group"], self._settings.splits, self._settings.split_seed)
        self._keys.add(row["key"])
        self._splits[split] += 1
        for name, value in labels.items():
            self._labels.setdefault(name, Counter())[value] += 1
        self._pending.append(
            {
                "sample_id": self.kept,
                "image_id": self._image_ids.setdefault(row["digest"], len(self._image_ids)),
                "text_id": [self._text_ids.setdefault(text, len(self._text_ids)) for text in row["captions"]],
                "key": row["key"],
                "group": row["group"],
                "split": split,
                "image": row["image"],
                "captions": row["captions"],
                "shuffled": False,
                "digest": row["digest"],
                "labels": labels,
                **{f"label_{name}": value for name, value in labels.items()},
            }
        )
        self.kept += 1

    def _flush(self, whole: bool) -> None:
        """Write full shards; with `whole` false also the last, shorter one."""
        size = self._settings.shard_rows
        while len(self._pending) >= size or (self._pending and not whole):
            rows, self._pending = self._pending[:size], self._pending[size:]
            self._shuffle(rows)
            content = ("key", "digest", "captions", "labels", "group", "split")
            self._content += [[row[name] for name in content] for row in rows]
            name = f"shard-{len(self._shards):05d}.parquet"
            schema = pa.schema(
                [
                    ("sample_id", pa.int64()),
                    ("image_id", pa.int64()),
                    ("text_id", pa.list_(pa.int64())),
                    ("key", pa.string()),
                    ("group", pa.string()),
                    ("split", pa.string()),
                    ("image", pa.binary()),
                    ("captions", pa.list_(pa.string())),
                    *([("shuffled", pa.bool_())] if self._settings.captions.shuffled else []),
                    *[(f"label_{label}", pa.string()) for label in self._labels],
                ]
            )
            # Encoded pictures do not compress again.
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), self._folder / name, compression="none")
            self._shards.append({"file": name, "rows": len(rows)})

    def _shuffle(self, rows: list[dict[str, Any]]) -> None:
        """Let some of a shard's training rows have one another's captions; a function of the seed and the shard."""
        settings = self._settings.captions
        rows = [row for row in rows if row["split"] == "train"]
        found = [(row["captions"], row["text_id"]) for row in rows]
        random = generator("captions", settings.shuffle_seed, len(self._shards))
        for row, giver in exchange([tuple(ids) for _, ids in found], settings.shuffled, random).items():
            rows[row]["captions"], rows[row]["text_id"] = found[giver]
            rows[row]["shuffled"] = row != giver
            self._captions.update(chosen=1, shuffled=int(row != giver))

    def finish(self, recipe: str) -> dict[str, Any]:
        """Write what is left. Raises `UserError` where nothing or too little was usable."""
        settings = self._settings
        table = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common()) or "none"
        rejected = sum(self.reasons.values())
        example = f"; the first: {self._rejected[0]['origin']}: {self._rejected[0]['detail']}" if self._rejected else ""
        if self.kept == 0:
            raise UserError(f"source: none of {self.read} rows is usable ({table}){example}")
        if rejected > settings.max_rejected_rate * self.read:
            raise UserError(
                f"max_rejected_rate: {rejected} of {self.read} rows are unusable ({table}), more than "
                f"{settings.max_rejected_rate:.0%}{example}; mend the source or pass "
                f"max_rejected_rate={rejected / self.read + 0.01:.2f}"
            )
        self._flush(whole=False)
        pq.write_table(pa.Table.from_pylist(self._rejected, schema=_REJECTED), self._folder / "rejected.parquet")
        schema = pq.read_schema(self._folder / self._shards[0]["file"])
        manifest = {
            "format_version": FORMAT_VERSION,
            "name": settings.source.title(),
            "num_samples": self.kept,
            "num_images": len(self._image_ids),
            "num_texts": len(self._text_ids),
            "schema": {field.name: str(field.type) for field in schema},
            "splits": {name: self._splits[name] for name in ["train", *sorted(settings.splits)]},
            "split_shares": settings.splits,
            "labels": {name: dict(sorted(counts.items())) for name, counts in self._labels.items()},
            "image": {"size": settings.image.size, "format": settings.image.format},
            "captions": dict(self._captions),
            "fingerprint": digest(self._content),
            "counts": {"read": self.read, "kept": self.kept, "rejected": dict(self.reasons)},
            "licence": settings.source.licence(),
            "attribution": settings.source.attribution(),
            "recipe": recipe,
            "config": settings.recipe(),
            "code_version": code_version(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "shards": self._shards,
        }
        (self._folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
        return manifest


def code_version() -> str:
    """Version of raylign, and the commit where there is a checkout."""
    try:
        version = importlib.metadata.version("raylign")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{commit}"
