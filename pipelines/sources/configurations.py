"""Which configuration of a Hugging Face dataset a file belongs to: its languages or versions, often with the same images.

A README.md names them in its header, each with patterns of files, by split or not. Without one they are the folders above those
of the splits, as the hub's own conversion to Parquet lays them out: `en/train/0000.parquet`, `de/train/0000.parquet`.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml

from pipelines.io.storage import as_regex
from pipelines.program import yaml_text
from pipelines.program.errors import UserError

# As the library `datasets` finds splits by names.
_SPLITS = r"(?:partial-)?(?:train|training|validation|valid|dev|val|test|testing|eval|evaluation)"
_HEADER = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def by_readme(text: str) -> dict[str, list[str]]:
    """Configurations that a README.md names, each with its patterns of files; none where it names none.

    Raises `UserError` where the header grows without bounds.
    """
    header = _HEADER.match(text)
    try:
        tree = yaml_text.parse(header[1]) if header else None
    except yaml_text.TooMuch as error:
        raise UserError(f"README.md: its header {error}") from None
    except yaml.YAMLError:
        return {}
    configs = tree.get("configs") if isinstance(tree, dict) else None
    found: dict[str, list[str]] = {}
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict) and "config_name" in config:
            folder = str(config.get("data_dir") or "")
            patterns = list(_patterns(config.get("data_files", "**")))
            found[str(config["config_name"])] = [str(PurePosixPath(folder) / pattern) for pattern in patterns]
    return found


def _patterns(value: Any) -> Iterator[str]:
    """A pattern, a list of them, or such by split: as a mapping, or as a list of `split` and `path`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _patterns(item)
    elif isinstance(value, dict):
        for item in [value["path"]] if "path" in value else value.values():
            yield from _patterns(item)


def matches(name: str, patterns: list[str]) -> bool:
    """Whether a file is meant by one of the patterns; a folder stands for all that is in it."""
    return any(re.fullmatch(f"/{as_regex(pattern)}(?:/.*)?", f"/{name}") for pattern in patterns)


def by_folder(name: str, split: str) -> str:
    """The folders above that of a file's split; empty where there is none."""
    *folders, stem = PurePosixPath(name).with_suffix("").parts
    for end in (r"\Z", "(?![a-zA-Z0-9])"):  # a folder that is called like a split, before one that begins so
        for depth, part in enumerate((*folders, stem)):
            if re.match(f"(?:{_SPLITS}|{re.escape(split)}){end}", part):
                return "/".join(folders[:depth])
    return ""
