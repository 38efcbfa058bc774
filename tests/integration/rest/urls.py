"""URLs for tests of what all endpoints share: one that takes a body, one that lists, some that fail."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.urls import include, path
from rest_framework import serializers
from rest_framework.response import Response

from gpucloud.lib.rest.serializers import Body, PageQuery, ordering_field
from gpucloud.lib.rest.views import ApiView, UnknownView, paginate
from gpucloud.urls import handler404, handler500  # noqa: F401


class Note(Body):
    """Every kind of field there is."""

    name = serializers.CharField(max_length=20)
    count = serializers.IntegerField(min_value=0, required=False)
    share = serializers.FloatField(required=False)
    done = serializers.BooleanField(required=False)
    tags = serializers.ListField(child=serializers.CharField(), required=False)
    at = serializers.DateTimeField(required=False, allow_null=True)


class NoteQuery(PageQuery):
    """What may be asked of the list."""

    ordering = ordering_field("number", default="number")
    most = serializers.IntegerField(min_value=0, default=7)


class NotesView(ApiView):
    """A list, and a body that comes back."""

    authentication_classes = ()
    permission_classes = ()
    query_class = NoteQuery

    def get(self, request):
        """Return the numbers below `most`."""
        numbers = sorted(range(self.query["most"]), reverse=self.query["ordering"] == "-number")
        return paginate(
            request,
            numbers,
            lambda page: [{"n": number} for number in page],
            page=self.query["page"],
            page_size=self.query["page_size"],
        )

    def post(self, request):
        """Return the body."""
        return Response(self.read_body(Note), status=201)


class FailingView(ApiView):
    """Fails by the exception that its class attribute names."""

    authentication_classes = ()
    permission_classes = ()
    exception: Any = None

    def get(self, request):
        """Fail."""
        raise self.exception


class PrivateView(ApiView):
    """Says nothing about who may."""

    def get(self, request):
        """Return what only somebody with a token may see."""
        return Response({"at": datetime(2026, 1, 1)})


urlpatterns = [
    path(
        "api/",
        include(
            [
                path("notes", NotesView.as_view()),
                path("private", PrivateView.as_view()),
                path(
                    "invalid",
                    FailingView.as_view(exception=ValidationError({"name": "Too dull."})),
                ),
                path("full", FailingView.as_view(exception=ValidationError("Enough.", "limit_reached"))),
                path("broken", FailingView.as_view(exception=RuntimeError("a secret of ours"))),
                path("<path:rest>", UnknownView.as_view()),
            ]
        ),
    )
]
