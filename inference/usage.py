"""The usage table as people get it: lines with the names of keys, and the same lines as CSV.

The CSV is made in chunks, each in a thread: a chunk is a stretch of time, so that no query stays open
while a client is slow, and no list is ever whole in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
from asgiref.sync import sync_to_async

from accounts.selectors import get_key_names
from gpucloud.lib.csvlines import write_lines
from inference.selectors import Dimension, Period, Usage, get_usage, list_usage

PLAYGROUND = "playground"
COUNTS = Usage.__struct_fields__
COLUMNS = {
    Dimension.USER: ("user_id", "email"),
    Dimension.KEY: ("key_id", "key_name"),
    Dimension.MODEL: ("model",),
}


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines are wanted."""

    since: datetime
    until: datetime
    user_id: int | None = None
    key_id: int | None = None
    model: str | None = None
    period: Period = Period.DAY
    by: frozenset[Dimension] = frozenset()

    def lines(self) -> Any:
        """Return the lines, unread."""
        return list_usage(**self._rows(), period=self.period, by=self.by)

    def total(self) -> Usage:
        """Return the sum of all lines."""
        return get_usage(**self._rows())

    def _rows(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("since", "until", "user_id", "key_id", "model")}


def show_lines(lines: Iterable[dict[str, Any]], by: frozenset[Dimension]) -> list[dict[str, Any]]:
    """Return lines with the fields that they are shown with, in order."""
    lines = list(lines)
    names = get_key_names({line["key_id"] for line in lines}) if Dimension.KEY in by else {}
    shown = []
    for line in lines:
        named = {
            "start": line["start"],
            "user_id": line.get("user_id"),
            "email": line.get("user__email"),
            "key_id": line.get("key_id"),
            "key_name": names.get(line.get("key_id", 0), PLAYGROUND),
            "model": line.get("model"),
        }
        shown.append({name: named[name] for name in columns(by)} | {name: line[f"sum_{name}"] for name in COUNTS})
    return shown


def columns(by: frozenset[Dimension]) -> list[str]:
    """Return the names of the fields that tell one line from another."""
    return ["start", *(name for dimension, names in COLUMNS.items() if dimension in by for name in names)]


async def stream_csv(asked: Asked) -> AsyncIterator[bytes]:
    """Yield all lines as CSV, the names of the columns first."""
    yield write_lines([[*columns(asked.by), *COUNTS]])
    for since, until in _stretches(asked):
        if text := await sync_to_async(_write_stretch)(asked, since, until):
            yield text


def _write_stretch(asked: Asked, since: datetime, until: datetime) -> bytes:
    part = msgspec.structs.replace(asked, since=since, until=until)
    shown = show_lines(part.lines(), asked.by)
    return write_lines([line["start"].isoformat(), *list(line.values())[1:]] for line in shown)


def _stretches(asked: Asked) -> Iterator[tuple[datetime, datetime]]:
    """Yield the span in days, or where lines are of months in months: a line never lies in two of them."""
    start = asked.since
    while start < asked.until:
        following = start.replace(hour=0) + timedelta(days=1)
        if asked.period is Period.MONTH:
            following = (start.replace(day=1, hour=0) + timedelta(days=32)).replace(day=1)
        yield start, min(following, asked.until)
        start = following
