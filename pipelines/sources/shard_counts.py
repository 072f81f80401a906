"""The number of samples in shards, from files beside them, so that the shards need not be opened.

img2dataset writes 00000_stats.json beside 00000.tar, with the number of images that were listed and downloaded. Others write
one sizes.json per folder, which open_clip reads.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from pipelines.io import storage
from pipelines.io.http import is_web
from pipelines.io.storage import Missing
from pipelines.program.errors import UserError
from pipelines.sources import rows

_READERS = 16  # at a time


def counts_beside(files: list[str]) -> dict[str, dict[str, Any]]:
    """For each file, its `rows` and how many are `absent`, as the files beside it say; empty if there are none."""
    folders = list({_folder(file): None for file in files if not is_web(file)})
    with ThreadPoolExecutor(_READERS) as pool:
        listings = dict(zip(folders, pool.map(_documents, folders), strict=True))
        sizes = dict(zip(folders, pool.map(lambda folder: _object(listings[folder].get("sizes.json")), folders), strict=True))

        def count(file: str) -> dict[str, int]:
            stats = _object(listings.get(_folder(file), {}).get(f"{rows.stem(file)}_stats.json"))
            downloaded, listed = stats.get("successes"), stats.get("count")
            if isinstance(downloaded, int) and isinstance(listed, int) and 0 <= downloaded <= listed:
                return {"rows": downloaded, "absent": listed - downloaded}
            size = sizes.get(_folder(file), {}).get(storage.name_of(file))
            return {"rows": size} if isinstance(size, int) and size >= 0 else {}

        return dict(zip(files, pool.map(count, files), strict=True))


def _folder(file: str) -> str:
    """With a trailing slash; empty for a file in the current folder."""
    return file[: file.rfind("/") + 1]


def _documents(folder: str) -> dict[str, str]:
    """The JSON files of a folder, {name: path}."""
    with suppress(UserError):  # there are none
        return {storage.name_of(file.path): file.path for file in storage.find(f"{folder}*.json", "")}
    return {}


def _object(path: str | None) -> dict[str, Any]:
    """A JSON object; empty if there is no file, or no object in it."""
    with suppress(Missing, ValueError, RecursionError):
        value = json.loads(storage.read(path)) if path else None
        return value if isinstance(value, dict) else {}
    return {}
