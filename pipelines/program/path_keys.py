"""Types of keys that hold a path: a local one, or also a URI where object stores are supported. A mistyped one is an error."""

import argparse
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from pipelines.io.retry import is_remote, shown_place
from pipelines.program.config_errors import plain
from pipelines.program.errors import UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def _place(value: Any) -> Any:
    if not isinstance(value, str | Path):
        raise ValueError(f"must be a path (value {plain(value)})")
    text = str(value)
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", text):  # Path("s3://b") is s3:/b, a folder called s3:
        meant = f"{scheme[1]}://{text[scheme.end() :]}{', as text and not as a Path' if isinstance(value, Path) else ''}"
        raise ValueError(f"'{text}' has one slash where a URI has two; did you mean {meant}?")
    if isinstance(value, Path):
        return value
    return Path(value.removeprefix("file://")).expanduser() if not is_remote(value) else value.rstrip("/")


def _local_place(value: Any) -> Any:
    text = str(value).removeprefix("file://")
    if not isinstance(value, str | Path) or text == "":
        return value
    if _SCHEME.match(text):  # as a path it would be a folder called s3: in the working directory
        raise ValueError(
            f"'{shown_place(text)}' is not on a disk, as it must be; give a local path, on a cluster one that all nodes share"
        )
    return Path(text).expanduser()


Place = Annotated[Path | str, BeforeValidator(_place)]
"""A local path, or a URI such as s3://bucket/folder."""

LocalPlace = Annotated[Path, BeforeValidator(_local_place)]
"""A local path; a URI is an error."""


def place_argument(text: str) -> Path | str:
    """A `Place` on a command line."""
    return _argument(_place, text)


def local_argument(text: str) -> Path:
    """A `LocalPlace` on a command line."""
    return _argument(_local_place, text)


def _argument(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueError as error:  # of which argparse would not show the text
        raise argparse.ArgumentTypeError(str(error)) from None


def check_folder(place: Place, key: str) -> None:
    """Raises `UserError` if a local folder cannot be created or written to. The folder itself is not created here."""
    if isinstance(place, str):
        return
    existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    remedy = f"choose another {key}"
    if not existing.is_dir():
        raise UserError(key, f"{existing if existing != place.absolute() else place} is a file", remedy)
    try:  # permissions are not enough: it may be a kernel folder, or on a server that does not trust root
        Path(tempfile.mkdtemp(prefix=".raylign-", dir=existing)).rmdir()
    except OSError as error:
        raise UserError(key, f"nothing can be written to {existing} ({error.strerror})", remedy) from None


_KINDS = {
    "training run": re.compile(r"metrics\.jsonl|result\.json|newest_checkpoint\.json|checkpoint_.*"),
    "sweep": re.compile(r"sweep\.json"),
    "prepared dataset": re.compile(r"manifest\.json"),
}
"""What a program writes into its folder, by what it makes there."""
LOCK = ".lock"  # in the folder of a run or sweep, from its first start on


def check_kind(folder: Path, kind: str, key: str) -> None:
    """Raises `UserError` if a folder that a program is to write into, or to delete, is not its own.

    It is where it is empty, has the program's lock, or holds what the program makes; files of another program never are.

    Args:
        kind: what is made there, a key of the table above or another word, for a program that only adds files of its own.
    """
    check_names(folder, sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [], kind, key)


def check_names(folder: Place, names: Sequence[str], kind: str, key: str) -> None:
    """`check_kind` of a folder that holds these names, which may be one in a store."""
    remedy = f"choose another {key}"
    for other, pattern in _KINDS.items():
        if other != kind and (mark := next(filter(pattern.fullmatch, names), None)):
            raise UserError(key, f"{folder} holds a {other}, as its {mark} shows", remedy)
    own = _KINDS.get(kind)
    if own is not None and LOCK not in names and not any(map(own.fullmatch, names)):
        foreign = next((name for name in names if not name.startswith(".")), None)
        if foreign is not None:
            raise UserError(key, f"{folder} is neither empty nor a {kind}: it has {foreign}", remedy)
