"""How often `/api` may be called: by address before anybody is recognised, then by user."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from gpucloud.lib.clientip import client_ip, network_of
from gpucloud.lib.throttle import TooManyAttempts, count


def count_call(request: HttpRequest) -> None:
    """Count a call for the address that it comes from, or refuse it by `TooManyAttempts`."""
    count("api-ip", network_of(client_ip(request)), settings.API_CALLS_PER_IP)


class UserThrottle(BaseThrottle):
    """Counts calls of whoever has shown a token."""

    def __init__(self) -> None:
        self._wait_s = 0

    def allow_request(self, request: Request, view: Any) -> bool:
        """Count the call and tell whether it may go on."""
        if request.user and request.user.is_authenticated:
            try:
                count("api-user", str(request.user.pk), settings.API_CALLS_PER_USER)
            except TooManyAttempts as refused:
                self._wait_s = refused.wait_s
                return False
        return True

    def wait(self) -> float:
        """Return how long to wait."""
        return self._wait_s
