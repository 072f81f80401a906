"""An S3 store for all tests of this folder, in this process's environment."""

import re
from collections.abc import Iterator

import pytest

from tests.object_store import Folder, Store, object_store


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    with object_store() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture
def bucket(store: Store, request: pytest.FixtureRequest) -> Folder:
    """A place in the store for one test, with the counts at zero."""
    store.forget()
    return store.folder(re.sub(r"\W+", "-", request.node.name))
