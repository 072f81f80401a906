"""`raylign init NAME`: a folder with four commented configs for data of one's own, which run as they are."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.program import yaml_text

_TEMPLATES = Path(__file__).parent / "templates"


def init(arguments: Sequence[str]) -> int:
    """Write them. Exit code 0, or 2 with one line that says what is wrong; nothing that is there is written over."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: raylign init NAME\n\nWrite the folder NAME with commented configs for data of your own.")
        return 0 if arguments in (["-h"], ["--help"]) else 2
    folder = Path(arguments[0])
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", folder.name) or not isinstance(yaml_text.parse(folder.name), str):
        return _refused(f"NAME: '{folder.name}' names a dataset and runs; use letters, digits, dots, hyphens and underscores")
    if folder.exists():
        return _refused(f"{folder}: is there already; choose another name")
    folder.mkdir(parents=True)
    for template in sorted(_TEMPLATES.glob("*.yaml")):
        text = template.read_text(encoding="utf-8").replace("NAME", folder.name).replace("FOLDER", str(folder))
        (folder / template.name).write_text(text, encoding="utf-8")
    print(f"{folder}: prepare.yaml, train.yaml, evaluate.yaml, sweep.yaml; name your data in {folder / 'prepare.yaml'}, then")
    for verb in ("prepare", "train", "evaluate", "sweep"):
        print(f"    raylign {verb} {folder / verb}.yaml")
    return 0


def _refused(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return 2
