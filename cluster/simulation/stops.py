"""Stop strings: cut a text before the first of them, without ever showing a part of one.

Works on tokens as they come. A token that may hold the beginning of a stop string is held back
until it is clear that it does not; what comes out are whole tokens, but for the last one, which a
match may cut short. The result does not depend on how the text was split: it is the text up to
the earliest position at which any stop string begins.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Takes tokens, gives back those that are safe to show. After a match it gives nothing."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._held: list[str] = []
        self.matched = False

    def feed(self, text: str) -> list[str]:
        """Take one token and return the tokens that it sets free."""
        if self.matched:
            return []
        self._held.append(text)
        held = "".join(self._held)
        start, undecided = self._first_match(held), self._first_undecided(held)
        if start is not None and start <= undecided:
            # Nothing that may still become a match begins earlier.
            self.matched = True
            return self._release_cut(start)
        return self._release_whole(undecided)

    def flush(self) -> list[str]:
        """End the text: return what was held back, up to a match that stands in it."""
        start = self._first_match("".join(self._held))
        if start is not None:
            self.matched = True
            return self._release_cut(start)
        released, self._held = self._held, []
        return released

    def _first_match(self, held: str) -> int | None:
        return min((at for stop in self._stops if (at := held.find(stop)) >= 0), default=None)

    def _first_undecided(self, held: str) -> int:
        """Return where the earliest unfinished beginning of a stop string stands, else the end."""
        for at in range(max(0, len(held) - self._longest + 1), len(held)):
            tail = held[at:]
            if any(len(stop) > len(tail) and stop.startswith(tail) for stop in self._stops):
                return at
        return len(held)

    def _release_whole(self, end: int) -> list[str]:
        count = 0
        for text in self._held:
            end -= len(text)
            if end < 0:
                break
            count += 1
        released = self._held[:count]
        del self._held[:count]
        return released

    def _release_cut(self, end: int) -> list[str]:
        released = []
        for text in self._held:
            if end <= 0:
                break
            released.append(text[:end])
            end -= len(text)
        self._held = []
        return released
