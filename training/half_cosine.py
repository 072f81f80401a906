"""The half cosine on which learning rates, momenta and weights go from one value to another."""

import math


def half_cosine(first: float, last: float, share: float) -> float:
    """From `first` to `last` as `share` goes from 0 to 1; outside, the nearer end."""
    return last + (first - last) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2
