"""What an import has found, and the configs' texts, which are read back and validated."""

from collections.abc import Mapping
from typing import Any

from pipelines.prepare.config import PrepareSettings
from pipelines.program import yaml_text
from pipelines.program.settings import validate
from training.config import TrainSettings
from training.importing.arguments import ARGUMENTS

_BY_NAME = {argument.name: argument for argument in ARGUMENTS}
_DIFFERENT = (
    "open_clip trains on all rows; here a share is held out (splits in prepare.yaml), on which the page's scores are",
    "the rows left over at the end of an epoch are left out, others each time; open_clip shows some twice instead",
    "evaluation crops the centre before it resizes; open_clip resizes before it crops",
    "objective.mask_false_negatives: true would leave out pairs with equal captions or images, which open_clip contrasts",
)
_BATCH_NORM = "BatchNorm, of networks that have it (RN50), is over the rows of all workers, as with --use-bn-sync"


class Collected:
    """Keys of a training config, each with the arguments that it comes from; and what of the others is to be told."""

    def __init__(self, given: dict[str, Any], workers: int):
        self.given, self.workers = given, workers
        self.tree: dict[str, Any] = {}
        self.sources: dict[str, list[str]] = {}  # of each top-level key
        self.same: dict[str, str] = {}
        self.none: dict[str, str] = {}
        for name in given:
            argument = _BY_NAME[name]
            if argument.becomes != "keys":
                getattr(self, argument.becomes)[name] = argument.about

    def get(self, name: str) -> Any:
        """An argument's value, or open_clip's default."""
        return self.given.get(name, _BY_NAME[name].default)

    def put(self, key: str, value: Any, *names: str) -> None:
        """Set a dotted key, which comes from the arguments of these names; one that is not given by its default."""
        first, *rest = key.split(".")
        node, last = self.tree, first
        for part in rest:
            node, last = node.setdefault(last, {}), part
        node[last] = value
        notes = self.sources.setdefault(first, [])
        notes += [note for name in names if (note := name if name in self.given else f"{name}'s default") not in notes]

    def lacks(self, name: str, what: str) -> None:
        """Note something of an argument that has no equal, beside what is noted of it."""
        self.none[name] = "; ".join([*([self.none[name]] if name in self.none else []), what])

    def train_text(self) -> str:
        """The training config. Raises `UserError` if it is none."""
        comments = [
            "Imported from an open_clip command line. The same command resumes the run: raylign train FILE",
            *_block("The same here, without a key:", self.same),
            *_block("No equal here:", self.none),
            "Different in any case:",
            *(f"  - {line}" for line in _DIFFERENT),
            *(["  - " + _BATCH_NORM] if self.workers > 1 and not self.get("--use-bn-sync") else []),
        ]
        lines = [f"# {line}".replace("\n", " ").rstrip() for line in comments]
        for key, value in self.tree.items():
            notes = f"  # {', '.join(self.sources[key])}" if self.sources[key] else ""
            lines.append(f"{key}: {yaml_text.line(value)}{notes}")
        text = "\n".join(lines) + "\n"
        validate(TrainSettings, yaml_text.parse(text), "train.yaml")
        return text

    def prepare_text(self, tree: dict[str, Any], note: str, file: str) -> str:
        """A config of preparing, from the arguments that `note` names. Raises `UserError` if it is none."""
        lines = [f"# From {note}. To see first what would be left out, and why: raylign prepare {file} --check"]
        lines += [f"{key}: {yaml_text.line(value)}" for key, value in tree.items()]
        text = "\n".join(lines) + "\n"
        validate(PrepareSettings, yaml_text.parse(text), file)
        return text


def _block(title: str, arguments: Mapping[str, str]) -> list[str]:
    return [title, *(f"  {name}: {about}" for name, about in arguments.items())] if arguments else []
