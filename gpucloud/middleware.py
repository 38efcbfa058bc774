"""What every answer of Django's says to browsers, how htmx learns that a login is due, and what too many are told.

Functions of Django's own kind, sync and async. `/v1` and the probes are outside: see
`inference.openai.http` and `gpucloud.probes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode, urlsplit

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render, resolve_url
from django.utils.decorators import sync_and_async_middleware

from gpucloud.lib.throttle import TooManyAttempts

Finish = Callable[[HttpRequest, HttpResponseBase], HttpResponseBase]

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "X-Content-Type-Options": "nosniff",
}
"""Unless a view, or the server of static files, has said otherwise."""


@sync_and_async_middleware
def say_what_browsers_may(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Have no page kept by a cache, and none use a device: nearly all of them are somebody's own."""
    return _finishing(get_response, _say_what_browsers_may)


@sync_and_async_middleware
def lead_htmx_to_login(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Turn the redirect to the login into one of the whole page: htmx would put the form into a panel."""
    return _finishing(get_response, _lead_htmx_to_login)


@sync_and_async_middleware
def answer_too_many(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Turn `TooManyAttempts`, wherever a page or a form of the admin raises it, into a 429."""
    middleware: Any = _finishing(get_response, lambda request, response: response)
    middleware.process_exception = _answer_too_many
    passed: Callable[[HttpRequest], Any] = middleware
    return passed


def login_for_htmx(request: HttpRequest, *, status: int = 401) -> HttpResponse:
    """Return what makes htmx load the login, and come back to the page that it is on."""
    page = urlsplit(request.headers.get("HX-Current-URL", ""))
    back = page.path + (f"?{page.query}" if page.query else "")
    login = resolve_url(settings.LOGIN_URL)
    response = HttpResponse(status=status)
    response["HX-Redirect"] = f"{login}?{urlencode({'next': back})}" if back else login
    return response


def _say_what_browsers_may(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _lead_htmx_to_login(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    if request.headers.get("HX-Request") != "true":
        return response
    leads_to_login = urlsplit(response.get("Location", "")).path == resolve_url(settings.LOGIN_URL)
    if response.status_code == 401 or (response.status_code == 302 and leads_to_login):
        return login_for_htmx(request)
    return response


def _answer_too_many(request: HttpRequest, exception: Exception) -> HttpResponse | None:
    if not isinstance(exception, TooManyAttempts):
        return None
    response = render(request, "429.html", {"wait_s": exception.wait_s}, status=429)
    response["Retry-After"] = str(exception.wait_s)
    return response


def _finishing(get_response: Callable[[HttpRequest], Any], finish: Finish) -> Callable[[HttpRequest], Any]:
    if iscoroutinefunction(get_response):

        async def middleware_async(request: HttpRequest) -> HttpResponseBase:
            return finish(request, await get_response(request))

        return middleware_async

    def middleware(request: HttpRequest) -> HttpResponseBase:
        return finish(request, get_response(request))

    return middleware
