"""How lines of the log are written: one line each, without secrets, and without what people said.

`LineFormatter` is on every handler, in the server and in workers. It
- takes out what looks like a secret: our keys and tokens, JWTs, Authorization and Cookie headers, and
  values of passwords and the like in query strings, forms and dicts;
- escapes control characters, so that nobody who may choose a name can forge a line or drive a terminal;
- tells exceptions of the rooms that handle prompts by type and place only: their own words may quote one.

It is the last line of defence. The first is not to log such things. Standard library only: workers use it.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
PROMPT_ROOMS = ("inference", "cluster", "uvicorn", "asyncio")
"""Loggers of code through which prompts and answers pass."""
MAX_LINE_CHARS = 8_000
MAX_TRACE_CHARS = 32_000

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class LineFormatter(logging.Formatter):
    """Formats records as said above; exceptions of `wordless` loggers without their messages."""

    def __init__(self, fmt: str = LINE, *, wordless: Sequence[str] = PROMPT_ROOMS) -> None:
        super().__init__(fmt)
        self._wordless = frozenset(wordless)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, and a traceback indented below it."""
        wordless = record.name.partition(".")[0] in self._wordless
        record.message = record.getMessage()
        if wordless:
            # asyncio shows tasks and futures with the exception that ended them.
            record.message = _EXCEPTION.sub(r"exception=\1(…)", record.message)
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        parts = [escape(redact(self.formatMessage(record)[:MAX_LINE_CHARS]))]
        if record.exc_info:
            # Not `exc_text`: another handler may have left the unabridged one there.
            parts.append(_indent(describe_exception(record.exc_info[1], words=not wordless)))
        if record.stack_info:
            parts.append(_indent(record.stack_info))
        return "\n".join(parts)


def make_handler(**options: Any) -> logging.Handler:
    """Return a handler to stderr that writes such lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(**options))
    return handler


def redact(text: str) -> str:
    """Return the text without what looks like a secret; of a key its public prefix stays."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def escape(text: str) -> str:
    """Return the text with control, bidirectional and unpaired characters spelled out."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def describe_exception(error: BaseException | None, *, words: bool) -> str:
    """Return the traceback; without `words` each exception is its type alone."""
    if error is None:
        return ""
    story = traceback.TracebackException.from_exception(error)
    if not words:
        _silence(story)
    return "".join(story.format())


def _silence(story: traceback.TracebackException | None) -> None:
    while story is not None:
        # A SyntaxError or an exception's notes carry more words than its message.
        story._str = "…"  # type: ignore[attr-defined]
        story.__notes__ = None
        for inner in getattr(story, "exceptions", None) or ():
            _silence(inner)
        _silence(story.__cause__)
        story = story.__context__


def _indent(text: str) -> str:
    lines = redact(text[-MAX_TRACE_CHARS:]).rstrip("\n").split("\n")
    return "\n".join(["  " + escape(line) for line in lines])


# `accounts.apikey=7` is how the audit names a row.
_NAME = (
    r"(?<!\baccounts\.)(?<!\bcluster\.)[\w-]*"
    r"(?:passwo?r?d|secret|token|api[_-]?key|session(?:id|_key)|authorization|pepper)"
)
_SECRETS = (
    # Ours, and whatever is shaped like them: the public prefix stays.
    (re.compile(r"\b((?:sk-test|sk(?!-test)|wk)-[\w-]{0,8})[\w-]{12,}"), r"\1…"),
    (re.compile(r"\beyJ[\w-]{6,}\.[\w-]{4,}(?:\.[\w-]*)?"), "eyJ…"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE), r"\1 …"),
    (re.compile(r"((?:set-)?cookie\b['\"]?\s*[:=,]\s*).+", re.IGNORECASE), r"\1…"),
    # name=value, name: value, 'name': 'value', b'name', b'value'
    (
        re.compile(rf"(\b{_NAME}['\"]?\s*(?:%3d|[=:,])\s*)(b?\"[^\"]*\"?|b?'[^']*'?|[^\s&,;)}}]+)", re.IGNORECASE),
        r"\1…",
    ),
)
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_EXCEPTION = re.compile(r"exception=(\w+)\(.*\)")
