"""Delimiter of a CSV: spreadsheets write commas, semicolons or tabs, depending on their language.

Some state it in a first line ``sep=;``, which is neither header nor row.
"""

from __future__ import annotations

import re

__all__ = ["detect_delimiter"]

#: A first line that states the separator; a spreadsheet that opened and saved such a file may have quoted it.
_STATED = re.compile(r'("?)sep=([^\w\s"]|\t)\1[ ,;\t]*(?=[\r\n]|\Z)', re.IGNORECASE)


def detect_delimiter(text: str) -> tuple[str, str]:
    """Return the text of a CSV and the delimiter of its columns.

    A line that states the separator is emptied and not removed, so that the lines keep their numbers.
    """
    stated = _STATED.match(text)
    if stated is not None:
        return text[stated.end() :], stated[2]
    header = text.lstrip("\r\n").split("\n", 1)[0]
    return text, max(",;\t", key=header.count)
