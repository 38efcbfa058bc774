"""The boundary between the two roles of a node: gateways and the active dispatcher.

This file is the whole contract; each sibling module is one carrier. All calls are made on the
event loop and return at once. Delivery is in order per sender and *at most once*: whoever needs
more makes it level-triggered (heartbeats, announcements), so that a lost message heals.

Tokens do not pass here: they go from a worker's link to the client's stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from cluster.domain import ClusterSnapshot
from cluster.scheduler.commands import Command
from cluster.scheduler.events import Event

ReceiveEvent = Callable[[Event], None]
ReceiveCommand = Callable[[Command], None]
ReceiveSnapshot = Callable[[ClusterSnapshot], None]


class Broker(ABC):
    """Carries events up to the dispatcher, commands down to gateways, snapshots to everybody."""

    @abstractmethod
    async def start(self) -> None:
        """Connect. Raise what the carrier raises when it cannot."""

    @abstractmethod
    async def stop(self) -> None:
        """Disconnect; what is under way may be lost."""

    @property
    @abstractmethod
    def healthy(self) -> bool:
        """Whether messages are believed to arrive."""

    @abstractmethod
    def attach_gateway(self, node: str, receive: ReceiveCommand) -> None:
        """Deliver the commands for `node` to `receive`."""

    @abstractmethod
    def attach_dispatcher(self, receive: ReceiveEvent) -> None:
        """Deliver all events to `receive`; there is one active dispatcher."""

    @abstractmethod
    def attach_board(self, receive: ReceiveSnapshot) -> None:
        """Deliver every snapshot to `receive`."""

    @abstractmethod
    def publish_event(self, event: Event) -> None:
        """Tell the active dispatcher what happened."""

    @abstractmethod
    def publish_commands(self, commands: Sequence[Command]) -> None:
        """Send each command to the gateway of its node, in order."""

    @abstractmethod
    def publish_snapshot(self, snapshot: ClusterSnapshot) -> None:
        """Show everybody the newest picture."""
