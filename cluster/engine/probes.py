"""Probes: how a suspect worker shows that it makes progress again.

On the wire a probe is an ordinary assignment of one token, so that no worker needs to know of it; no
client's stream and no row belongs to it. Only its end counts: a token without one would leave a slot in
doubt.
"""

from __future__ import annotations

from cluster.domain import Generation, Message
from cluster.engine.links import WorkerLink
from cluster.protocol.messages import Assign
from cluster.scheduler.commands import PROBE_PREFIX, ProbeWorker

_GENERATION = Generation(messages=(Message("user", "Are you there?"),), max_tokens=1, seed=0)
_PROMPT_TOKENS = 11


def send(link: WorkerLink, command: ProbeWorker) -> None:
    """Ask a worker for one token."""
    task_id, model = command.task_id, command.model
    link.assigned.add((task_id, 1))
    link.send(Assign(task=task_id, attempt=1, model=model, prompt_tokens=_PROMPT_TOKENS, generation=_GENERATION))


def number_of(task_id: str) -> int:
    """Return the number of the probe that a task is, 0 for a task of somebody's."""
    digits = task_id.removeprefix(PROBE_PREFIX)
    return int(digits) if digits != task_id and digits.isdecimal() else 0
