"""Template tags of live pages: a panel's first paint, ticking ages, figures with units."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from django import template
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from cluster.panels import Painter, audience_for, get_snapshot

register = template.Library()

GIB = 1024**3


@register.simple_tag(takes_context=True)
def panel(context: dict[str, Any], name: str) -> SafeString:
    """Draw a panel as the page's first paint; the socket keeps it current from there."""
    request: HttpRequest = context["request"]
    audience = audience_for(request.user, host=request.get_host(), secure=request.is_secure())
    painting = Painter().paint(name, get_snapshot(request), audience)
    return mark_safe(painting.html)


@register.simple_tag
def since(timestamp: float, suffix: str = "") -> SafeString:
    """Show how long ago a moment was (seconds since the epoch); the browser keeps it ticking."""
    return format_html(
        '<time class="age" datetime="{}" data-since="{}" data-suffix="{}">{}</time>',
        datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds"),
        timestamp,
        suffix,
        f"{duration(max(0.0, time.time() - timestamp))}{suffix}",
    )


@register.simple_tag
def now_s() -> str:
    """Return the server's clock, so that the browser can correct its own."""
    return f"{time.time():.3f}"


@register.filter
def duration(seconds: float) -> str:
    """Write a duration in its largest unit: `7 s`, `3 min`, `2 h`, `5 d`; `app.js` does the same."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


@register.filter
def figure(value: float) -> str:
    """Write a number with thousands separators."""
    return f"{value:,.0f}"


@register.filter
def gib(value: int) -> str:
    """Write bytes as GiB, without the unit."""
    return f"{value / GIB:,.1f}".removesuffix(".0")
