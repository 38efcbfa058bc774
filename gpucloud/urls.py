"""The site's URLs for people; `/v1` and the sockets are routed in `gpucloud.asgi`."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from gpucloud import views

urlpatterns = [
    path("", views.home, name="home"),
    path("", include("accounts.urls")),
    path("docs/", views.doc, name="docs"),
    path("docs/<path:name>/", views.doc, name="doc"),
    path("admin/", admin.site.urls),
]
