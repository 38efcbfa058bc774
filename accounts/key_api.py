"""`/api/keys`: people and their own keys. Whose key it is not gets a 404, staff too: they have the admin.

What a key has used is counted by an app above this one, so its reader is handed in by the URLs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from django.utils import timezone
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.selectors import get_key, search_keys
from accounts.selfservice import LIMITS, UnableToChange, change_own_key, create_own_key
from accounts.services import LONGEST_OVERLAP, TIERS, UnableToRotate, actor_of, revoke_key, rotate_key
from gpucloud.lib.globs import MAX_GLOB_CHARS, MAX_GLOBS
from gpucloud.lib.rest.errors import Conflict
from gpucloud.lib.rest.serializers import Body, PageQuery, ordering_field
from gpucloud.lib.rest.views import ApiView, page_of, paginate

DAY_S = 86_400
TOTALS = ("requests", "prompt_tokens", "completion_tokens")


class KeyUse(Protocol):
    """What a key has used."""

    @property
    def requests(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...


ListTotals = Callable[[Sequence[int]], Mapping[int, KeyUse]]
"""Reads what keys have used, by id; one that was never used may be left out."""


class KeyQuery(PageQuery):
    """Which keys."""

    state = serializers.ChoiceField(["live", "expired", "revoked"], required=False)
    test = serializers.BooleanField(required=False, allow_null=True, default=None)
    name = serializers.CharField(max_length=100, required=False, help_text="A part of the name, in any case.")
    ordering = ordering_field("created_at", "name", "expires_at", "last_used_at", default="-created_at")


def _limit(name: str, help_text: str) -> serializers.IntegerField:
    return serializers.IntegerField(min_value=0, max_value=LIMITS[name], required=False, help_text=help_text)


class KeyTerms(Body):
    """What may be changed of a key."""

    name = serializers.CharField(max_length=100, required=False)
    tier = serializers.ChoiceField(TIERS, required=False, help_text="For requests that name none.")
    highest_tier = serializers.ChoiceField(TIERS, required=False, help_text="The highest they may ask for.")
    models = serializers.ListField(
        child=serializers.CharField(max_length=MAX_GLOB_CHARS),
        min_length=1,
        max_length=MAX_GLOBS,
        required=False,
        help_text="Globs of the model ids it may use.",
    )
    requests_per_minute = _limit("requests_per_minute", "0 means no limit.")
    tokens_per_minute = _limit("tokens_per_minute", "0 means no limit.")
    concurrent_requests = _limit("concurrent_requests", "0 means no limit.")
    max_tokens = _limit("max_tokens", "The most one request may generate; 0 means no cap.")
    monthly_tokens = _limit("monthly_tokens", "Billed tokens in a calendar month (UTC); 0 means no budget.")
    expires_at = serializers.DateTimeField(allow_null=True, required=False)

    def validate_expires_at(self, value: datetime | None) -> datetime | None:
        """Refuse the past: to end a key now is to revoke it."""
        if value is not None and value <= timezone.now():
            raise serializers.ValidationError("Expected a time in the future; to end a key now, DELETE it.")
        return value


class NewKey(KeyTerms):
    """What a key may begin with."""

    test = serializers.BooleanField(
        required=False, help_text="Simulated workers only, and no budget. Cannot be changed later."
    )


class Rotation(Body):
    """How to replace a secret."""

    overlap_s = serializers.IntegerField(
        min_value=0,
        max_value=int(LONGEST_OVERLAP.total_seconds()),
        default=DAY_S,
        help_text="How long the secret before goes on working.",
    )


class PreviousSecret(serializers.Serializer[Any]):
    """The secret before the last rotation, while it works."""

    masked = serializers.CharField(source="previous_masked")
    until = serializers.DateTimeField(source="previous_until")


class Totals(serializers.Serializer[Any]):
    """What a key has used since its first day: ended requests, billed tokens."""

    requests = serializers.IntegerField(default=0)
    prompt_tokens = serializers.IntegerField(default=0)
    completion_tokens = serializers.IntegerField(default=0)


class Key(serializers.Serializer[Any]):
    """A key, without its secret."""

    id = serializers.IntegerField()
    name = serializers.CharField()
    prefix = serializers.CharField()
    last4 = serializers.CharField()
    masked = serializers.CharField(help_text="How it is shown: prefix and last four characters.")
    test = serializers.BooleanField()
    tier = serializers.ChoiceField(TIERS)
    highest_tier = serializers.ChoiceField(TIERS)
    models = serializers.ListField(child=serializers.CharField())
    requests_per_minute = serializers.IntegerField()
    tokens_per_minute = serializers.IntegerField()
    concurrent_requests = serializers.IntegerField()
    max_tokens = serializers.IntegerField()
    monthly_tokens = serializers.IntegerField()
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)
    last_used_at = serializers.DateTimeField(allow_null=True, help_text="Written at most once a minute.")
    previous = serializers.SerializerMethodField()
    totals = serializers.SerializerMethodField()

    @extend_schema_field(PreviousSecret(allow_null=True))
    def get_previous(self, key: Any) -> Any:
        """Show the secret before while it works."""
        until = key.previous_until
        return PreviousSecret(key).data if until is not None and until > timezone.now() else None

    @extend_schema_field(Totals)
    def get_totals(self, key: Any) -> Any:
        """Show what the key has used."""
        use = self.context["totals"].get(key.pk)
        return {name: getattr(use, name, 0) for name in TOTALS}


class KeyWithSecret(Key):
    """A key with its secret, which nothing can show again."""

    key = serializers.SerializerMethodField()

    def get_key(self, key: Any) -> str:
        """Show the secret, this once."""
        return str(self.context["secret"])


class RotatedKey(KeyWithSecret):
    """A key with its new secret."""

    previous_until = serializers.DateTimeField(help_text="The secret before works until then.")


class _KeyView(ApiView):
    list_totals: ListTotals | None = None
    """Given by the URLs."""

    def _shown(self, shape: type[Key], keys: Sequence[Any], secret: str = "") -> list[dict[str, Any]]:
        assert self.list_totals is not None
        totals = self.list_totals([key.pk for key in keys])
        return list(shape(keys, many=True, context={"totals": totals, "secret": secret}).data)

    def _get_own(self, key_id: int) -> Any:
        key = get_key(user=self.user, key_id=key_id)
        if key is None:
            raise _no_such_key()
        return key


class KeysView(_KeyView):
    """All keys of whoever asks."""

    query_class = KeyQuery

    @extend_schema(operation_id="list_keys", responses=page_of(Key))
    def get(self, request: Request) -> Response:
        """List your keys, revoked ones too, without their secrets."""
        asked = self.query
        keys = search_keys(user=self.user, state=asked.get("state"), test=asked["test"], name=asked.get("name"))
        return paginate(
            request,
            keys.order_by(asked["ordering"], "-pk"),
            lambda page: self._shown(Key, page),
            page=asked["page"],
            page_size=asked["page_size"],
        )

    @extend_schema(
        operation_id="create_key",
        request=NewKey,
        responses={201: KeyWithSecret},
        examples=[
            OpenApiExample(
                "A key for one model and a week",
                value={"name": "notebook", "models": ["llama-*"], "expires_at": "2030-01-07T00:00:00Z"},
                request_only=True,
            )
        ],
    )
    def post(self, request: Request) -> Response:
        """Create a key. `key` is its secret, and never shown again.

        Without a word on it a key has the defaults: any model, tier `default`, 60 requests per minute. You may
        set every term up to what this cluster leaves to you; staff may set any.
        """
        key, secret = create_own_key(user=self.user, terms=self.read_body(NewKey))
        return Response(self._shown(KeyWithSecret, [key], secret)[0], status=201)


class KeyView(_KeyView):
    """One key of whoever asks."""

    @extend_schema(operation_id="get_key", responses=Key)
    def get(self, request: Request, key_id: int) -> Response:
        """Show one of your keys, without its secret."""
        return Response(self._shown(Key, [self._get_own(key_id)])[0])

    @extend_schema(operation_id="change_key", request=KeyTerms, responses=Key)
    def patch(self, request: Request, key_id: int) -> Response:
        """Change terms of one of your keys; a revoked one answers 409."""
        terms = self.read_body(KeyTerms, partial=True)
        try:
            key = change_own_key(user=self.user, key_id=key_id, terms=terms)
        except UnableToChange as error:
            raise Conflict(error.message, error.code) from None
        if key is None:
            raise _no_such_key()
        return Response(self._shown(Key, [key])[0])

    @extend_schema(operation_id="revoke_key", responses={204: None})
    def delete(self, request: Request, key_id: int) -> Response:
        """Revoke one of your keys, for good. It stays listed; to revoke it twice changes nothing."""
        revoke_key(key=self._get_own(key_id), actor=actor_of(self.user))
        return Response(status=204)


class KeyRotationView(_KeyView):
    """A new secret for one key."""

    @extend_schema(operation_id="rotate_key", request=Rotation, responses=RotatedKey)
    def post(self, request: Request, key_id: int) -> Response:
        """Give one of your keys a new secret, shown once. The one before works until `previous_until`.

        A key has two secrets at the most: one that was on its way out already ends now. A revoked or
        expired key answers 409.
        """
        overlap = timedelta(seconds=self.read_body(Rotation)["overlap_s"])
        key = self._get_own(key_id)
        try:
            secret = rotate_key(key=key, overlap=overlap, actor=actor_of(self.user))
        except UnableToRotate as error:
            raise Conflict(error.message, error.code) from None
        return Response(self._shown(RotatedKey, [key], secret)[0])


def _no_such_key() -> NotFound:
    return NotFound("You have no key with this id.")
