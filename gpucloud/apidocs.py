"""The API's own description: the OpenAPI schema, and the page to browse it. Public, as the code is.

The page is Swagger's, from this server, in a template of ours: theirs has an inline style, which the
Content-Security-Policy forbids.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.urls import URLPattern, path
from drf_spectacular.renderers import OpenApiJsonRenderer, OpenApiJsonRenderer2
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.renderers import BaseRenderer, TemplateHTMLRenderer


class SchemaView(SpectacularAPIView):
    """The schema, as JSON."""

    renderer_classes = [OpenApiJsonRenderer2, OpenApiJsonRenderer]


class _ScriptRenderer(TemplateHTMLRenderer):
    """The page's script comes from the same view, by `?script`."""

    media_type = "application/javascript"


class ApiDocsView(SpectacularSwaggerSplitView):
    """The page to browse the schema with."""

    url_name = "schema"
    renderer_classes: list[type[BaseRenderer]] = [TemplateHTMLRenderer]

    def perform_content_negotiation(self, request: Any, force: bool = False) -> tuple[BaseRenderer, str]:
        """Answer anybody, whatever they accept: a page and its script have one form each."""
        renderer = _ScriptRenderer() if "script" in request.query_params else TemplateHTMLRenderer()
        return renderer, renderer.media_type


def api_docs_patterns() -> list[URLPattern]:
    """Return the URLs of both, none where they are switched off."""
    if not settings.API_DOCS:
        return []
    return [
        path("schema", SchemaView.as_view(), name="schema"),
        path("docs", ApiDocsView.as_view(), name="api-docs"),
    ]
