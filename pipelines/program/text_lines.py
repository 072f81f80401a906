"""Text encoding and line ends: one rule for every reader of captions, labels and names.

`str.splitlines` also splits at U+2028, U+0085, form feeds and others. Captions from the web contain them as part of the text.
"""

import re

UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how such files begin
IS_UTF_16 = "it is UTF-16 (iconv -f UTF-16 -t UTF-8 converts it)"
_END = re.compile(r"\r\n|\n|\r")


def lines_of(text: str) -> list[str]:
    r"""The lines of a text without their ends: \n, \r\n and \r end one, and nothing else does."""
    lines = _END.split(text)
    return lines if lines[-1] else lines[:-1]


def in_one_line(text: str) -> str:
    """The text with a space for each line's end."""
    return _END.sub(" ", text)


def decoded(data: bytes) -> str:
    """Text in UTF-8, without a byte order mark. Raises `ValueError`, with a hint if it is UTF-16."""
    if data.startswith(UTF_16):
        raise ValueError(IS_UTF_16)
    return data.decode("utf-8-sig")
