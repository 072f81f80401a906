"""What the tests of sources share: images by number, and the rows that a source finds."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.sources.base import Pair, Rejected


def image(number: int, file_format: str = "PNG") -> bytes:
    """Another one for each number."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 99)).save(buffer, format=file_format)
    return buffer.getvalue()


def write_karpathy(root: Path, splits: Sequence[str | None]) -> dict[str, Any]:
    """Images 0.png, 1.png, ... in these splits, five captions each, as Karpathy publishes them; the source that reads them."""
    root.mkdir(parents=True, exist_ok=True)
    images = []
    for number, split in enumerate(splits):
        (root / f"{number}.png").write_bytes(image(number))
        sentences = [{"raw": f"Image {number}, said {sentence}", "sentid": 5 * number + sentence} for sentence in range(5)]
        images.append({"filename": f"{number}.png", "imgid": number, "sentences": sentences, "split": split})
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return {"name": "json", "paths": str(root / "dataset_coco.json"), "dataset": "coco"}


def read(source: Any, images: bool = True) -> list[Pair | Rejected]:
    """All rows, each unit as the real caller passes it: as JSON. What a unit says of their number is true."""
    found = []
    for unit in source.units():
        rows = list(source.read(json.loads(json.dumps(unit.data, ensure_ascii=False).encode()), images))
        assert unit.rows in (None, len(rows))
        found += rows
    return found


def told(found: Sequence[Pair | Rejected]) -> list[tuple[str, object]]:
    """Keys with the captions, or with the reason."""
    return [(row.key, row.reason if isinstance(row, Rejected) else row.captions) for row in found]


def pairs(found: Sequence[Pair | Rejected]) -> list[Pair]:
    """All of them, none of which was rejected."""
    assert all(isinstance(row, Pair) for row in found), found
    return [row for row in found if isinstance(row, Pair)]
