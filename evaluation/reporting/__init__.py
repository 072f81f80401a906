"""How results are shown: the kit that the pages of all programs are made with, and the comparison of all models of a folder.

The kit: `base.html.j2`, `kit.j2` and `style.j2` (what a page, its parts and its colours are), `render`, `chart`, `number_format`.
The comparison is made from the result files alone, without Ray and without embedding anything, at any time.
"""

from pathlib import Path


def write_report(output: Path) -> None:
    """Write report.html and report.md for people, results.csv for programs, into a folder of results.

    Raises `UserError` where there is no result, or one is not readable.
    """
    from evaluation.reporting import overview, page  # the kit does without them
    from evaluation.reporting.comparison import Comparison
    from evaluation.reporting.render import write_files
    from evaluation.results import read_results
    from pipelines.program.csv_text import to_csv

    comparison = Comparison(read_results(output))
    csv, markdown = to_csv(overview.table(comparison)), overview.markdown(comparison)
    write_files(output, {"results.csv": csv, "report.md": markdown, "report.html": page.render_page(comparison, output)})
