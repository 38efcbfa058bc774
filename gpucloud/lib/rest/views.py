"""The view that every endpoint of `/api` derives from, and the endpoint of what does not exist.

A view declares `query_class`, reads a body by `read_body`, makes one call, and answers. Unless it says
otherwise it needs a token (see the defaults in the settings).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from django.core.paginator import EmptyPage, Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from rest_framework import serializers
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import remove_query_param, replace_query_param
from rest_framework.views import APIView

from gpucloud.lib.rest.parsing import ApiRequest
from gpucloud.lib.rest.serializers import Body, Query
from gpucloud.lib.rest.throttling import count_call

Row = TypeVar("Row")
M = TypeVar("M", bound=Model)


class ApiView(APIView):
    """One resource. `self.query` holds the checked query parameters of a GET; other methods take none."""

    query_class: ClassVar[type[Query]] = Query
    query: dict[str, Any]

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """Return the request as DRF's, able to read bodies that came in chunks."""
        return ApiRequest(
            request,
            parsers=self.get_parsers(),
            authenticators=self.get_authenticators(),
            negotiator=self.get_content_negotiator(),
            parser_context=self.get_parser_context(request),
        )

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuse whoever calls too often, who may not, then what is not understood."""
        count_call(request)
        super().initial(request, *args, **kwargs)
        checker = self.query_class if request.method in ("GET", "HEAD") else Query
        self.query = _check(checker(data=request.query_params))

    def get_authenticate_header(self, request: Request) -> str:
        """Return what a 401 asks for."""
        return 'Bearer realm="api"'

    @property
    def user(self) -> Any:
        """Whoever asks: an account, where the permissions ask for one."""
        return self.request.user

    def read_body(self, body_class: type[Body], *, partial: bool = False) -> dict[str, Any]:
        """Return the checked body; with `partial`, fields may be missing."""
        data = self.request.data
        if data is None:  # which DRF takes for no data at all
            raise ValidationError("Expected an object, got null.")
        return _check(body_class(data=data, partial=partial))

    @property
    def allowed_methods(self) -> list[str]:
        """Name the methods that do something."""
        return [method for method in super().allowed_methods if method != "OPTIONS"]


class UnknownView(ApiView):
    """Whatever no other pattern matches: a 404 like any other error."""

    authentication_classes = ()
    permission_classes = ()
    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Say so before anything else is asked."""
        raise NotFound("There is nothing at this URL. URLs of the API have no slash at the end.")


def paginate(
    request: Request,
    rows: QuerySet[M] | Sequence[Row],
    show: Callable[[list[Any]], list[Any]],
    *,
    page: int,
    page_size: int,
) -> Response:
    """Return a page of `rows` as `{count, next, previous, results}`, a page's rows by `show`."""
    paginator: Paginator[Any] = Paginator(rows, page_size)
    try:
        found = paginator.page(page)
    except EmptyPage:
        raise NotFound(f"There is no page {page}; the last is {paginator.num_pages}.") from None
    url = request.build_absolute_uri()
    following = replace_query_param(url, "page", page + 1) if found.has_next() else None
    preceding = None
    if found.has_previous():
        preceding = replace_query_param(url, "page", page - 1) if page > 2 else remove_query_param(url, "page")
    results = show(list(found.object_list))
    return Response({"count": paginator.count, "next": following, "previous": preceding, "results": results})


def page_of(row: type[serializers.Serializer[Any]]) -> type[serializers.Serializer[Any]]:
    """Return what describes a page of such rows in the schema."""
    return type(
        f"{row.__name__}Page",
        (serializers.Serializer,),
        {
            "count": serializers.IntegerField(),
            "next": serializers.URLField(allow_null=True),
            "previous": serializers.URLField(allow_null=True),
            "results": row(many=True),
        },
    )


def _check(serializer: serializers.Serializer[Any]) -> dict[str, Any]:
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)
