"""Who takes which rows of a global batch: the one rule for sizes that need not divide it.

Of `rows` rows, each of `count` workers takes consecutive ones, in rank order; sizes differ by at most one, and the first
`rows % count` workers take one more. With 7 rows, three workers take rows 0 to 2, 3 and 4, 5 and 6. Each worker knows the shares
of all by arithmetic, so sizes are never communicated. A worker's rows are cut into micro-batches by the same rule.
"""

from itertools import pairwise


def shares(rows: int, count: int) -> list[range]:
    """The rows that each of `count` takes. Raises `ValueError` if one would have none."""
    if rows < count:
        raise ValueError(f"{rows} rows cannot be shared by {count}: each needs at least one")
    size, larger = divmod(rows, count)
    starts = [index * size + min(index, larger) for index in range(count + 1)]
    return [range(start, end) for start, end in pairwise(starts)]
