"""Child processes that never outlive their parent, however it ends.

A child holds the reading end of a pipe as its standard input; the kernel closes the writing end
when the parent dies, also by SIGKILL, and the child sees the end of its input. Works everywhere;
nothing has to be cleaned up.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence


class Children:
    """The child processes of this one."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def spawn(self, arguments: Sequence[str], *, environment: Mapping[str, str]) -> None:
        """Start a child that watches its standard input for our end."""
        self._processes.append(
            # A group of its own: Ctrl-C is for the parent, which ends its children in order.
            subprocess.Popen(
                arguments, stdin=subprocess.PIPE, env={**os.environ, **environment}, start_new_session=True
            )
        )

    def stop(self, *, timeout_s: float) -> None:
        """End all children: politely, then firmly."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin:
                process.stdin.close()
        self._processes.clear()


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies; on Linux only."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() == 1:  # it died before we asked
            os.kill(os.getpid(), signal.SIGTERM)
