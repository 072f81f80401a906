"""`python -m evaluation.reporting OUTPUT`: write the comparison of saved results again, without Ray and without embedding."""

import sys

from evaluation.report import main

if __name__ == "__main__":
    sys.exit(main())
