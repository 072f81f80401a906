"""How many samples shards hold, by what files beside them say, so that nobody needs to look inside.

img2dataset writes 00000_stats.json beside 00000.tar: how many images were listed, and how many of them came. Others write one
sizes.json a folder, as open_clip reads it.
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
    """For each file, the `rows` in it, and how many are `absent`; empty where nothing beside it tells. They are believed."""
    folders = list({_folder(file): None for file in files if not is_web(file)})
    with ThreadPoolExecutor(_READERS) as pool:
        listings = dict(zip(folders, pool.map(_documents, folders), strict=True))
        sizes = dict(zip(folders, pool.map(lambda folder: _object(listings[folder].get("sizes.json")), folders), strict=True))

        def count(file: str) -> dict[str, int]:
            stats = _object(listings.get(_folder(file), {}).get(f"{rows.stem(file)}_stats.json"))
            came, listed = stats.get("successes"), stats.get("count")
            if isinstance(came, int) and isinstance(listed, int) and 0 <= came <= listed:
                return {"rows": came, "absent": listed - came}
            size = sizes.get(_folder(file), {}).get(storage.name_of(file))
            return {"rows": size} if isinstance(size, int) and size >= 0 else {}

        return dict(zip(files, pool.map(count, files), strict=True))


def _folder(file: str) -> str:
    """With the slash at its end; empty for a file in the current folder."""
    return file[: file.rfind("/") + 1]


def _documents(folder: str) -> dict[str, str]:
    """JSON files of a folder, by name."""
    with suppress(UserError):  # there is none
        return {storage.name_of(file.path): file.path for file in storage.find(f"{folder}*.json", "")}
    return {}


def _object(path: str | None) -> dict[str, Any]:
    """A JSON object; an empty one where there is none that can be understood."""
    with suppress(Missing, ValueError, RecursionError):
        found = json.loads(storage.read(path)) if path else None
        return found if isinstance(found, dict) else {}
    return {}
