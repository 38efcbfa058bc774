"""Writes CSV that a spreadsheet cannot be tricked by: text that would be a formula begins with `'`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_lines(rows: Iterable[Sequence[object]]) -> bytes:
    """Return rows as lines of CSV, in UTF-8."""
    text = io.StringIO()
    csv.writer(text).writerows([_disarm(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def _disarm(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell
