"""Tells the ledger every few seconds which requests the gateway still holds.

An open row that no live request stands for would wait for its outcome for ever. What is on record
of this call lets `balance` find such rows from another process, at any time.
"""

from __future__ import annotations

import asyncio

from cluster.engine.gateway import Gateway
from inference.ledger import Ledger

EVERY_S = 2.0


class RollCall:
    """Calls the roll of one node's requests. All methods belong to the event loop."""

    def __init__(self, gateway: Gateway, ledger: Ledger) -> None:
        self._gateway = gateway
        self._ledger = ledger
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Call now, and then every few seconds."""
        self.call()
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self.start)

    def stop(self) -> None:
        """Call a last time."""
        if self._timer is not None:
            self._timer.cancel()
        self.call()

    def call(self) -> None:
        """Report what is held at this moment."""
        self._ledger.report_live(self._gateway.streams)
