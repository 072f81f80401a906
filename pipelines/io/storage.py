"""Files wherever they are: local paths, s3://, gs://, any fsspec URL, and http(s):// for reading.

pyarrow's own file systems serve s3 and gs, fsspec the rest. Failed requests are retried with growing delays before they count as
failed. Writes are atomic.
Environment: AWS_ENDPOINT_URL names another S3-compatible service; credentials and AWS_REGION are as the AWS tools know them, and
Google's as its tools know them. STORAGE_EMULATOR_HOST names an emulator for gs, which is asked without any.
"""

import functools
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.dataset.image_formats import HIDDEN, is_hidden
from pipelines.io import http, tables
from pipelines.io.retry import Missing, is_remote, is_text, retried, shown
from pipelines.program.errors import UserError

_CONNECT_TIMEOUT = 10  # seconds
_TIMEOUT = 20  # seconds without a byte
_REQUEST_ATTEMPTS = 3  # of the object store's client, for each part of an upload
_OPEN_FILES = 256  # open handles of remote files, per process: opening one requests its size
_SENT_AT_ONCE = 32 << 20  # bytes of an upload in memory
_GLOB = re.compile(r"(\*\*/|\*|\?|\[[^\]/]+\])")
_VISIBLE = rf"(?!(?<=/){HIDDEN})"  # as in a shell, a leading dot is only matched by a dot
_AS_REGEX = {"**/": rf"(?:{_VISIBLE}[^/]+/)*", "*": rf"{_VISIBLE}[^/]*", "?": rf"{_VISIBLE}[^/]"}


@dataclass(frozen=True)
class File:
    """A listed file; size and time change when its content does."""

    path: str
    size: int  # bytes; -1: unknown
    changed: int  # nanoseconds since 1970


def join(folder: Path | str, *names: str) -> Path | str:
    """A path below a folder: a URI if the folder is one."""
    return "/".join([folder, *names]) if isinstance(folder, str) else folder.joinpath(*names)


def absolute(path: Path | str) -> Path | str:
    """An absolute local path; a URI unchanged."""
    return path if is_remote(path) else Path(path).absolute()


def name_of(path: Path | str) -> str:
    """The last part of a path, without the query of a URL."""
    return PurePosixPath(str(path).split("?")[0] if http.is_web(path) else str(path)).name


def find(patterns: str | tuple[str, ...], key: str) -> list[File]:
    """Files by path, `{00000..00331}` or `{a,b}` braces, and globs, in the order of the patterns, each pattern's sorted.

    A folder means all files below it except hidden ones. Raises `UserError` about `key` if a pattern matches nothing.
    """
    matches: dict[str, File] = {}
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        for path in expand_braces(str(pattern).removeprefix("file://")):
            files = _matching(path)
            if not files:
                origin = f" (from {pattern})" if path != pattern else ""
                brackets = next(iter(re.findall(r"\[[^\]/]+\]", path)), None)
                hint = f", in which {brackets} matches one character" if brackets else ""
                raise UserError(key, f"nothing matches {path}{origin}{hint}", "check the path")
            matches |= {file.path: file for file in files}
    return list(matches.values())


