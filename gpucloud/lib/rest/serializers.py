"""What bodies and query parameters are checked with: DRF's serializers that take nothing for granted.

Declare ordinary fields. `Body` refuses names it does not know and values of another JSON type than
the field's: `"5"` is no number, `1` is no `true`. `Query` refuses unknown parameters and repeated
ones; its values are text by nature. Nothing is ignored in silence. What is sent out is a plain
`serializers.Serializer`, which describes rows for the schema and never validates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.http import QueryDict
from rest_framework import serializers
from rest_framework.exceptions import ValidationError

MAX_PAGE_SIZE = 200
DEFAULT_PAGE_SIZE = 50
MAX_PAGE = 1_000_000


class _Strict(serializers.Serializer[Any]):
    """Refuses what it does not know by name."""

    noun = "field"

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise ValidationError({"non_field_errors": [f"Expected an object, got {_name_type(data)}."]})
        known = [name for name, field in self.fields.items() if not field.read_only]
        problems: dict[str, list[str]] = {
            str(name)[:100]: [f"Unknown {self.noun}; {_list_known(known)}."] for name in data if name not in known
        }
        for name in known:
            if name in data:
                problems |= self._check_value(name, self.fields[name], data[name])
        if problems:
            raise ValidationError(problems)
        return super().to_internal_value(data)

    def _check_value(self, name: str, field: serializers.Field[Any, Any, Any, Any], value: Any) -> dict[str, list[str]]:
        return {}


class Body(_Strict):
    """A JSON body: known fields only, and each of its own JSON type."""

    def _check_value(self, name: str, field: serializers.Field[Any, Any, Any, Any], value: Any) -> dict[str, list[str]]:
        return dict(_find_mistyped(name, field, value))


class Query(_Strict):
    """The parameters of a URL. This one knows none; derive to name some."""

    noun = "parameter"

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, QueryDict):
            repeated = [name for name, values in data.lists() if len(values) > 1]
            if repeated:
                raise ValidationError({name[:100]: ["Given more than once."] for name in repeated})
            data = data.dict()
        return super().to_internal_value(data)


class PageQuery(Query):
    """The parameters that every list takes."""

    page = serializers.IntegerField(min_value=1, max_value=MAX_PAGE, default=1)
    page_size = serializers.IntegerField(min_value=1, max_value=MAX_PAGE_SIZE, default=DEFAULT_PAGE_SIZE)


def ordering_field(*names: str, default: str) -> serializers.ChoiceField:
    """Return a parameter that orders by one of `names`, downwards with a `-` before it."""
    return serializers.ChoiceField(choices=[sign + name for name in names for sign in ("", "-")], default=default)


_TYPES: tuple[tuple[type, tuple[type, ...], str], ...] = (
    (serializers.BooleanField, (bool,), "true or false"),
    (serializers.IntegerField, (int,), "a whole number"),
    (serializers.FloatField, (int, float), "a number"),
    (serializers.DecimalField, (int, float), "a number"),
    (serializers.ListField, (list,), "a list"),
    (serializers.DictField, (dict,), "an object"),
    (serializers.BaseSerializer, (dict, list), "an object"),
    (serializers.CharField, (str,), "a string"),
    (serializers.ChoiceField, (str,), "a string"),
    (serializers.DateTimeField, (str,), "a string"),
    (serializers.DateField, (str,), "a string"),
)


def _find_mistyped(
    path: str, field: serializers.Field[Any, Any, Any, Any], value: Any
) -> Iterable[tuple[str, list[str]]]:
    if value is None:
        return  # whether null is allowed is the field's to say
    for kind, types, name in _TYPES:
        if isinstance(field, kind):
            # bool is an int to Python, not to JSON.
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                yield path, [f"Expected {name}, got {_name_type(value)}."]
            elif isinstance(field, serializers.ListField) and isinstance(value, list):
                for index, item in enumerate(value):
                    yield from _find_mistyped(f"{path}[{index}]", field.child, item)
            return


def _name_type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case _:
            return "an object"


def _list_known(names: list[str]) -> str:
    return f"known are {', '.join(names)}" if names else "none is taken here"
