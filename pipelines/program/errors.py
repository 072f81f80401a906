"""`UserError`: what the user can fix, in three parts: the key it is about, the problem and the remedy."""


class UserError(Exception):
    """Something the user can fix. Programs print it as one line, `key: problem; remedy`, and exit with 2.

    Args:
        key: what it is about: a dotted config key, a file, a URI, an argument. Empty where there is no such thing.
        problem: what is wrong, with the value as the user wrote it.
        remedy: what to do about it. Empty if the problem says it.
    """

    def __init__(self, key: str, problem: str, remedy: str = "") -> None:
        super().__init__(key, problem, remedy)  # all parts, so that they survive pickling, as out of a Ray task
        self.key, self.problem, self.remedy = key, problem, remedy

    def __str__(self) -> str:
        text = f"{self.key}: {self.problem}" if self.key else self.problem
        return f"{text}; {self.remedy}" if self.remedy else text

    def under(self, prefix: str, instead_of: str = "") -> "UserError":
        """The same error about a key below `prefix`: `path` under `source.sources[0]` becomes `source.sources[0].path`.

        Args:
            prefix: a dotted key, or the file that holds the key.
            instead_of: the leading part of the key that `prefix` replaces, if the key has it.
        """
        key = self.key
        if instead_of and (key == instead_of or key.startswith((f"{instead_of}.", f"{instead_of}["))):
            key = key[len(instead_of) :].removeprefix(".")
        joint = "" if not key or key.startswith("[") else "."
        return UserError(f"{prefix}{joint}{key}", self.problem, self.remedy)