def expand_braces(pattern: str) -> Iterator[str]:
    """`shard-{08..10}.tar` to shard-08.tar, shard-09.tar, shard-10.tar; `{a,b}` to a and b; any number of them."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, names = match.groups()
    choices = names.split(",") if names else _counted(first, last)
    for choice in choices:
        yield from expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def _counted(first: str, last: str) -> list[str]:
    step = 1 if int(first) <= int(last) else -1
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + step, step)]


def exists(path: Path | str) -> bool:
    """Whether there is a file or folder."""
    system, inside = system_of(path)
    return retried(lambda: system.get_file_info(inside).type != pafs.FileType.NotFound)


def read(path: Path | str, start: int = 0, length: int = -1) -> bytes:
    """Bytes of a file, from `start` on; a negative length means to the end. Fewer if the file ends earlier. Raises `Missing`."""
    if not is_remote(path):
        return _read_local(str(path).removeprefix("file://"), start, length)
    if http.is_web(path):
        return http.fetch(str(path))[start : None if length < 0 else start + length]
    try:
        system, inside = system_of(path)
    except UserError as error:  # this is about one row's file; for a whole source, listing it has reported it
        raise Missing(str(error)) from None
    if isinstance(system, pafs.PyFileSystem):
        end = None if length < 0 else start + length
        return retried(lambda: system.handler.fs.cat_file(inside, start=start, end=end), path)

    def get() -> bytes:
        # A file that is read completely may have been replaced, so its size is requested again.
        file = _opened(str(path)) if length >= 0 else system.open_input_file(inside)
        left = max(0, file.size() - start)
        return file.read_at(left if length < 0 else min(length, left), start) if left else b""

    return retried(get, path)


def _read_local(path: str, start: int, length: int) -> bytes:
    try:
        with Path(path).open("rb", buffering=0) as file:
            if length < 0:
                file.seek(start)
                return file.read()
            return os.pread(file.fileno(), length, start)
    except OSError as error:
        raise Missing(f"{error.strerror or error}") from None


def open_random(path: Path | str) -> pa.NativeFile:
    """A seekable file for reading; of remote ones only the ranges that are read are requested. Raises `OSError`, `Missing`."""
    if not is_remote(path):
        return pa.memory_map(str(path).removeprefix("file://"))
    if http.is_web(path):
        return pa.BufferReader(http.fetch(str(path)))
    system, inside = system_of(path)
    return system.open_input_file(inside)


def read_table(path: Path | str, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
    """Columns of a Parquet file that raylign wrote, all by default.

    Raises `OSError`, `Missing` for one on the web, and `UserError` for one that could run code.
    """

    def get() -> pa.Table:
        with open_random(path) as file:
            return tables.read_parquet(file, columns, filters)

    try:
        return retried(get) if is_remote(path) else get()
    except tables.Refused as refused:
        raise UserError(shown(str(path)), str(refused)) from None


@contextmanager
def local_copy(path: Path | str) -> Iterator[Path]:
    """A local path of a file: its own, or that of a temporary copy. Raises `Missing`."""
    if not is_remote(path):
        yield Path(str(path).removeprefix("file://"))
        return
    with tempfile.TemporaryDirectory(prefix="raylign-") as folder:
        copy = Path(folder) / name_of(path)
        if http.is_web(path):
            with copy.open("wb") as target:
                http.download(str(path), target)
        else:
            receive(path, copy)
        yield copy


def _receive(path: Path | str, copy: Path) -> None:
    system, inside = system_of(path)
    with system.open_input_stream(inside) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 22)
    if copy.stat().st_size != system.get_file_info(inside).size:
        raise OSError(f"{path}: fewer bytes were received than the file has")


@contextmanager
def written(path: Path | str) -> Iterator[Path]:
    """A local path to write to; if the block ends without an error, the file is moved or uploaded to `path` atomically.

    Raises `OSError` if that fails.
    """
    if not is_remote(path):
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = final.with_name(f"{final.name}.partial-{platform.node()}-{os.getpid()}")
        try:
            yield aside
            aside.replace(final)
        finally:
            aside.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="raylign-") as folder:
        aside = Path(folder) / name_of(path)
        yield aside
        send(aside, path)


def send(file: Path, path: Path | str) -> None:
    """Upload a local file atomically. Raises `OSError`."""
    # Closing an upload makes a file of what was sent so far. An interrupt only affects the main thread, not this one.
    with ThreadPoolExecutor(1) as sender:
        sender.submit(retried, lambda: _send(file, path)).result()


def receive(path: Path | str, copy: Path) -> None:
    """Download a file of a store. Raises `Missing`, and `Unreachable`."""
    retried(lambda: _receive(path, copy), path)


def _send(aside: Path, path: Path | str) -> None:
    system, inside = system_of(path)
    if isinstance(system, pafs.PyFileSystem):
        store = system.handler.fs
        try:
            store.put_file(str(aside), inside)
        except FileNotFoundError:  # one that has folders, which a store of objects has not
            store.makedirs(inside.rpartition("/")[0], exist_ok=True)
            store.put_file(str(aside), inside)
    else:
        with pa.memory_map(str(aside)) as source:
            data = source.read_buffer()
            with system.open_output_stream(inside) as target:
                for start in range(0, data.size, _SENT_AT_ONCE):
                    target.write(data[start : start + _SENT_AT_ONCE])
                    target.flush()  # frees the memory of the parts that were sent
    _opened.cache_clear()  # handles of the earlier file
    if system.get_file_info(inside).size != aside.stat().st_size:
        raise OSError(f"{path}: fewer bytes arrived than were sent")


def delete(path: Path | str) -> None:
    """Delete a file, or a folder with its content, if it exists."""
    system, inside = system_of(path)
    kind = retried(lambda: system.get_file_info(inside).type)
    work = {pafs.FileType.Directory: system.delete_dir, pafs.FileType.File: system.delete_file}.get(kind)
    if work is not None:
        with suppress(FileNotFoundError):  # an earlier attempt, whose answer was lost, deleted it
            retried(lambda: work(inside))
    _opened.cache_clear()


def files_below(folder: Path | str) -> list[File]:
    """All files below a folder, sorted; empty if it does not exist."""
    return _files(folder, recursive=True)


def data_below(folder: Path | str) -> dict[str, File]:
    """The files below a folder by relative path, sorted, without hidden ones; empty if it does not exist."""
    files = {file.path[len(str(folder)) :].lstrip("/"): file for file in files_below(folder)}
    return {name: file for name, file in files.items() if not is_hidden(name)}


def _files(folder: Path | str, recursive: bool) -> list[File]:
    system, inside = system_of(folder)
    if not is_remote(folder) and Path(inside).is_file():
        return []
    selector = pafs.FileSelector(inside, recursive=recursive, allow_not_found=True)
    infos = retried(lambda: system.get_file_info(selector))
    prefix = _prefix(folder, inside)
    files, has_other_names = [], False
    for info in infos:
        if info.type == pafs.FileType.File:
            try:
                files.append(_file(prefix, info))
            except UnicodeDecodeError:
                has_other_names = True
    if has_other_names:
        files += _not_utf8(inside, recursive)
    return sorted(files, key=lambda file: file.path)


def _not_utf8(folder: str, recursive: bool) -> Iterator[File]:
    """Local files whose path is not UTF-8, which pyarrow cannot list; as Python writes such paths, with surrogates."""
    for above, folders, names in os.walk(folder, followlinks=True):
        if not recursive:
            folders.clear()
        for path in (Path(above, name) for name in names):
            if not is_text(str(path)) and path.is_file():
                status = path.stat()
                yield File(str(path), status.st_size, status.st_mtime_ns)


def _matching(pattern: str) -> list[File]:
    if http.is_web(pattern):
        return [File(pattern, -1, 0)]
    system, inside = system_of(pattern)
    info = retried(lambda: system.get_file_info(inside))  # a pattern, too, may be the literal name of a file
    if info.type == pafs.FileType.Directory:
        return list(data_below(pattern).values())
    if info.type == pafs.FileType.File:
        return [_file(_prefix(pattern, inside), info)]
    pattern = (pattern + "/*" if pattern.endswith("**") else pattern).removeprefix("./")
    literal = _GLOB.split(pattern)[0]
    if literal == pattern:
        return []
    folder = _folder_of(pattern)
    below = pattern[len(folder) + 1 :] if folder else pattern
    deep = "/" in below
    # A slash before both, so that every name is preceded by one.
    regex = re.compile("/" + (re.escape(folder + "/") if folder else "") + as_regex(below))
    files = _files(folder or ("/" if pattern.startswith("/") else "."), deep)
    return [file for file in files if regex.fullmatch("/" + file.path.removeprefix("./"))]


def _folder_of(pattern: str) -> str:
    """The folder in which a glob begins. An existing folder called `shards [v2]` is taken literally."""
    parts = pattern.split("/")[:-1]
    for count, part in enumerate(parts):
        if _GLOB.search(part) and not _is_folder("/".join(parts[: count + 1])):
            return "/".join(parts[:count])
    return "/".join(parts)


def _is_folder(path: str) -> bool:
    system, inside = system_of(path)
    return retried(lambda: system.get_file_info(inside).type) == pafs.FileType.Directory


def as_regex(pattern: str) -> str:
    """A glob as a regular expression for a path with a leading slash."""
    return "".join(map(_as_regex, _GLOB.split(pattern)))


def _as_regex(piece: str) -> str:
    if piece in _AS_REGEX or not _GLOB.fullmatch(piece):
        return _AS_REGEX.get(piece) or re.escape(piece)
    inner = piece[1:-1].replace("\\", r"\\").replace("[", r"\[")
    return f"[^/{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"


def _prefix(path: Path | str, inside: str) -> str:
    """The URI prefix before a file system's own paths."""
    return str(path).removesuffix(inside) if is_remote(path) else ""


