"""The site's URLs for people and for `/api`; `/v1` and the sockets are routed in `gpucloud.asgi`.

URLs of the API have no slash at the end. Each app lists its own as `api_patterns`.
"""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import RedirectView

from accounts.urls import api_patterns as accounts_api
from cluster.urls import api_patterns as cluster_api
from gpucloud import views
from gpucloud.apidocs import api_docs_patterns
from gpucloud.lib.rest.views import UnknownView
from inference.selectors import list_key_totals
from inference.urls import api_patterns as inference_api

api_patterns = [
    *accounts_api(list_totals=list_key_totals),
    *inference_api,
    *cluster_api,
    *api_docs_patterns(),
]

urlpatterns = [
    path("", views.home, name="home"),
    path("", include("accounts.urls")),
    path("docs/", views.doc, name="docs"),
    path("docs/<path:name>/", views.doc, name="doc"),
    path("api/", include(api_patterns)),
    re_path(r"^api(?:/|$)", UnknownView.as_view()),
    # One form for passwords, which counts attempts and puts the change on record.
    path("admin/password_change/", RedirectView.as_view(pattern_name="password")),
    path("admin/", admin.site.urls),
]

handler400 = views.bad_request
handler403 = views.permission_denied
handler404 = views.page_not_found
handler500 = views.server_error
