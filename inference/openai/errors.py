"""OpenAI's error envelope and the sentences that go into it.

Every refusal on `/v1` is an `ApiError`; the endpoint turns it into a response, or into an SSE
event once the headers have left. Messages are for the caller: they never contain text of other
people, of workers, or of exceptions.
"""

from __future__ import annotations

import math

import msgspec

from cluster.engine.streams import StreamFailure
from gpucloud.lib.logs import redact


class ErrorBody(msgspec.Struct, frozen=True):
    """The inside of the envelope, with OpenAI's four fields, always all present."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """`{"error": {...}}`, as a body or as the data of an SSE event."""

    error: ErrorBody


class ApiError(Exception):
    """A refusal: its status, its envelope, and the headers that help a client to go on."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str = "invalid_request_error",
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers
        self.envelope = ErrorEnvelope(ErrorBody(message, type, param, code))


def invalid(message: str, *, code: str | None, param: str | None) -> ApiError:
    """Return a 400 about one parameter."""
    return ApiError(400, message, code=code, param=param)


def unavailable(message: str, code: str, *, retry_after_s: float = 1.0) -> ApiError:
    """Return a 503 that says when to come again."""
    return ApiError(503, message, code=code, type="server_error", headers=retry_headers(retry_after_s))


def internal_error() -> ApiError:
    """Return the 500 for a fault of ours; what it was is for the log."""
    return ApiError(500, "The server had an error while processing your request.", type="server_error")


def retry_headers(retry_after_s: float) -> tuple[tuple[bytes, bytes], ...]:
    """Return `Retry-After` in whole seconds, 1..60, and OpenAI's finer `retry-after-ms`."""
    seconds = min(60, max(1, math.ceil(retry_after_s)))
    millis = min(60_000, max(1, math.ceil(retry_after_s * 1000)))
    return (b"retry-after", b"%d" % seconds), (b"retry-after-ms", b"%d" % millis)


def model_not_found(model: str) -> ApiError:
    """Return OpenAI's 404 for a model that is not there, or not for this key."""
    shown = echo(model if len(model) <= 64 else model[:61] + "...")
    return ApiError(404, f"The model `{shown}` does not exist or you do not have access to it.", code="model_not_found")


def echo(text: str) -> str:
    """Return what a client sent as it may be shown to it again: keys do land in wrong places."""
    return redact(text)


def from_failure(failure: StreamFailure) -> ApiError:
    """Return the error for a task that the cluster could not serve."""
    status = _STATUS.get(failure.code, 500)
    headers = retry_headers(failure.retry_after_s or 1.0) if status in (429, 503) else ()
    kind = _TYPES.get(status, "server_error")
    return ApiError(status, failure.message, code=failure.code, type=kind, headers=headers)


_STATUS = {
    "rate_limit_exceeded": 429,
    "no_worker_available": 503,
    "queue_timeout": 503,
    "engine_overloaded": 503,
    "server_draining": 503,
    "service_unavailable": 503,
    "timeout": 504,
    "context_length_exceeded": 400,
    "invalid_api_key": 401,
}
_TYPES = {400: "invalid_request_error", 401: "invalid_request_error", 429: "requests"}
