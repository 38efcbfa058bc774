"""`/v1` as one ASGI application: find the endpoint, know the caller, answer, write the log line.

A dict instead of a router: there are few paths and each request passes here. Whatever happens
inside, the answer is OpenAI's envelope with an `x-request-id`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

from accounts.keyring import Identity, Keyring
from gpucloud.lib.asgi import Receive, Scope, Send
from gpucloud.lib.ids import make_id
from inference.completions import Completion
from inference.openai.auth import identify, recognize
from inference.openai.endpoints import Endpoints
from inference.openai.errors import ApiError, echo, internal_error, unavailable
from inference.openai.http import ClientGone, DirectRequest, Exchange, open_direct_exchange, open_exchange
from inference.requestlog import RequestLine, RequestLog

log = logging.getLogger(__name__)

Endpoint = Callable[[Exchange, Identity], Awaitable[Completion | None]]


CHAT = "/v1/chat/completions"
CHAT_URL = CHAT.encode()


class DataPlane:
    """The ASGI application under `/v1`."""

    def __init__(
        self,
        endpoints: Endpoints,
        keyring: Keyring,
        request_log: RequestLog,
        *,
        lag_s: Callable[[], float] = lambda: 0.0,
        shed_lag_s: float = 0.5,
    ) -> None:
        self._endpoints = endpoints
        self._lag_s = lag_s
        self._shed_lag_s = shed_lag_s
        self._keyring = keyring
        self._request_log = request_log
        self._routes: dict[str, dict[str, Endpoint]] = {
            "/v1/models": {"GET": endpoints.list_models},
            CHAT: {"POST": endpoints.create_chat_completion},
        }
        self._model_route: dict[str, Endpoint] = {"GET": endpoints.get_model}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = open_exchange(scope, receive, send, make_id("req_"))
        identity: Identity | None = None
        completion: Completion | None = None
        code: str | None = None
        try:
            if self._lag_s() > self._shed_lag_s:
                # Before any work is done for it: a loop that lags must not be given more.
                raise unavailable("The service is overloaded. Try again in a moment.", "engine_overloaded")
            exchange.read_headers()
            endpoint = self._find(exchange)
            identity = recognize(exchange, self._keyring) or await identify(exchange, self._keyring)
            completion = await endpoint(exchange, identity)
        except ApiError as error:
            code = error.code
            await exchange.send_error(error)
        except ClientGone:
            code = "client_closed"
        except Exception:
            code = "internal_error"
            log.exception("request %s failed", exchange.request_id)
            if exchange.started:
                raise  # the server cuts the connection: a half answer must not look whole
            await exchange.send_error(internal_error())
        finally:
            self._request_log.write(_describe(exchange, identity, completion, code))

    def take(self, request: DirectRequest) -> bool:
        """Take on a request that is answered whole, in callbacks; False, with nothing done: call for it.

        The same as a call, without what ASGI needs, a task, its futures and their turns of the loop.
        What would have to wait for something else than its answer is left to a call.
        """
        body = request.body
        if request.url != CHAT_URL or self._lag_s() > self._shed_lag_s:
            return False
        if b'"stream"' in body and b"true" in body:
            return False  # a stream, most likely: it need not be parsed twice
        exchange = open_direct_exchange(request, CHAT, make_id("req_"))
        identity: Identity | None = None
        try:
            exchange.read_headers()
            identity = recognize(exchange, self._keyring)
            if identity is None:
                return False
            return self._endpoints.take(exchange, request, identity, partial(self._over, identity))
        except ApiError as error:
            exchange.answer_error(error)
            self._request_log.write(_describe(exchange, identity, None, error.code))
            return True
        except Exception:
            log.exception("request %s failed", exchange.request_id)
            exchange.answer_error(internal_error())
            self._request_log.write(_describe(exchange, identity, None, "internal_error"))
            return True

    def _over(self, identity: Identity, exchange: Exchange, completion: Completion) -> None:
        self._request_log.write(_describe(exchange, identity, completion, None))

    def _find(self, exchange: Exchange) -> Endpoint:
        methods = self._routes.get(exchange.path)
        if methods is None:
            if not exchange.path.startswith("/v1/models/") or exchange.path == "/v1/models/":
                raise ApiError(404, f"Invalid URL ({exchange.method} {echo(exchange.path[:128])})")
            methods = self._model_route
        endpoint = methods.get(exchange.method)
        if endpoint is None:
            raise ApiError(
                405,
                f"Not allowed to {exchange.method} on {echo(exchange.path[:128])} (HINT: Perhaps you meant to use a "
                "different HTTP method?)",
                code="method_not_supported",
                headers=((b"allow", ", ".join(methods).encode()),),
            )
        return endpoint


def _describe(
    exchange: Exchange, identity: Identity | None, completion: Completion | None, code: str | None
) -> RequestLine:
    settlement = completion.settlement if completion else None
    return RequestLine(
        id=exchange.request_id,
        method=exchange.method,
        path=exchange.path[:128],
        status=exchange.status,
        ms=round(exchange.elapsed_ms, 1),
        key=identity.prefix if identity else None,
        code=settlement.error_code if settlement else code,
        model=completion.task.model if completion else None,
        outcome=settlement.outcome if settlement else None,
        worker=settlement.worker_name if settlement else None,
        attempts=settlement.attempts if settlement else None,
        prompt_tokens=completion.task.prompt_tokens if completion else None,
        completion_tokens=settlement.delivered_tokens if settlement else None,
        queue_ms=round(settlement.queue_ms, 1) if settlement else None,
        ttft_ms=round(settlement.ttft_ms, 1) if settlement and settlement.ttft_ms is not None else None,
    )
