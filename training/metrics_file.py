"""Reading `metrics.jsonl` and its like, apart from what writes it, so that the report needs no Ray."""

import json
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; the last may be cut short where a process was killed."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").split("\n"):
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return lines
