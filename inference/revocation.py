"""Ends what runs on keys that were revoked: whoever waits gets a 401, whoever streams an error event.

New requests need nothing of this, for the keyring knows. It is for those that were admitted before:
every half second the keys of all live requests are asked for at once. A key that merely expires ends
nothing: its requests were begun in time.
"""

from __future__ import annotations

import asyncio
import logging

from accounts.keyring import Keyring, UnableToReadKeys
from cluster.engine.gateway import Gateway
from inference.completions import Completions

EVERY_S = 0.5

log = logging.getLogger(__name__)


class RevocationWatch:
    """Looks after the live requests of one node. All methods belong to the event loop."""

    def __init__(
        self, completions: Completions, keyring: Keyring, gateway: Gateway, *, every_s: float = EVERY_S
    ) -> None:
        self._completions = completions
        self._keyring = keyring
        self._gateway = gateway
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from now on."""
        self._task = asyncio.create_task(self._look_forever(), name="revocation-watch")

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """End the requests whose keys may not be used any more."""
        live = {completion.identity.prefix for completion in self._completions.live}
        if not live:
            return
        try:
            dead = await self._keyring.list_dead(live)
        except UnableToReadKeys:
            return  # nobody can say; the ledger stops what cannot be recorded
        for completion in tuple(self._completions.live):
            if completion.identity.prefix in dead:
                log.info("request %s is ended: its key %s is dead", completion.task.id, completion.identity.prefix)
                self._gateway.fail(completion.stream, "invalid_api_key", "The API key was revoked.")

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.look()
            except Exception:
                log.exception("the look for revoked keys failed and is repeated")