def _file(prefix: str, info: pafs.FileInfo) -> File:
    return File(prefix + info.path, -1 if info.size is None else info.size, info.mtime_ns or 0)


def system_of(path: Path | str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path, and the path inside it."""
    text = str(path)
    if not is_text(text):
        raise UserError(shown(text), "its name is not UTF-8", "rename it")
    if not is_remote(text):
        return _local(), text.removeprefix("file://")
    scheme, _, rest = text.partition("://")
    if scheme in ("s3", "gs", "gcs"):
        return _remote_system(scheme, rest.partition("/")[0]), rest
    import fsspec.core

    try:
        system, inside = fsspec.core.url_to_fs(text)
    except (ValueError, ImportError) as error:
        raise UserError(
            shown(text), f"no file system for '{scheme}' is installed: {error}", "install it, or check the URI"
        ) from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(system)), inside


@functools.lru_cache(maxsize=1)
def _local() -> pafs.FileSystem:
    return pafs.LocalFileSystem()


@functools.lru_cache(maxsize=32)
def _remote_system(scheme: str, bucket: str) -> pafs.FileSystem:
    if scheme != "s3":
        kind, _, address = os.environ.get("STORAGE_EMULATOR_HOST", "").rpartition("://")
        emulated: Any = {"endpoint_override": address.rstrip("/"), "scheme": kind or "http", "anonymous": True} if address else {}
        return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=_TIMEOUT), **emulated)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        kind, _, address = endpoint.rpartition("://")
        where = {"endpoint_override": address.rstrip("/"), "scheme": kind or "https", "region": region or "us-east-1"}
    else:
        where = {"region": region or retried(lambda: pafs.resolve_s3_region(bucket))}
    strategy = pafs.AwsStandardS3RetryStrategy(max_attempts=_REQUEST_ATTEMPTS)
    return pafs.S3FileSystem(connect_timeout=_CONNECT_TIMEOUT, request_timeout=_TIMEOUT, retry_strategy=strategy, **where)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _opened(path: str) -> Any:
    system, inside = system_of(path)
    return system.open_input_file(inside)
