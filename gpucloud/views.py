"""The pages that join apps: home, the documentation, and the site's errors.

Thin: decide who may, render one template. An error is a page for people and JSON under `/api`.
"""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views import defaults
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from cluster.panels import origin_of
from gpucloud.docs import INDEX, get_page, list_pages
from gpucloud.lib.rest.errors import error_response, is_api
from gpucloud.middleware import login_for_htmx

FIRST_REQUEST = """\
curl {origin}/v1/chat/completions \\
  -H "Authorization: Bearer $GPUCLOUD_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "llama-3-8b", "messages": [{{"role": "user", "content": "Hello"}}], "stream": true}}'"""


@require_safe
@never_cache
@login_required
def home(request: HttpRequest) -> HttpResponse:
    """Show the cluster now; its panels draw themselves (see `cluster.templatetags.live`)."""
    origin = origin_of(request.get_host(), secure=request.is_secure())
    return render(request, "home.html", {"origin": origin, "curl": FIRST_REQUEST.format(origin=origin)})


@require_safe
def doc(request: HttpRequest, name: str = INDEX) -> HttpResponse:
    """Show a page of the documentation, to everybody."""
    page = get_page(name)
    if page is None:
        raise Http404
    return render(request, "docs/page.html", {"page": page, "groups": list_pages()})


def refuse_form(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer a form without a good CSRF token; htmx gets the page anew, and a new token with it."""
    if request.headers.get("HX-Request") != "true":
        return render(request, "403_csrf.html", status=403)
    if not request.user.is_authenticated:
        return login_for_htmx(request, status=403)
    response = HttpResponse(status=403)
    response["HX-Refresh"] = "true"
    return response


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer what Django itself refuses to look at."""
    if is_api(request):
        return error_response(400, "bad_request", "This request cannot be understood.")
    return defaults.bad_request(request, exception)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer somebody who may not."""
    if is_api(request):
        return error_response(403, "permission_denied", "You may not do this.")
    return defaults.permission_denied(request, exception)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer a URL that leads nowhere."""
    if is_api(request):
        return error_response(404, "not_found", "There is nothing at this URL.")
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer when something broke; it is in the log."""
    if is_api(request):
        return error_response(500, "server_error", "Something broke on our side; it was logged.")
    return defaults.server_error(request)
