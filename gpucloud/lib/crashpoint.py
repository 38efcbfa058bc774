"""Named places at which a test can have this process die as if by `kill -9`.

`GPUCLOUD_CRASH=after_commit:3` ends the process when it passes `after_commit` the third time. That is
refused unless `GPUCLOUD_TESTING=1`, so that no operator can meet it by accident. Whether it is on
is decided at import: off, a crash point is a call of a function that does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

POINTS = ("accept", "enqueue", "assign", "first_token", "before_commit", "after_commit", "after_send")
"""In the order in which a request passes them."""
EXIT_CODE = 137
"""What a shell calls a process that SIGKILL has ended."""


class UnableToCrash(Exception):
    """The environment asks for a crash that cannot be meant."""


def make_crashpoint(environment: Mapping[str, str], end: Callable[[int], object] = os._exit) -> Callable[[str], None]:
    """Return what a crash point does in this environment."""
    wanted = environment.get("GPUCLOUD_CRASH", "")
    if not wanted:
        return _pass
    if environment.get("GPUCLOUD_TESTING") != "1":
        raise UnableToCrash("GPUCLOUD_CRASH is for tests only: it needs GPUCLOUD_TESTING=1.")
    point, _, nth = wanted.partition(":")
    if point not in POINTS or not nth.isdigit() or int(nth) < 1:
        raise UnableToCrash(f"GPUCLOUD_CRASH={wanted!r}: expected NAME:NTH with a name of {', '.join(POINTS)}.")
    left = int(nth)

    def crash(name: str) -> None:
        nonlocal left
        if name == point:
            left -= 1
            if left == 0:
                end(EXIT_CODE)

    return crash


def _pass(name: str) -> None:
    """Do nothing: no crash is asked for."""


crashpoint = make_crashpoint(os.environ)
