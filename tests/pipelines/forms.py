"""The same pairs in every form that a source reads: how tests write them, and the settings that read them back."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq


class Given(NamedTuple):
    """An image's name, its bytes, and its caption."""

    name: str  # such as 007.png; sorted like the rows
    image: bytes
    caption: str


def _files(folder: Path, pairs: Sequence[Given]) -> Path:
    (folder / "images").mkdir(parents=True)
    for pair in pairs:
        (folder / "images" / pair.name).write_bytes(pair.image)
    return folder / "images"


def folder(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    images = _files(root, pairs)
    for pair in pairs:
        (images / pair.name).with_suffix(".txt").write_text(pair.caption, encoding="utf-8", newline="")
    return {"name": "folder", "path": str(images)}


def _tars(root: Path, pairs: Sequence[Given], captions: str) -> str:
    root.mkdir()
    for number, start in enumerate(range(0, len(pairs), 30)):
        with tarfile.open(root / f"{number:05d}.tar", "w") as tar:
            for pair in pairs[start : start + 30]:
                stem, extension = pair.name.split(".")
                text = pair.caption if captions == "txt" else json.dumps({"caption": pair.caption, "url": "http://x/y"})
                for name, data in ((f"{stem}.{extension}", pair.image), (f"{stem}.{captions}", text.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return str(root / "*.tar")


def webdataset(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    return {"name": "webdataset", "paths": _tars(root, pairs, "txt")}


def webdataset_json(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    return {"name": "webdataset", "paths": _tars(root, pairs, "json"), "caption_field": "caption"}


def _parquet(root: Path, columns: dict[str, list[Any]]) -> str:
    root.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), root / "pairs.parquet", row_group_size=25)
    return str(root / "pairs.parquet")


def parquet_bytes(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    columns = {"jpg": [pair.image for pair in pairs], "caption": [pair.caption for pair in pairs]}
    return {"name": "parquet", "paths": _parquet(root, columns)}


def parquet_structs(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    images = [{"bytes": pair.image, "path": pair.name} for pair in pairs]
    return {"name": "parquet", "paths": _parquet(root, {"image": images, "text": [pair.caption for pair in pairs]})}


def parquet_paths(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    paths = [str(_files(root, pairs) / pair.name) if i == 0 else f"images/{pair.name}" for i, pair in enumerate(pairs)]
    return {"name": "parquet", "paths": _parquet(root, {"filepath": paths, "title": [pair.caption for pair in pairs]})}


def csv_file(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    _files(root, pairs)
    with (root / "train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("filepath", "title"), *((f"images/{pair.name}", pair.caption) for pair in pairs)])
    return {"name": "table", "paths": str(root / "train.csv")}


def tsv_without_header(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    images = _files(root, pairs)
    lines = [f"{pair.caption}\t{images / pair.name}\n" for pair in pairs]
    (root / "cc3m.tsv").write_text("".join(lines), encoding="utf-8", newline="")
    return {"name": "table", "paths": str(root / "cc3m.tsv"), "header": False, "caption": 0, "image": 1}


def jsonl(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    _files(root, pairs)
    lines = [json.dumps({"image": f"images/{pair.name}", "caption": pair.caption}) + "\n" for pair in pairs]
    (root / "pairs.jsonl").write_text("".join(lines))
    return {"name": "json", "paths": str(root / "pairs.jsonl")}


def albef(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    _files(root, pairs)
    rows = [{"image": f"images/{pair.name}", "caption": [pair.caption], "image_id": pair.name} for pair in pairs]
    (root / "a.json").write_text(json.dumps(rows))
    return {"name": "json", "paths": str(root / "a.json")}


def coco(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    images = _files(root, pairs)
    listed = [{"id": 10 * i, "file_name": pair.name} for i, pair in enumerate(pairs)]
    annotations = [{"image_id": 10 * i, "caption": pair.caption} for i, pair in enumerate(pairs)]
    (root / "captions.json").write_text(json.dumps({"images": listed, "annotations": annotations}))
    return {"name": "json", "paths": str(root / "captions.json"), "root": str(images)}


def karpathy(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    _files(root, pairs)
    images = [
        {"filename": p.name, "filepath": "images", "split": "train", "sentences": [{"raw": p.caption}], "imgid": i}
        for i, p in enumerate(pairs)
    ]
    (root / "dataset.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return {"name": "json", "paths": str(root / "dataset.json"), "split": "train"}


def save_to_disk(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    images = [{"bytes": pair.image, "path": None} for pair in pairs]
    made = datasets.Dataset.from_dict({"image": images, "caption": [pair.caption for pair in pairs]}, features=features)
    made.save_to_disk(root, num_shards=2)
    return {"name": "huggingface", "path": str(root)}


def snapshot(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    (root / "data").mkdir(parents=True)
    half = len(pairs) // 2
    for number, some in enumerate((pairs[:half], pairs[half:])):
        images = [{"bytes": pair.image, "path": pair.name} for pair in some]
        table = pa.table({"image": images, "caption": [pair.caption for pair in some]})
        pq.write_table(table, root / "data" / f"train-{number:05d}-of-00002.parquet")
    return {"name": "huggingface", "path": str(root)}


def image_folder(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    images = _files(root, pairs)
    lines = [json.dumps({"file_name": pair.name, "text": pair.caption}) + "\n" for pair in pairs]
    (images / "metadata.jsonl").write_text("".join(lines))
    return {"name": "huggingface", "path": str(images)}


def mix(root: Path, pairs: Sequence[Given]) -> dict[str, Any]:
    root.mkdir()
    half = len(pairs) // 2
    first = folder(root / "one", pairs[:half]) | {"dataset": "one"}
    second = parquet_bytes(root / "two", pairs[half:]) | {"dataset": "two"}
    return {"name": "mix", "sources": [{"source": first}, {"weight": 1.0, "source": second}]}


FORMS: dict[str, Callable[[Path, Sequence[Given]], dict[str, Any]]] = {
    form.__name__: form
    for form in (
        folder,
        webdataset,
        webdataset_json,
        parquet_bytes,
        parquet_structs,
        parquet_paths,
        csv_file,
        tsv_without_header,
        jsonl,
        albef,
        coco,
        karpathy,
        save_to_disk,
        snapshot,
        image_folder,
        mix,
    )
}
