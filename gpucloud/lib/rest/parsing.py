"""Reads JSON bodies of `/api`, all taken for hostile: capped and scanned before they are parsed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework.exceptions import ParseError, UnsupportedMediaType
from rest_framework.parsers import BaseParser
from rest_framework.request import Request

from gpucloud.lib.jsonguard import UnsafeJson, load_json
from gpucloud.lib.rest.errors import RequestTooLarge

MAX_BODY_BYTES = 64 * 1024
MAX_NODES = 10_000
MAX_PATH_CHARS = 100


class ApiRequest(Request):
    """A request whose body is read also when it came in chunks, without a length."""

    def _load_stream(self) -> None:
        meta = self._request.META
        if not meta.get("CONTENT_LENGTH") and "HTTP_TRANSFER_ENCODING" in meta:
            self._stream: Any = self._request
        else:
            super()._load_stream()  # type: ignore[misc]


class GuardedJSONParser(BaseParser):
    """JSON and nothing else, of at most `MAX_BODY_BYTES`."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        """Return the value of a body; every way in which it can be wrong is a 4xx that says which."""
        meta = parser_context["request"].META if parser_context else {}
        if (encoding := meta.get("HTTP_CONTENT_ENCODING", "identity").strip().lower()) not in ("", "identity"):
            raise UnsupportedMediaType(encoding, f"Content-Encoding {encoding[:20]!r}: send the body as it is.")
        raw = stream.read(MAX_BODY_BYTES + 1)
        if len(raw) > MAX_BODY_BYTES:
            raise RequestTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes.")
        return parse_json(raw)


def parse_json(raw: bytes) -> Any:
    """Return the value of a JSON document, or raise `ParseError`."""
    if not raw.strip():
        raise ParseError("The body is empty; expected a JSON object.")
    try:
        return load_json(raw, max_nodes=MAX_NODES)
    except UnsafeJson as unsafe:
        where = f" At {unsafe.path[:MAX_PATH_CHARS]}." if unsafe.path else ""
        raise ParseError(f"{unsafe.reason}{where}") from None
