"""How `/api` says no, whatever went wrong: `{"code", "detail"}`, and `"fields"` where a value was wrong.

`code` is for programs and stays as it is; `detail` is a sentence for people; `fields` maps the name
of a field, or its path (`models[0]`), to sentences. DRF's exceptions, Django's and those of services
all come out in this shape. What nobody expected becomes a 500 in it too, by the site's handlers.
"""

from __future__ import annotations

from typing import Any

from django.core.exceptions import NON_FIELD_ERRORS
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.exceptions import ValidationError as DjangoValidationError
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions
from rest_framework.response import Response

from gpucloud.lib.throttle import TooManyAttempts

INVALID = "invalid"

Fields = dict[str, list[str]]


class RequestTooLarge(exceptions.APIException):
    """The body is larger than anything that is meant."""

    status_code = 413
    default_code = "request_too_large"
    default_detail = "The body is too large."


class Conflict(exceptions.APIException):
    """What is asked for cannot be done to the row as it is now."""

    status_code = 409
    default_code = "conflict"
    default_detail = "This cannot be done as things are now."


def handle_exception(exc: Exception, context: dict[str, Any]) -> Response | None:
    """Return the answer to an exception of a view; None for one that nobody expected."""
    match exc:
        case DjangoValidationError():
            exc = _to_drf(exc)
        case Http404():
            exc = exceptions.NotFound()
        case DjangoPermissionDenied():
            exc = exceptions.PermissionDenied()
        case TooManyAttempts():
            exc = exceptions.Throttled(exc.wait_s)
    if not isinstance(exc, exceptions.APIException):
        return None
    headers = {}
    if challenge := getattr(exc, "auth_header", None):
        headers["WWW-Authenticate"] = challenge
    if wait_s := getattr(exc, "wait", None):
        exc.detail = exceptions.ErrorDetail(f"Too many attempts: try again in {wait_s} s.", exc.default_code)
        headers["Retry-After"] = str(wait_s)
    if isinstance(exc, exceptions.ValidationError):
        return Response(_describe_invalid(exc.detail), exc.status_code, headers=headers)
    code, detail = _code_and_detail(exc)
    return Response({"code": code, "detail": detail}, exc.status_code, headers=headers)


def error_response(status: int, code: str, detail: str) -> JsonResponse:
    """Return an error from outside of any view of the API."""
    response = JsonResponse({"code": code, "detail": detail}, status=status)
    response["Cache-Control"] = "no-store"
    return response


def is_api(request: HttpRequest) -> bool:
    """Tell whether a request was for the API, by its path."""
    return request.path == "/api" or request.path.startswith("/api/")


def _code_and_detail(exc: exceptions.APIException) -> tuple[str, str]:
    # Exceptions of simplejwt have a dictionary for a detail, with the sentence and its code in it.
    detail = exc.detail.get("detail", exc.default_detail) if isinstance(exc.detail, dict) else exc.detail
    return str(getattr(detail, "code", None) or exc.default_code), str(detail)


def _describe_invalid(detail: Any) -> dict[str, Any]:
    fields: Fields = {}
    _flatten(detail, "", fields)
    own = fields.pop("", [])
    codes = {code for code in _codes(detail) if code != INVALID}
    # A refusal that concerns no field may have a code of its own: `limit_reached`.
    code = codes.pop() if own and not fields and len(codes) == 1 else INVALID
    sentence = " ".join(own) or f"Not valid: {', '.join(fields)}."
    return {"code": code, "detail": sentence, "fields": fields}


def _flatten(detail: Any, path: str, fields: Fields) -> None:
    if isinstance(detail, dict):
        for name, inner in detail.items():
            if isinstance(name, int):
                inner_path = f"{path}[{name}]"
            elif name in ("non_field_errors", NON_FIELD_ERRORS):
                inner_path = path
            else:
                inner_path = f"{path}.{name}" if path else str(name)
            _flatten(inner, inner_path, fields)
    elif isinstance(detail, list):
        for index, inner in enumerate(detail):
            _flatten(inner, path if isinstance(inner, str) else f"{path}[{index}]", fields)
    else:
        fields.setdefault(path, []).append(str(detail))


def _codes(detail: Any) -> set[str]:
    if isinstance(detail, dict):
        return {code for inner in detail.values() for code in _codes(inner)}
    if isinstance(detail, list):
        return {code for inner in detail for code in _codes(inner)}
    return {str(getattr(detail, "code", INVALID))}


def _to_drf(exc: DjangoValidationError) -> exceptions.ValidationError:
    if hasattr(exc, "error_dict"):
        return exceptions.ValidationError(
            {name: [_detail(error) for error in errors] for name, errors in exc.error_dict.items()}
        )
    return exceptions.ValidationError([_detail(error) for error in exc.error_list])


def _detail(error: DjangoValidationError) -> exceptions.ErrorDetail:
    return exceptions.ErrorDetail(" ".join(error.messages), code=error.code or INVALID)
