"""The report of a sweep: report.html and report.md for people, summary.csv and pairwise.csv for programs.

Made from sweep.json, trials.parquet, curves.parquet and the final runs' items.npz alone, without Ray and without training, at any
time: a sweep that runs writes its report again after every few trials.
"""

from pathlib import Path

from evaluation.reporting.render import write_files
from pipelines.program.csv_text import to_csv
from tuning.reporting import conclusion, page, sweep_data


def write_report(folder: Path) -> str:
    """Write the four files into a sweep's folder. Returns the answer, a sentence or two.

    Raises `UserError` where the folder, or a file that it should hold, is missing or not readable.
    """
    sweep = sweep_data.read(folder)
    files = {"summary.csv": to_csv(sweep.summary), "pairwise.csv": to_csv(sweep.comparisons)}
    write_files(folder, files | page.render_files(sweep))
    return f"{conclusion.answer(sweep).striptags()}."
