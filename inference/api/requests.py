"""`/api/requests`: every accepted request, and the story of one."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from cluster.domain import TIERS, Outcome
from gpucloud.lib.rest.keyset import CursorQuery, paginate_by_time
from gpucloud.lib.rest.views import page_of
from inference.api.spans import MAX_ID, SpanQuery, WhoseView
from inference.selectors import get_request, search_requests
from inference.timeline import describe_story, tell_story

STATES = ["open", *Outcome]


class RequestsQuery(CursorQuery, SpanQuery):
    """Which requests."""

    id = serializers.CharField(max_length=64, required=False, help_text="The whole id, as in `x-request-id`.")
    key = serializers.IntegerField(
        min_value=0, max_value=MAX_ID, required=False, help_text="A key's id; 0 is the playground."
    )
    model = serializers.CharField(max_length=128, required=False)
    state = serializers.ChoiceField(STATES, required=False)
    worker = serializers.CharField(max_length=64, required=False, help_text="A worker's id or name.")


class RequestLine(serializers.Serializer[Any]):
    """A request as the ledger knows it. Prompts and answers are not kept."""

    id = serializers.CharField(help_text="Also the `x-request-id` of the answer.")
    state = serializers.ChoiceField(STATES)
    model = serializers.CharField()
    user_id = serializers.IntegerField()
    email = serializers.EmailField(source="user.email")
    key_id = serializers.IntegerField(allow_null=True, help_text="Null: the playground.")
    key_name = serializers.CharField(source="key.name", default=None, allow_null=True)
    # DRF takes declared fields out of the class: the attribute of this name stays what it was.
    source = serializers.CharField(  # type: ignore[assignment]
        help_text="`api` or `playground`."
    )
    stream = serializers.BooleanField()
    tier = serializers.ChoiceField(list(TIERS))
    finish_reason = serializers.CharField(allow_null=True)
    error_code = serializers.CharField(allow_null=True)
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField(help_text="Billed.")
    generated_tokens = serializers.IntegerField(help_text="Computed by workers, delivered or not.")
    delivered_tokens = serializers.IntegerField(help_text="Handed to the client's connection.")
    attempts = serializers.IntegerField()
    worker_id = serializers.CharField(help_text="The last one that had it; empty if none had.")
    worker_name = serializers.CharField()
    queue_ms = serializers.FloatField()
    ttft_ms = serializers.FloatField(allow_null=True, help_text="To the first token; null if there was none.")
    total_ms = serializers.FloatField()
    created_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)


class StoryLine(serializers.Serializer[Any]):
    """One thing that happened to a request."""

    at_ms = serializers.FloatField(help_text="Since its admission.")
    took_ms = serializers.FloatField(help_text="Since the line before.")
    event = serializers.CharField(source="what")
    detail = serializers.CharField(allow_blank=True)


class RequestWithStory(RequestLine):
    """A request and all that happened to it, in order."""

    timeline = serializers.SerializerMethodField()

    def get_timeline(self, row: Any) -> StoryLine(many=True):  # type: ignore[valid-type]
        """Tell the story."""
        return StoryLine(describe_story(tell_story(row)), many=True).data


class RequestsView(WhoseView):
    """Many requests."""

    query_class = RequestsQuery

    @extend_schema(operation_id="list_requests", responses=page_of(RequestLine))
    def get(self, request: Request) -> Response:
        """List your requests, the newest first. Staff see everybody's, or one `user_id`'s.

        Pages are found by `next` and `previous`. `count` is exact up to 10,000, which stands for as many
        and more.
        """
        asked = self.query
        rows = search_requests(
            user_id=self.whose(),
            request_id=asked.get("id"),
            key_id=asked.get("key"),
            model=asked.get("model"),
            state=asked.get("state"),
            worker=asked.get("worker"),
            since=asked["since"],
            until=asked["until"],
        )
        return paginate_by_time(
            request,
            rows,
            lambda page: list(RequestLine(page, many=True).data),
            field="created_at",
            cursor=asked.get("cursor"),
            page_size=asked["page_size"],
        )


class RequestView(WhoseView):
    """One request."""

    @extend_schema(operation_id="get_request", responses=RequestWithStory)
    def get(self, request: Request, request_id: str) -> Response:
        """Show one request with its timeline: where it waited and why, which workers had it, what went wrong."""
        row = get_request(request_id=request_id, user_id=self.whose())
        if row is None:
            raise NotFound("There is no request with this id, or it is not yours to see.")
        return Response(RequestWithStory(row).data)
