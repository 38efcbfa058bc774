"""What of accounts is under `/api`."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from gpucloud.lib.rest.views import ApiView


class Account(serializers.Serializer[Any]):
    """Somebody as they may see themselves."""

    id = serializers.IntegerField()
    email = serializers.EmailField()
    is_staff = serializers.BooleanField()
    created_at = serializers.DateTimeField()


class MeView(ApiView):
    """Whoever asks."""

    @extend_schema(responses=Account)
    def get(self, request: Request) -> Response:
        """Return the account that the token belongs to."""
        return Response(Account(request.user).data)
