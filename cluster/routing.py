"""Which socket leads to which consumer."""

from __future__ import annotations

from typing import Any

from cluster.consumers import WorkerConsumer
from cluster.engine.board import SnapshotBoard
from cluster.engine.gateway import Gateway
from cluster.engine.registrar import Registrar
from cluster.panel_consumer import PanelConsumer


def worker_socket(gateway: Gateway, registrar: Registrar, *, hello_timeout_s: float, max_sockets_per_token: int) -> Any:
    """Return the application behind `/ws/worker/`."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        consumer = WorkerConsumer(
            gateway=gateway,
            authenticate=registrar.authenticate,
            hello_timeout_s=hello_timeout_s,
            max_sockets_per_token=max_sockets_per_token,
        )
        await consumer(scope, receive, send)

    return application


def panel_socket(board: SnapshotBoard) -> Any:
    """Return the application behind `/ws/panels/`."""
    return PanelConsumer.as_asgi(board=board)
