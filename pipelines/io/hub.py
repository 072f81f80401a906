"""Weights from a hub: checks within seconds, before anything starts, whether they are cached or can be downloaded.

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
    """Raises `UserError` about `key` if a repository of the Hugging Face hub is neither cached on this machine nor available.

    `name`: what the config calls it. If it is cached and the hub does not answer, this process and its children do not ask again.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise UserError(
            key, f"{name} is neither a local path nor the name of a repository", "give a folder, or OWNER/NAME"
        ) from None
    cache = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    failure = _hub_failure(repository)
    if failure is None:
        return
    if any(file.name.endswith(_WEIGHTS) for file in cache.glob("snapshots/*/**/*")):
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        return
    raise UserError(
        key,
        f"the weights of {name} are not in the cache {cache}, and {constants.ENDPOINT} {failure}",
        f"fill the cache where there is a network (hf download {repository}), or give a path that exists",
    )


def check_file(url: str, file: Path, key: str, name: str) -> None:
    """The same for weights that are one file on the web, which their library would save as `file`."""
    if not file.exists() and (failure := _web_failure(url)) is not None:
        raise UserError(key, f"{name} needs {file}, which does not exist, and {url} {failure}", "put it there, or give a path")


@functools.cache
def _hub_failure(repository: str) -> str | None:
    """A clause about why the hub cannot provide it; None if it can."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.is_offline_mode():
        return "is not contacted (HF_HUB_OFFLINE)"
    error = _error_of(lambda: HfApi(constants.ENDPOINT).model_info(repository, timeout=_PATIENCE))
    return "has no such model, or does not show it" if isinstance(error, RepositoryNotFoundError) else _clause(error)


@functools.cache
def _web_failure(url: str) -> str | None:
    request = urllib.request.Request(url, method="HEAD")
    return _clause(_error_of(lambda: urllib.request.urlopen(request, timeout=_PATIENCE).close()))


def _clause(error: Exception | None) -> str | None:
    return None if error is None else f"cannot be reached ({type(error).__name__})"


def _error_of(request: Callable[[], object]) -> Exception | None:
    """The error of a request, or None. It runs in a thread, since name resolution has no timeout."""
    outcome: list[Exception | None] = []

    def work() -> None:
        try:
            request()
            outcome.append(None)
        except Exception as error:  # each layer of the network raises its own errors
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return outcome[0] if outcome else TimeoutError()
