"""Which configuration of a Hugging Face dataset a file belongs to: a language or version, often with the same images.

The header of a README.md lists the configurations, each with patterns of files, by split or not. Without a list they are the
folders above those of the splits, as in the hub's own conversion to Parquet: `en/train/0000.parquet`, `de/train/0000.parquet`.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml

from pipelines.io.storage import as_regex
from pipelines.program import yaml_text
from pipelines.program.errors import UserError

# The names by which the library `datasets` recognises splits.
_SPLITS = r"(?:partial-)?(?:train|training|validation|valid|dev|val|test|testing|eval|evaluation)"
_HEADER = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def by_readme(text: str) -> dict[str, list[str]]:
    """The configurations that a README.md lists, each with its patterns of files; may be empty.

    Raises `UserError` if the header is too large.
    """
    header = _HEADER.match(text)
    try:
        tree = yaml_text.parse(header[1]) if header else None
    except yaml_text.TooMuch as error:
        raise UserError("source.path", f"README.md: its header {error}", "shorten it") from None
    except yaml.YAMLError:
        return {}
    entries = tree.get("configs") if isinstance(tree, dict) else None
    configurations: dict[str, list[str]] = {}
    for config in entries if isinstance(entries, list) else []:
        if isinstance(config, dict) and "config_name" in config:
            folder = str(config.get("data_dir") or "")
            patterns = list(_patterns(config.get("data_files", "**")))
            configurations[str(config["config_name"])] = [str(PurePosixPath(folder) / pattern) for pattern in patterns]
    return configurations


def _patterns(value: Any) -> Iterator[str]:
    """The patterns in a pattern, a list, a mapping by split, or a list of {split, path}."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _patterns(item)
    elif isinstance(value, dict):
        for item in [value["path"]] if "path" in value else value.values():
            yield from _patterns(item)


def matches(name: str, patterns: list[str]) -> bool:
    """Whether one of the patterns matches a file, or a folder that contains it."""
    return any(re.fullmatch(f"/{as_regex(pattern)}(?:/.*)?", f"/{name}") for pattern in patterns)


def by_folder(name: str, split: str) -> str:
    """The folders above that of a file's split; empty if there are none."""
    *folders, stem = PurePosixPath(name).with_suffix("").parts
    for end in (r"\Z", "(?![a-zA-Z0-9])"):  # a folder named exactly like a split takes precedence over one that begins so
        for depth, part in enumerate((*folders, stem)):
            if re.match(f"(?:{_SPLITS}|{re.escape(split)}){end}", part):
                return "/".join(folders[:depth])
    return ""
