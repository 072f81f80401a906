"""The report of a sweep: report.html and report.md for people, summary.csv and pairwise.csv for programs.

Made from sweep.json, trials.parquet, curves.parquet, the final runs' items.npz and the best trial's outcome.json alone, without
Ray and without training, at any time: a sweep that runs writes its report again after every few trials.
"""

from tuning.reporting.page import write_report as write_report
