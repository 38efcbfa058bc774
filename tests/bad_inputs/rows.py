"""The rows of the corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).parent

POSTPONED = {
    "v1-http-17": "idempotency keys are not built yet: the header is ignored, and each request stands for itself",
    "v1-http-18": "idempotency keys are not built yet: the header is ignored, and each request stands for itself",
}
"""Rows about what is not there yet, with the reason."""


class Row(msgspec.Struct, frozen=True):
    """One bad input and what must come of it."""

    id: str
    method: str
    path: str
    auth: str
    headers: dict[str, str]
    body: Any
    expect_status: list[int]
    expect_error_code: str | None = None
    expect_error_param: str | None = None
    expect_error_type: str | None = None
    note: str = ""

    @property
    def plane(self) -> str:
        """`v1`, `api`, `page` or `ws`."""
        if self.method == "WS":
            return "ws"
        first = self.path.split("/")[1].split("?")[0]
        return first if first in ("v1", "api") else "page"

    @property
    def recipe(self) -> str | None:
        """How to build the body, where it is not given."""
        return self.body["$gen"] if isinstance(self.body, dict) and "$gen" in self.body else None


def load_rows() -> list[Row]:
    """Return all rows that can be run."""
    rows = [
        msgspec.json.decode(line, type=Row)
        for name in ("shared", "ours")
        for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()
        if line.strip()
    ]
    ids = [row.id for row in rows]
    assert len(set(ids)) == len(ids), "ids are unique"
    assert set(ids) >= POSTPONED.keys()
    return [row for row in rows if row.id not in POSTPONED]
