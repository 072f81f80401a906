"""The comparison of all models in a folder of results: report.html and report.md for people, results.csv for programs.

Made from the result files alone, without Ray and without embedding anything, at any time.
"""

import os
from pathlib import Path

from evaluation.reporting import overview, page
from evaluation.reporting.comparison import Comparison
from evaluation.results import read_results
from pipelines.program.csv_text import to_csv


def write_report(output: Path) -> None:
    """Write the three files into a folder of results, each aside and renamed.

    Raises `UserError` where there is no result, or one is not readable.
    """
    comparison = Comparison(read_results(output))
    files = {
        "results.csv": to_csv(overview.table(comparison)),
        "report.md": overview.markdown(comparison),
        "report.html": page.render(comparison, output),
    }
    for name, content in files.items():
        aside = output / f"{name}.partial-{os.getpid()}"
        aside.write_text(content, encoding="utf-8", newline="")
        aside.rename(output / name)
