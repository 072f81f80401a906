"""`UserError`: what the user can fix, in three parts: the key it is about, the problem and the remedy."""

import re
from collections.abc import Callable

# A key in a remedy is written as it is set: `epochs=`, or with its dots.
_KEY = re.compile(r"(?<![\w.'/=-])[a-z]\w*(?:\[\d+\])?(?:(?:\.[a-z_]\w*(?:\[\d+\])?)+|(?==))")


class UserError(Exception):
    """Something the user can fix. Programs print it as one line, `key: problem; remedy`, and exit with 2.

    Args:
        key: what it is about: a dotted config key, a file, a URI, an argument. Empty where there is no such thing.
        problem: what is wrong, with the value as the user wrote it.
        remedy: what to do about it, with keys as they are set: `epochs=`, or with their dots. Empty if the problem says it.
    """

    def __init__(self, key: str, problem: str, remedy: str = "") -> None:
        super().__init__(key, problem, remedy)  # all parts, so that they survive pickling, as out of a Ray task
        self.key, self.problem, self.remedy = key, problem, remedy

    def __str__(self) -> str:
        text = f"{self.key}: {self.problem}" if self.key else self.problem
        return f"{text}; {self.remedy}" if self.remedy else text

    def under(self, prefix: str, instead_of: str = "") -> "UserError":
        """The same error about a key below `prefix`: `path` under `source.sources[0]` becomes `source.sources[0].path`.

        Keys in the remedy change where they begin with `instead_of`.

        Args:
            prefix: a dotted key, or the file that holds the key.
            instead_of: the leading part of the key that `prefix` replaces, if the key has it.
        """

        def is_below(key: str) -> bool:
            return bool(instead_of) and (key == instead_of or key.startswith((f"{instead_of}.", f"{instead_of}[")))

        def place(key: str) -> str:
            return _joined(prefix, key[len(instead_of) :].removeprefix(".") if is_below(key) else key)

        remedy = self.moved(lambda key: place(key) if is_below(key) else key).remedy
        return UserError(place(self.key), self.problem, remedy)

    def moved(self, place: Callable[[str], str]) -> "UserError":
        """The same error for a config that sets these keys in other places.

        Args:
            place: from a key, that of the error or one in its remedy, to the key here.
        """
        return UserError(place(self.key), self.problem, _KEY.sub(lambda match: place(match[0]), self.remedy))


def _joined(prefix: str, key: str) -> str:
    return prefix + ("" if not key or key.startswith("[") else ".") + key
