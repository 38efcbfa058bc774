"""What the endpoints of this package share: whose rows, and from when to when. Times are in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied

from gpucloud.lib.rest.serializers import Query
from gpucloud.lib.rest.views import ApiView

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
MAX_ID = 2**63 - 1


class SpanQuery(Query):
    """`from` and `to`, and whose; they come out as `since`, `until` and `user_id`."""

    user_id = serializers.IntegerField(min_value=1, max_value=MAX_ID, required=False, help_text="Staff only.")

    def get_fields(self) -> dict[str, Any]:
        """Return the fields with two that are keywords of Python."""
        span = {
            "from": serializers.DateTimeField(required=False, help_text="The first moment that counts."),
            "to": serializers.DateTimeField(required=False, help_text="The first that does not count any more."),
        }
        return span | super().get_fields()

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Refuse times in the wrong order, or of no century of ours."""
        since, until = attrs.pop("from", None), attrs.pop("to", None)
        for name, at in (("from", since), ("to", until)):
            if at is not None and not EARLIEST <= at <= LATEST:
                raise serializers.ValidationError({name: f"Expected a time from {EARLIEST.year} to {LATEST.year}."})
        if since is not None and until is not None and since >= until:
            raise serializers.ValidationError({"from": "Expected a time before `to`."})
        return attrs | {"since": since, "until": until}


class HoursQuery(SpanQuery):
    """A span of whole hours, never open and never too long: sums are by the hour."""

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Complete the span, widen it to whole hours, and refuse one that is too long."""
        attrs = super().validate(attrs)
        usual, longest = self.lengths(attrs)
        until = _ceil(attrs["until"] or timezone.now())
        since = _floor(attrs["since"] or until - usual)
        if since >= until:
            raise serializers.ValidationError({"from": "Expected a time before `to`, which is now if absent."})
        if until - since > longest:
            raise serializers.ValidationError({"from": f"Expected at most {longest.days} days before `to`."})
        return attrs | {"since": since, "until": until}

    def lengths(self, attrs: dict[str, Any]) -> tuple[timedelta, timedelta]:
        """Return the length of a span when nothing is said of it, and the longest allowed."""
        raise NotImplementedError


class WhoseView(ApiView):
    """A view of one's own rows; staff see everybody's, or those of one `user_id`."""

    def whose(self) -> int | None:
        """Return the id of the user whose rows are meant, None for everybody's."""
        asked: int | None = self.query.get("user_id")
        if self.user.is_staff:
            return asked
        if asked is not None:
            raise PermissionDenied("`user_id` is for staff: you see your own.")
        return int(self.user.pk)


def _floor(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _ceil(at: datetime) -> datetime:
    floor = _floor(at)
    return floor if floor == at else floor + HOUR
