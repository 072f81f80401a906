"""Tables as csv that a spreadsheet may open: text from data never becomes a formula.

Excel and similar programs evaluate a cell that begins with =, +, -, @, a tab or a line break when the file is opened, which may
fetch a URL or start a program. OWASP's advice against this ("CSV injection") is a leading apostrophe. Numbers stay numbers;
programs that need the exact text can read the Parquet or JSON file instead.
"""

from typing import Any

import pandas as pd

_STARTS = ("=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four: the full-width forms


def to_csv(table: pd.DataFrame) -> str:
    """The table without its index; text that would be a formula, including headers, gets a leading apostrophe."""
    columns = {quoted(name): table.iloc[:, place].map(quoted) for place, name in enumerate(table.columns)}
    return pd.DataFrame(columns, index=table.index).to_csv(index=False)


def quoted(value: Any) -> Any:
    """A cell; only text changes."""
    if not isinstance(value, str):
        return value
    # pandas does not quote a lone carriage return, which would end the row.
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(_STARTS) else text
