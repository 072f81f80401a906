"""What a user can fix, told in three parts: the key it is about, the problem and the remedy."""


class UserError(Exception):
    """Something the user can fix. Programs print it as one line, `key: problem; remedy`, and exit with 2.

    Args:
        key: what it is about: a dotted config key, a file, a URI, an argument. Empty where there is no such thing.
        problem: what is wrong, with the value as the user wrote it.
        remedy: what to do now. Empty where the problem says it.
    """

    def __init__(self, key: str, problem: str | None = None, remedy: str = "") -> None:
        if problem is None:  # until every call names its parts
            key, problem = "", key
        super().__init__(key, problem, remedy)  # all parts, so that a pickled one comes back whole out of a Ray task
        self.key, self.problem, self.remedy = key, problem, remedy

    def __str__(self) -> str:
        told = f"{self.key}: {self.problem}" if self.key else self.problem
        return f"{told}; {self.remedy}" if self.remedy else told

    def under(self, prefix: str, instead_of: str = "") -> "UserError":
        """The same about a key of `prefix`: `path` under `source.sources[0]` is `source.sources[0].path`.

        Args:
            prefix: a dotted key, or the file that holds the key.
            instead_of: the leading part of the key that `prefix` replaces, if the key has it.
        """
        key = self.key
        if instead_of and (key == instead_of or key.startswith((f"{instead_of}.", f"{instead_of}["))):
            key = key[len(instead_of) :].removeprefix(".")
        joint = "" if not key or key.startswith("[") else "."
        return UserError(f"{prefix}{joint}{key}", self.problem, self.remedy)
