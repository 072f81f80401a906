"""Secrets: what a config must not hold, since it is stored with what it makes, and what no message or page may show.

A secret is the password of a URI, and the value of an environment variable whose name says so: AWS_SECRET_ACCESS_KEY, HF_TOKEN.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

_NAMES = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 8  # characters: a shorter value is a switch, and may be part of any word
_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://[^\s/?#@:]*:[^\s/?#@]+@")
_WAYS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or a profile in ~/.aws/credentials",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS in the environment",
}
_WAY = "leave it out, and give it to the store's library through the environment or a file"


def secret_variables() -> dict[str, str]:
    """Names and values of this process's environment variables that hold secrets. A path to one is none."""
    return {
        name: value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _NAMES.search(name) and not value.startswith(("/", "~"))
    }


def hidden(text: str) -> str:
    """A text in which each secret of the environment is replaced by its variable's name."""
    for name, value in secret_variables().items():
        if value in text:
            text = text.replace(value, f"${name}")
    return text


def secrets_in(tree: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Secrets in a tree of JSON values: each with its dotted key, what is wrong with it, and another way to pass it."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from secrets_in(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from secrets_in(value, f"{key}[{index}]")
    elif isinstance(tree, str):
        if found := _PASSWORD.search(tree):
            shown = f"{found[1]}://...@{tree[found.end() :]}"
            yield key, f"'{hidden(shown)}' has a password, and configs are stored", _WAYS.get(found[1].lower(), _WAY)
        elif (text := hidden(tree)) != tree:
            yield key, f"'{text}' is the value of a secret variable, and configs are stored", "leave it in the environment alone"
