"""`raylign init NAME`: a folder with four commented configs for the user's own data, which work unchanged."""

import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.program import yaml_text
from pipelines.program.cli import Parser, refused
from pipelines.program.errors import UserError

_TEMPLATES = Path(__file__).parent / "templates"


def init(arguments: Sequence[str]) -> int:
    """Write the folder. Returns exit code 0, or 2 after a one-line error; an existing folder is not overwritten."""
    parser = Parser(prog="raylign init", description="Write the folder NAME with commented configs for your own data.")
    parser.add_argument("name", metavar="NAME", help="the folder; its last part names the dataset and its runs")
    folder = Path(parser.parse_args(arguments).name)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", folder.name) or not isinstance(yaml_text.parse(folder.name), str):
        remedy = "use letters, digits, dots, hyphens and underscores, and begin with a letter"
        return refused(UserError("NAME", f"'{folder.name}' cannot name a dataset and its runs", remedy))
    if folder.exists():
        return refused(UserError(str(folder), "exists", "choose another name"))
    folder.mkdir(parents=True)
    for template in sorted(_TEMPLATES.glob("*.yaml")):
        text = template.read_text(encoding="utf-8").replace("NAME", folder.name).replace("FOLDER", str(folder))
        (folder / template.name).write_text(text, encoding="utf-8")
    print(f"{folder}: prepare.yaml, train.yaml, evaluate.yaml, sweep.yaml; name your data in {folder / 'prepare.yaml'}, then")
    for verb in ("prepare", "train", "evaluate", "sweep"):
        print(f"    raylign {verb} {folder / verb}.yaml")
    return 0
