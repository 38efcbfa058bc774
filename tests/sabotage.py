"""The product with faults that quote what people said: exceptions whose words are a prompt or an answer.

    python -m tests.sabotage manage COMMAND …      a management command, `serve` for instance
    python -m tests.sabotage worker OPTIONS …      a worker

What a prompt says decides what breaks: FAIL-START the use-case, FAIL-STREAM a stream that
has begun, FAIL-LATER a task that nobody waits for, FAIL-ASSIGN, FAIL-WORKER and FAIL-ENGINE the worker. Its answers are
`ANSWER` again and again. A page of the documentation, `sabotage`, fails too.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

ANSWER = "canary-completion-7f3a"


class Sabotage(Exception):
    """A fault that was planted."""


def sabotage_server() -> None:
    """Plant the faults of the server."""
    import gpucloud.views
    from inference.completions import Completion, Completions

    start = Completions.start

    async def start_or_fail(self: Any, chat: Any, *arguments: Any, **named: Any) -> Any:
        if "FAIL-START" in str(chat):
            raise Sabotage(f"cannot start {chat!r}") from KeyError(str(chat))
        if "FAIL-LATER" in str(chat):
            asyncio.create_task(_fail_later(str(chat)))  # noqa: RUF006 — it is meant to be forgotten
        return await start(self, chat, *arguments, **named)

    opened = Completion.opened

    async def opened_or_fail(self: Any) -> None:
        if "FAIL-STREAM" in str(self.task):
            raise Sabotage(str(self.task))
        await opened(self)

    def no_page(name: str) -> Any:
        if name == "sabotage":
            raise Sabotage(str({"password": "canary-password-7f3a", "Authorization": "Bearer canary-password-7f3a"}))
        return get_page(name)

    get_page = gpucloud.views.get_page
    Completion.opened = opened_or_fail  # type: ignore[method-assign]
    Completions.start = start_or_fail  # type: ignore[method-assign,assignment]
    gpucloud.views.get_page = no_page


async def _fail_later(words: str) -> None:
    raise Sabotage(words)


def sabotage_worker() -> None:
    """Plant the faults of the worker."""
    from cluster.protocol.messages import Failed, Step
    from cluster.worker.backends.simulated import SimulatedBackend

    plain_start, plain_assign = SimulatedBackend.start, SimulatedBackend.assign

    def start(self: Any, emit: Any) -> None:
        def say(messages: Sequence[Any]) -> None:
            if any(task in str(messages) for task in self.__dict__.setdefault("failing", set())):
                raise Sabotage(f"{ANSWER} {messages}")
            emit([_reworded(message) if isinstance(message, Step) else message for message in messages])

        self.say = emit
        plain_start(self, say)

    def assign(self: Any, assign: Any) -> None:
        words = str(assign.generation.messages)
        if "FAIL-ASSIGN" in words:
            raise Sabotage(words)
        if "FAIL-WORKER" in words:
            self.say([Failed(task=assign.task, attempt=assign.attempt, code="x", message=words[:500], retryable=False)])
            return
        if "FAIL-ENGINE" in words:
            self.__dict__.setdefault("failing", set()).add(assign.task)
        plain_assign(self, assign)

    SimulatedBackend.start = start  # type: ignore[method-assign]
    SimulatedBackend.assign = assign  # type: ignore[method-assign]


def _reworded(step: Any) -> Any:
    return msgspec.structs.replace(
        step,
        chunks=[msgspec.structs.replace(chunk, texts=[f"{ANSWER} "] * len(chunk.texts)) for chunk in step.chunks],
    )


def main(role: str, *arguments: str) -> int:
    """Run what is asked for, sabotaged."""
    if role == "worker":
        from cluster.worker.cli import main as run_worker

        sabotage_worker()
        return run_worker(arguments)
    import django
    from django.core.management import execute_from_command_line

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gpucloud.settings")
    django.setup()
    sabotage_server()
    execute_from_command_line(["manage.py", *arguments])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
