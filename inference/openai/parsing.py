"""One hardened way from bytes to a checked structure, with OpenAI's words for what is wrong.

What no parser should see is refused before by `gpucloud.lib.jsonguard`, as on every plane. The error
path reads msgspec's messages: they are stable, covered by tests, and say exactly where the
fault is, which is what callers of an API want most.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from gpucloud.lib.jsonguard import TooManyValues, UnsafeJson, check_json
from inference.openai.errors import ApiError, invalid

T = TypeVar("T")

_UNPARSABLE = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
    "library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)"
)


def decode_json(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return what `decoder` makes of `body`; raise `ApiError` 400 that says what is wrong and where."""
    try:
        check_json(body)
        return decoder.decode(body)
    except TooManyValues as error:
        raise invalid(error.reason, code="array_above_max_length", param=error.path or None) from None
    except UnsafeJson as error:
        raise invalid(error.reason, code=None, param=error.path or None) from None
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError(400, _UNPARSABLE) from None


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
