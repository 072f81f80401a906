"""Weights from a hub: check within seconds, before anything starts, whether they are cached or can be downloaded.

Without a network, the libraries that load them retry for minutes in every process that needs a model.
"""

import functools
import os
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pipelines.program.errors import UserError

_PATIENCE = 3.5  # seconds for an answer
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def check_repository(repository: str, key: str, name: str) -> None:
    """Raises `UserError` if a repository of the Hugging Face hub is neither in this machine's cache nor available now.

    `name`: its name in the config. If it is cached and the hub does not answer, neither this process nor those that it starts
    ask again.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise UserError(f"{key}: there is no {name} here, and no hub takes it for a name; give a folder, or OWNER/NAME") from None
    place = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    wrong = _of_hub(repository)
    if wrong is None:
        return
    if any(file.name.endswith(_WEIGHTS) for file in place.glob("snapshots/*/**/*")):
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        return
    raise UserError(
        f"{key}: the weights of {name} would come from a hub, are not in the cache {place}, and {constants.ENDPOINT} {wrong}; "
        f"fill the cache where there is a network (hf download {repository}), or give a path that exists"
    )


def check_file(url: str, file: Path, key: str, name: str) -> None:
    """The same for weights that are one file on the web, which its library would save as `file`."""
    if not file.exists() and (wrong := _of_web(url)) is not None:
        raise UserError(f"{key}: {name} needs {file}, which is not there, and {url} {wrong}; put it there, or give a path")


@functools.cache
def _of_hub(repository: str) -> str | None:
    """None, or why the hub cannot provide it."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.is_offline_mode():
        return "is not asked (HF_HUB_OFFLINE)"
    error = _asked(lambda: HfApi(constants.ENDPOINT).model_info(repository, timeout=_PATIENCE))
    return "has no such model, or hides it" if isinstance(error, RepositoryNotFoundError) else _words(error)


@functools.cache
def _of_web(url: str) -> str | None:
    asked = urllib.request.Request(url, method="HEAD")
    return _words(_asked(lambda: urllib.request.urlopen(asked, timeout=_PATIENCE).close()))


def _words(error: Exception | None) -> str | None:
    return None if error is None else f"cannot be reached ({type(error).__name__})"


def _asked(ask: Callable[[], object]) -> Exception | None:
    """None, or why there is no answer. In a thread, since name resolution has no timeout."""
    found: list[Exception | None] = []

    def work() -> None:
        try:
            ask()
            found.append(None)
        except Exception as error:  # each layer of the network raises its own errors
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return found[0] if found else TimeoutError()
