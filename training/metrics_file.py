"""Reads and extends `metrics.jsonl` and similar files. Apart from its writer (metrics_log.py), which needs Ray."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

UNUSABLE = "unusable.jsonl"  # rows of indexed data that could not be used, each once, with its reason
UNUSABLE_ROWS = "unusable_rows"  # their key in the workers' reports


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; the last may be truncated if a process was killed, and a damaged disk may have changed others."""
    lines = []
    if path.exists():
        for text in path.read_bytes().split(b"\n"):
            try:
                lines.append(json.loads(text))
            except ValueError:  # not JSON, or not UTF-8
                continue
    return lines


def append_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Append JSON lines to a file, replacing a last line that was truncated by a kill or a full disk."""
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with path.open("a+b") as file:
        end = file.tell()
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(data)


def unusable_reasons(run: Path) -> dict[str, int]:
    """Number of the dataset's rows that the run could not use, by reason, the most frequent first."""
    return dict(Counter(line["reason"] for line in read_metrics(run / UNUSABLE)).most_common())
