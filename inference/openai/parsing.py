"""One hardened way from bytes to a checked structure, with OpenAI's words for what is wrong.

Depth is capped before anything is parsed, so that no parser can be driven into the ground. The
error path reads msgspec's messages: they are stable, covered by tests, and say exactly where the
fault is, which is what callers of an API want most.
"""

from __future__ import annotations

import json
import re
from typing import TypeVar

import msgspec

from inference.openai.errors import ApiError, invalid

T = TypeVar("T")

MAX_DEPTH = 32
MAX_NODES = 100_000
"""Opening brackets and commas in one body: what a parser would have to allocate for."""

_UNPARSABLE = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
    "library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)"
)


def decode_json(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return what `decoder` makes of `body`; raise `ApiError` 400 that says what is wrong and where."""
    # A body with few brackets cannot be deep: most requests never need the exact scan.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_shape(body)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if b"\\u" in body:
            _refuse_surrogates(body)
        raise ApiError(400, _UNPARSABLE) from None


def _refuse_surrogates(body: bytes) -> None:
    """Name the text with half a surrogate pair, if that is what cannot be parsed."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return
    _find_surrogate(value, "")


def _check_shape(body: bytes) -> None:
    depth = nodes = 0
    for match in _STRUCTURE.finditer(body):
        token = match[0]
        if token in b"[{":
            depth += 1
            nodes += 1
            if depth > MAX_DEPTH:
                raise ApiError(400, f"The JSON body is nested deeper than {MAX_DEPTH} levels.")
        elif token in b"]}":
            depth -= 1
        elif token == b",":
            nodes += 1
        if nodes > MAX_NODES:
            raise ApiError(
                400,
                f"The JSON body has more than {MAX_NODES:,} values.",
                code="array_above_max_length",
                param="messages",
            )


_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{},]', re.DOTALL)


def _find_surrogate(value: object, path: str) -> None:
    """Raise for the first text with half a surrogate pair: it has no UTF-8, so nothing can carry it."""
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise invalid(
                    "Text must be valid Unicode: half of a surrogate pair cannot be encoded.", code=None, param=path
                ) from None
        case list():
            for index, item in enumerate(value):
                _find_surrogate(item, f"{path}[{index}]")
        case dict():
            for key, item in value.items():
                _find_surrogate(key, path)
                _find_surrogate(item, f"{path}.{key}" if path else key)
        case _:
            pass


def _explain(text: str) -> ApiError:
    """Turn msgspec's sentence into OpenAI's: code, parameter path, message."""
    what, _, where = text.partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    path = path.replace("[...]", "")
    if found := re.search(r"missing required field `(.+?)`", what):
        param = f"{path}.{found[1]}" if path else found[1]
        if param == "model":
            return invalid("you must provide a model parameter", code=None, param=None)
        return invalid(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)
    if found := re.search(r"contains unknown field `(.+?)`", what):
        param = f"{path}.{found[1]}" if path else found[1]
        return invalid(f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
    if found := re.search(r"Expected `(\w+)`.*?(>=|<=) (.+)$", what):
        return _bound(found[1], found[2], found[3], "of length" in what, path)
    if found := re.search(r"^Invalid enum value (.+)$", what, re.DOTALL):
        return invalid(f"Invalid value for '{path}': {found[1][:128]}.", code="invalid_value", param=path)
    if what.startswith("Invalid value"):
        return invalid(f"Invalid value for '{path}': {what[14:].strip()}.", code="invalid_value", param=path)
    if "out of range" in what.lower():
        return invalid(
            f"Invalid '{path}': the number is out of range.",
            code="integer_above_max_value" if "Integer" in what else "decimal_above_max_value",
            param=path or None,
        )
    if not path:
        return ApiError(400, "The body must be a JSON object with the parameters of the request.")
    return invalid(f"Invalid type for '{path}': {what[0].lower()}{what[1:]}.", code="invalid_type", param=path)


def _bound(kind: str, side: str, limit: str, is_length: bool, path: str) -> ApiError:
    above = side == "<="
    if is_length:
        noun = "string" if kind == "str" else "array"
        code = f"{noun}_above_max_length" if above else ("empty_array" if noun == "array" else "empty_string")
        most = f"at most {limit.split()[-1]}" if above else f"at least {limit.split()[-1]}"
        return invalid(
            f"Invalid '{path}': expected {most} {'characters' if noun == 'string' else 'items'}.", code=code, param=path
        )
    noun = "integer" if kind == "int" else "decimal"
    code = f"{noun}_above_max_value" if above else f"{noun}_below_min_value"
    return invalid(f"Invalid '{path}': expected a value {side} {limit}.", code=code, param=path)
