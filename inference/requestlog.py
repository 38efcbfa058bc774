"""One structured line per request: ids, durations, outcome. Never a prompt, an answer or a secret.

Lines are written in batches, a few times a second: a write per request would cost more than the
request's scheduling. What must not be lost is in the ledger; this is for reading along.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import BinaryIO

import msgspec

from gpucloud.lib.logs import escape, redact

FLUSH_S = 0.2
MAX_LINES = 64
"""So many are written at once: what is kept longer is cold when it is written."""


class RequestLine(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """What is said of one request."""

    id: str
    method: str
    path: str
    status: int
    ms: float
    key: str | None = None
    code: str | None = None
    model: str | None = None
    outcome: str | None = None
    worker: str | None = None
    attempts: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    queue_ms: float | None = None
    ttft_ms: float | None = None


class RequestLog:
    """Writes request lines as JSON, one per line."""

    def __init__(self, *, enabled: bool = True, stream: BinaryIO | None = None) -> None:
        self._enabled = enabled
        self._stream = stream or sys.stderr.buffer
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._encode = msgspec.json.Encoder().encode

    def write(self, line: RequestLine) -> None:
        """Queue a line; it is written within a fraction of a second."""
        if not self._enabled:
            return
        if line.status >= 400:
            # Only then can the path be one that somebody made up, with a key in it for instance.
            line = msgspec.structs.replace(line, path=escape(redact(line.path)))
        self._lines.append(self._encode(line))
        if len(self._lines) >= MAX_LINES:
            self._write()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what is queued."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            self._write()

    def _write(self) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        prefix = b'{"at":"' + stamp.encode() + b'",'
        lines, self._lines = self._lines, []
        try:
            self._stream.write(b"".join([prefix + line[1:] + b"\n" for line in lines]))
            self._stream.flush()
        except (OSError, ValueError):
            # A log nobody can take is no reason to fail a request.
            self._enabled = False
