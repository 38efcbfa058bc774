"""What the schema of `/api` says of every operation, so that no view has to."""

from __future__ import annotations

from typing import Any

from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema

from gpucloud.lib.rest.serializers import Body, Query

ERROR = {
    "type": "object",
    "description": "What went wrong. `fields` is there when values were wrong, by the name or path of each.",
    "required": ["code", "detail"],
    "properties": {
        "code": {"type": "string", "example": "invalid"},
        "detail": {"type": "string", "example": "Not valid: name."},
        "fields": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
    },
}


class ApiSchema(AutoSchema):
    """Adds a view's own query parameters to its GET, and says of bodies that they have no other fields."""

    def get_override_parameters(self) -> list[Any]:
        """Return the view's query serializer."""
        query_class = getattr(self.view, "query_class", Query)
        return [query_class] if query_class is not Query and self.method == "GET" else []

    def _map_basic_serializer(self, serializer: Any, direction: Any) -> Any:
        described = super()._map_basic_serializer(serializer, direction)  # type: ignore[no-untyped-call]
        if isinstance(serializer, Body):
            described["additionalProperties"] = False
        return described


class OnceGenerator(SchemaGenerator):
    """Makes the schema once per process: it takes a while, and the loop waits for it."""

    _made: dict[str, Any] | None = None

    def get_schema(self, request: Any = None, public: bool = False) -> dict[str, Any]:
        """Return the schema, made at the first call."""
        if OnceGenerator._made is None:
            OnceGenerator._made = super().get_schema(request, public)  # type: ignore[no-untyped-call]
        return OnceGenerator._made


def describe_errors(result: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Say of every operation that anything else than its own answers is an `Error`."""
    result.setdefault("components", {}).setdefault("schemas", {})["Error"] = ERROR
    answer = {
        "description": "Refused or failed.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for path in result.get("paths", {}).values():
        for operation in path.values():
            operation.setdefault("responses", {}).setdefault("default", answer)
    return result
