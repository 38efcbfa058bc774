"""Refuses JSON that would harm whoever parses it or keeps what it says, before anything is parsed.

Every plane that takes JSON asks here first. A parser may run into the ground by depth, by the number
of its values or by the digits of a number; it may guess an encoding; it may let `NaN` through, which
passes every comparison. And text may hold what cannot be written down again: half of a surrogate
pair has no UTF-8, and a database text holds no NUL. What is merely not JSON is left to the parser.

Linear in the length of the body, with the work done by C: a short, flat body costs half a microsecond.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

MAX_DEPTH = 32
MAX_NODES = 100_000
"""Values in one body, counted by opening brackets and commas: what a parser would have to allocate for."""
MAX_DIGITS = 1_000
"""Digits of one number. To convert digits takes their square."""


class UnsafeJson(ValueError):
    """This JSON is refused: `reason` is a sentence, `path` where in the body, `""` if nowhere in particular."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path


class TooManyValues(UnsafeJson):
    """There are more values than may be; `path` is the parameter that has most of them."""


def check_json(body: bytes, *, max_depth: int = MAX_DEPTH, max_nodes: int = MAX_NODES) -> None:
    """Raise `UnsafeJson` if `body` may not be given to a parser."""
    if b"\0" in body or body.startswith(b"\xef\xbb\xbf"):
        raise UnsafeJson("The JSON body must be UTF-8 without a byte order mark.")
    if not body.isascii():
        _check_utf8(body)
    # A short body with few brackets can be neither deep nor long: most need no closer look.
    if (
        len(body) > MAX_DIGITS
        or body.count(b"[") + body.count(b"{") > max_depth
        or b"NaN" in body
        or b"Infinity" in body
        or len(body) > max_nodes
    ):
        _check_shape(body, max_depth, max_nodes)
    if b"\\u" in body and not _HARMLESS_TEXT.fullmatch(body):
        _refuse_text(body)


def load_json(body: bytes, *, max_depth: int = MAX_DEPTH, max_nodes: int = MAX_NODES) -> Any:
    """Return what `body` says, for those who have no type to decode into; or raise `UnsafeJson`."""
    check_json(body, max_depth=max_depth, max_nodes=max_nodes)
    try:
        return json.loads(body.decode(), parse_float=_parse_float)
    except UnsafeJson:
        raise
    except ValueError as error:
        raise UnsafeJson(f"The body is not valid JSON: {error}.") from None


def _check_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise UnsafeJson(f"The JSON body must be UTF-8: byte {error.start} is not.") from None


def _check_shape(body: bytes, max_depth: int, max_nodes: int) -> None:
    """Look at what stands outside of strings."""
    # In this order: a run of backslashes is pairs first, and what is left of it escapes a quote.
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body
    if bare.count(b'"') > 4 * max_nodes:
        raise _too_many(body, max_nodes)
    bare = b"".join(bare.split(b'"')[::2])
    if b"NaN" in bare or b"Infinity" in bare:
        raise UnsafeJson("NaN and Infinity are not JSON numbers.")
    if _LONG_NUMBER.search(bare):
        raise UnsafeJson(f"A number in the JSON body has more than {MAX_DIGITS:,} digits.")
    brackets = bare.translate(_BRACKETS, _NO_BRACKETS)
    if bare.count(b",") + brackets.count(b"[") > max_nodes:
        raise _too_many(body, max_nodes)
    depth = 0
    while depth < max_depth and b"[]" in brackets:
        brackets = brackets.replace(b"[]", b"")
        depth += 1
    # What has not met its other half counts as open: a parser may get that far.
    if depth + brackets.count(b"[") > max_depth:
        raise UnsafeJson(f"The JSON body is nested deeper than {max_depth} levels.")


def _too_many(body: bytes, max_nodes: int) -> TooManyValues:
    return TooManyValues(f"The JSON body has more than {max_nodes:,} values.", _largest_member(body))


def _largest_member(body: bytes) -> str:
    """Return the key of the body's object behind which most bytes stand."""
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return max(members, key=lambda key: len(bytes(members[key])), default="")[:64]


def _refuse_text(body: bytes) -> None:
    """Raise for the first text that cannot be written down, and say where it is."""
    try:
        value = json.loads(body.decode())
    except ValueError:
        return  # no JSON at all: its parser has better words for that
    _find_text(value, "")
    raise UnsafeJson("Text in the JSON body has NUL characters or half of a surrogate pair.")


def _find_text(value: Any, path: str) -> None:
    match value:
        case str():
            if "\0" in value:
                raise UnsafeJson("Text must not contain NUL characters (\\u0000).", path)
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UnsafeJson(
                    "Text must be valid Unicode: half of a surrogate pair cannot be encoded.", path
                ) from None
        case list():
            for index, item in enumerate(value):
                _find_text(item, f"{path}[{index}]")
        case dict():
            for key, item in value.items():
                _find_text(key, path)
                _find_text(item, f"{path}.{key}" if path else key)


def _parse_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise UnsafeJson("A number in the JSON body is too large.")
    return number


_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_HARMLESS_TEXT = re.compile(
    rb"(?:[^\\]++|\\(?:[^u]|u(?!0000|[dD][89a-fA-F])|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))*+",
    re.DOTALL,
)
