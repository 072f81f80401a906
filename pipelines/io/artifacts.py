"""Where weights and tokenizers come from: a local path, an installed package, or a hub name.

`package:NAME/PATH` is a file inside an installed package; a zip is unpacked once into the user's cache. Everything else
that exists on disk is a path; the rest is a hub name, for timm or transformers to fetch.
"""

import functools
import hashlib
import importlib.util
import os
import shutil
import zipfile
from pathlib import Path

from pipelines.io.archives import unzip
from pipelines.io.retry import Missing, is_remote, shown_place
from pipelines.program.errors import UserError

_REMEDY = "give an existing local path, package:NAME/FILE, or a hub name"


def resolve(name: str, key: str) -> Path | None:
    """The local file or folder that `name` refers to, or None for a hub name. Raises `UserError` about `key`."""
    if name.startswith("package:"):
        return _in_package(name.removeprefix("package:"), key)
    if is_remote(name):
        raise UserError(key, f"{shown_place(name)} is not on a local disk", _REMEDY)
    path = Path(name.removeprefix("file://")).expanduser()
    if path.exists():
        return _unpacked(path, key)
    if name.startswith(("/", "./", "../", "~")) or path.suffix in (".pth", ".pt", ".bin", ".safetensors", ".zip"):
        raise UserError(key, f"{name} does not exist", _REMEDY)
    return None


def fingerprint(path: Path) -> str:
    """Digest of a file, or of all files of a folder. Computed once per process, unless sizes or times change."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@functools.lru_cache(maxsize=32)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file, _, _ in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _in_package(location: str, key: str) -> Path:
    package, _, inside = location.partition("/")
    # find_spec does not run the package, which may print or import a lot.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(key, f"package {package} is not installed", "pip install the package that provides it, or give a path")
    path = Path(spec.origin).parent / inside
    if not path.exists():
        files = ", ".join(sorted(file.name for file in path.parent.glob("*")))
        raise UserError(key, f"package {package} has no file {inside}", f"choose one of: {files}" if files else _REMEDY)
    return _unpacked(path, key)


def cache_folder() -> Path:
    """Of raylign, in the user's cache on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "raylign"


def _unpacked(path: Path, key: str) -> Path:
    """The folder in the user's cache with a zip's content; any other path unchanged. Raises `UserError`."""
    if path.suffix != ".zip":
        return path
    folder = cache_folder() / f"{path.stem}-{fingerprint(path)[:16]}"
    if not folder.exists():
        aside = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        try:
            unzip(path, aside)
        except (Missing, zipfile.BadZipFile, OSError) as error:
            raise UserError(key, f"{path} cannot be unpacked: {error}", "replace it, or unpack it and give the folder") from None
        try:
            aside.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(aside)
    return folder
