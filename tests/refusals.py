"""How tests ask for a user's error: by its key and by what it must name, never by its wording."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipelines.program.errors import UserError


@contextmanager
def refused(key: str, *named: object, remedy: object = "") -> Iterator[pytest.ExceptionInfo[UserError]]:
    """What is inside raises a `UserError` about `key` that names each of `named` (values, files, allowed names), on one line.

    Args:
        remedy: what the remedy must name, such as the key to set or the command to run.
    """
    with pytest.raises(UserError) as caught:
        yield caught
    error = caught.value
    assert error.key == key, f"the key is {error.key!r}: {error}"
    for value in named:
        assert str(value) in error.problem or str(value) in error.remedy, f"{value!r} is not named: {error}"
    assert str(remedy) in error.remedy, f"the remedy does not name {remedy!r}: {error}"
    assert "\n" not in str(error)
