"""The broker of a single process: direct calls, no serialisation, nothing to lose."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.brokers.base import Broker, ReceiveCommand, ReceiveEvent, ReceiveSnapshot
from cluster.domain import ClusterSnapshot
from cluster.scheduler.commands import Command
from cluster.scheduler.events import Event


class MemoryBroker(Broker):
    """Calls whoever is attached, in the caller's own stack."""

    def __init__(self) -> None:
        self._gateways: dict[str, ReceiveCommand] = {}
        self._dispatcher: ReceiveEvent | None = None
        self._boards: list[ReceiveSnapshot] = []

    async def start(self) -> None:
        """Do nothing: there is nothing to connect to."""

    async def stop(self) -> None:
        """Do nothing: there is nothing to disconnect from."""

    @property
    def healthy(self) -> bool:
        return self._dispatcher is not None

    def attach_gateway(self, node: str, receive: ReceiveCommand) -> None:
        self._gateways[node] = receive

    def attach_dispatcher(self, receive: ReceiveEvent) -> None:
        self._dispatcher = receive

    def attach_board(self, receive: ReceiveSnapshot) -> None:
        self._boards.append(receive)

    def publish_event(self, event: Event) -> None:
        if self._dispatcher is not None:
            self._dispatcher(event)

    def publish_commands(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if receive := self._gateways.get(command.node):
                receive(command)

    def publish_snapshot(self, snapshot: ClusterSnapshot) -> None:
        for receive in self._boards:
            receive(snapshot)
