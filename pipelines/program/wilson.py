"""Wilson's interval for a proportion of independent draws (JASA 22, 1927), which never has zero width."""

import math

Z = 1.959963984540054  # two-sided 95 %


def wilson(hits: float, n: float) -> tuple[float, float]:
    """95 % interval of hits / n; 0 to 1 if nothing was drawn. `n` need not be whole: an effective number of draws."""
    if n == 0:
        return 0.0, 1.0
    p = hits / n
    middle, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + Z * Z / n)), min(1.0, (middle + half) / (1 + Z * Z / n))
