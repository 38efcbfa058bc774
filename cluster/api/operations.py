"""`/api/workers` and `/api/worker-tokens`: what operators want, for staff.

Services write it down; gateways and dispatcher make it so within a second.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.permissions import IsAdminUser
from rest_framework.request import Request
from rest_framework.response import Response

from cluster import services
from cluster.domain import Intent
from cluster.selectors import get_worker, get_worker_token, search_worker_tokens
from gpucloud.lib.audit import Actor
from gpucloud.lib.globs import MAX_GLOB_CHARS, MAX_GLOBS
from gpucloud.lib.rest.serializers import Body, PageQuery, ordering_field
from gpucloud.lib.rest.views import ApiView, page_of, paginate


class Worker(serializers.Serializer[Any]):
    """A worker that was here at least once, and what operators want of it."""

    id = serializers.CharField()
    name = serializers.CharField()
    intent = serializers.ChoiceField(list(Intent))
    last_seen_at = serializers.DateTimeField()


class WorkerWanted(Worker):
    """A worker after something was wanted of it."""

    changed = serializers.BooleanField(help_text="Whether it was not wanted before.")


class _StaffView(ApiView):
    permission_classes = (IsAdminUser,)

    @property
    def actor(self) -> Actor:
        """Who acts."""
        return Actor(self.user.pk, str(self.user))


class _WorkerActionView(_StaffView):
    act: ClassVar[Callable[..., bool]]

    def _act(self, worker_id: str) -> Response:
        changed = type(self).act(worker_id=worker_id, actor=self.actor)
        worker = get_worker(worker_id=worker_id)
        if worker is None:
            raise NotFound("No worker with this id has ever been here.")
        return Response({**Worker(worker).data, "changed": changed})


class CordonView(_WorkerActionView):
    """Keep new work away."""

    act = staticmethod(services.cordon_worker)

    @extend_schema(operation_id="cordon_worker", request=None, responses=WorkerWanted)
    def post(self, request: Request, worker_id: str) -> Response:
        """Keep new work away from a worker; what runs there goes on. It stands until you uncordon it."""
        return self._act(worker_id)


class UncordonView(_WorkerActionView):
    """Take back a cordon or a drain."""

    act = staticmethod(services.uncordon_worker)

    @extend_schema(operation_id="uncordon_worker", request=None, responses=WorkerWanted)
    def post(self, request: Request, worker_id: str) -> Response:
        """Take back a cordon or a drain."""
        return self._act(worker_id)


class DrainView(_WorkerActionView):
    """Finish and leave."""

    act = staticmethod(services.drain_worker)

    @extend_schema(operation_id="drain_worker", request=None, responses=WorkerWanted)
    def post(self, request: Request, worker_id: str) -> Response:
        """Have a worker finish what runs, take nothing new and leave."""
        return self._act(worker_id)


class EvictView(_WorkerActionView):
    """Close the link."""

    act = staticmethod(services.evict_worker)

    @extend_schema(operation_id="evict_worker", request=None, responses=WorkerWanted)
    def post(self, request: Request, worker_id: str) -> Response:
        """Close a worker's connection now; its requests move on. It may dial in again unless it is cordoned."""
        return self._act(worker_id)


class TokenQuery(PageQuery):
    """Which tokens."""

    state = serializers.ChoiceField(["live", "expired", "revoked"], required=False)
    ordering = ordering_field("created_at", "name", "expires_at", "last_used_at", default="-created_at")


class NewToken(Body):
    """What a token may begin with."""

    name = serializers.CharField(max_length=100, default="worker")
    models = serializers.ListField(
        child=serializers.CharField(max_length=MAX_GLOB_CHARS),
        min_length=1,
        max_length=MAX_GLOBS,
        required=False,
        help_text="Globs of the model ids that its workers may serve; any if absent.",
    )
    expires_at = serializers.DateTimeField(allow_null=True, default=None)

    def validate_expires_at(self, value: datetime | None) -> datetime | None:
        """Refuse the past."""
        if value is not None and value <= timezone.now():
            raise serializers.ValidationError("Expected a time in the future.")
        return value


class Token(serializers.Serializer[Any]):
    """A worker token, without its secret."""

    id = serializers.IntegerField()
    name = serializers.CharField()
    prefix = serializers.CharField()
    last4 = serializers.CharField()
    masked = serializers.CharField()
    models = serializers.ListField(child=serializers.CharField())
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)
    last_used_at = serializers.DateTimeField(allow_null=True)


class TokenWithSecret(Token):
    """A worker token with its secret, which nothing can show again."""

    token = serializers.CharField()


class TokensView(_StaffView):
    """All worker tokens."""

    query_class = TokenQuery

    @extend_schema(operation_id="list_worker_tokens", responses=page_of(Token))
    def get(self, request: Request) -> Response:
        """List worker tokens, without their secrets."""
        return paginate(
            request,
            search_worker_tokens(state=self.query.get("state")).order_by(self.query["ordering"], "-pk"),
            lambda page: list(Token(page, many=True).data),
            page=self.query["page"],
            page_size=self.query["page_size"],
        )

    @extend_schema(operation_id="create_worker_token", request=NewToken, responses={201: TokenWithSecret})
    def post(self, request: Request) -> Response:
        """Create a worker token. `token` is its secret, and never shown again."""
        token, secret = services.create_worker_token(**self.read_body(NewToken), actor=self.actor)
        return Response({**Token(token).data, "token": secret}, status=201)


class TokenView(_StaffView):
    """One worker token."""

    @extend_schema(operation_id="revoke_worker_token", responses={204: None})
    def delete(self, request: Request, token_id: int) -> Response:
        """Revoke a worker token, for good: its workers are cut off. To do it twice changes nothing."""
        token = get_worker_token(token_id=token_id)
        if token is None:
            raise NotFound("There is no worker token with this id.")
        services.revoke_worker_token(token=token, actor=self.actor)
        return Response(status=204)
