from __future__ import annotations

import csv
import io

import pytest

from gpucloud.lib.csvlines import write_lines


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_text_that_would_be_a_formula_begins_with_an_apostrophe(text):
    (cells,) = csv.reader(io.StringIO(write_lines([[text]]).decode(), newline=""))

    assert cells == ["'" + text]


def test_other_text_and_numbers_stay_as_they_are():
    rows = [["a=b", "", 'say "hi", twice', "ü…"], [-1, 0, 2.5, None]]

    read = list(csv.reader(io.StringIO(write_lines(rows).decode(), newline="")))

    assert read == [["a=b", "", 'say "hi", twice', "ü…"], ["-1", "0", "2.5", ""]]
