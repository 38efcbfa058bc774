"""`/api/usage`: ended requests and their tokens, by hour, day or month, as pages or as CSV."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request

from gpucloud.lib.rest.serializers import PageQuery
from gpucloud.lib.rest.views import paginate
from inference.api.spans import MAX_ID, HoursQuery, WhoseView
from inference.selectors import Dimension, Period
from inference.usage import Asked, show_lines, stream_csv

LENGTHS = {
    Period.HOUR: (timedelta(days=1), timedelta(days=31)),
    Period.DAY: (timedelta(days=30), timedelta(days=366)),
    Period.MONTH: (timedelta(days=365), timedelta(days=3660)),
}
"""How long a span is when nothing is said of it, and at the most."""
WORDS = "|".join(Dimension)


@extend_schema_field({"type": "string", "pattern": f"^({WORDS})(,({WORDS}))*$"})
class DimensionsField(serializers.CharField):
    """Words separated by commas."""

    def to_internal_value(self, data: Any) -> Any:
        words = super().to_internal_value(data).split(",")
        if not set(words) <= set(Dimension):
            raise serializers.ValidationError(f"Expected one or more of {', '.join(Dimension)}, separated by commas.")
        return frozenset(map(Dimension, words))


class UsageQuery(PageQuery, HoursQuery):
    """Which lines, and how."""

    group = serializers.ChoiceField(list(Period), default=Period.DAY.value, help_text="How long a line is, in UTC.")
    by = DimensionsField(
        required=False,
        max_length=40,
        help_text="What lines are told apart by: `model`, `key`, `user` (staff only), or several: `key,model`.",
    )
    key = serializers.IntegerField(
        min_value=0, max_value=MAX_ID, required=False, help_text="A key's id; 0 is the playground."
    )
    model = serializers.CharField(max_length=128, required=False)
    format = serializers.ChoiceField(["json", "csv"], default="json", help_text="CSV has all lines, without pages.")

    def lengths(self, attrs: dict[str, Any]) -> tuple[timedelta, timedelta]:
        """Return the usual and the longest span of the lines asked for."""
        return LENGTHS[Period(attrs["group"])]

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Refuse a page of what has none."""
        if attrs["format"] == "csv":
            given = [name for name in ("page", "page_size") if name in self.initial_data]
            if given:
                raise serializers.ValidationError(dict.fromkeys(given, "The CSV has all lines: it has no pages."))
        return super().validate(attrs)


class Counts(serializers.Serializer[Any]):
    """Ended requests, by how they ended, and their tokens; billed ones but for the generated."""

    requests = serializers.IntegerField()
    completed = serializers.IntegerField()
    failed = serializers.IntegerField()
    cancelled = serializers.IntegerField()
    expired = serializers.IntegerField()
    lost = serializers.IntegerField()
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    generated_tokens = serializers.IntegerField()


class UsageLine(Counts):
    """What was used in one hour, day or month; the other names are there if asked for by `by`."""

    start = serializers.DateTimeField(help_text="When the hour, day or month begins.")
    user_id = serializers.IntegerField(required=False)
    email = serializers.EmailField(required=False)
    key_id = serializers.IntegerField(required=False, help_text="0 is the playground.")
    key_name = serializers.CharField(required=False)
    model = serializers.CharField(required=False)


class UsagePage(serializers.Serializer[Any]):
    """Lines with any usage, the oldest first, and their sum over all pages."""

    group = serializers.ChoiceField(list(Period))
    by = serializers.ListField(child=serializers.ChoiceField(list(Dimension)))
    totals = Counts()
    count = serializers.IntegerField()
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    results = UsageLine(many=True)

    def get_fields(self) -> dict[str, Any]:
        """Return the fields with one that is a keyword of Python."""
        return {"from": serializers.DateTimeField(), "to": serializers.DateTimeField()} | super().get_fields()


class UsageView(WhoseView):
    """What was used."""

    query_class = UsageQuery

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[BaseRenderer, str]:
        """Answer in the form that `format` names, whatever is accepted: spreadsheets ask for `text/csv` only."""
        renderer = JSONRenderer()
        return renderer, renderer.media_type

    @extend_schema(
        operation_id="list_usage",
        responses={
            (200, "application/json"): UsagePage,
            (200, "text/csv"): OpenApiResponse(OpenApiTypes.STR, description="The same lines, all of them."),
        },
    )
    def get(self, request: Request) -> HttpResponseBase:
        """Tell what you used: ended requests and billed tokens. Staff see everybody's, or one `user_id`'s.

        `from` and `to` are widened to whole hours, of a request's admission. At most 31 days by `hour`,
        366 by `day`, ten years by `month`. Lines without usage are left out. Everything is in UTC.
        """
        by = self.query.get("by", frozenset())
        if Dimension.USER in by and not self.user.is_staff:
            raise PermissionDenied("To tell users apart is for staff: you see your own.")
        asked = Asked(
            since=self.query["since"],
            until=self.query["until"],
            user_id=self.whose(),
            key_id=self.query.get("key"),
            model=self.query.get("model"),
            period=Period(self.query["group"]),
            by=by,
        )
        if self.query["format"] == "csv":
            name = f"usage-{asked.since:%Y-%m-%d}-{asked.until:%Y-%m-%d}.csv"
            headers = {"Content-Disposition": f'attachment; filename="{name}"'}
            return StreamingHttpResponse(stream_csv(asked), content_type="text/csv; charset=utf-8", headers=headers)
        page = paginate(
            request,
            asked.lines(),
            lambda lines: show_lines(lines, by),
            page=self.query["page"],
            page_size=self.query["page_size"],
        )
        page.data = {
            "from": asked.since,
            "to": asked.until,
            "group": asked.period.value,
            "by": sorted(by),
            "totals": msgspec.structs.asdict(asked.total()),
            **page.data,
        }
        return page
