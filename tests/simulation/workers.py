"""Scripted workers: the product's session at their end of a wire, and every way to misbehave.

What a worker says is a pure function of the request, as design demands: token i of request "17" is
"17.i ", so a token in the wrong place or in the wrong answer shows its origin.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cluster.domain import FinishReason, Generation, GpuInfo, ModelOffer
from cluster.protocol.messages import (
    VERSION,
    Assign,
    Bye,
    Cancel,
    Chunk,
    Drain,
    Failed,
    Finished,
    FromWorker,
    Heartbeat,
    Hello,
    Step,
    Welcome,
)
from cluster.protocol.session import ProtocolViolation, State, UnableToSend, WorkerSession
from cluster.simulation.text import TEXT_VERSION
from tests.simulation.wires import FAREWELLS, Wire

if TYPE_CHECKING:
    from tests.simulation.world import World

KV_BYTES_PER_TOKEN = 1
POISON = "poison"
"""A prompt that kills whoever is assigned it."""


PROBE = "probe_"
"""How ids of tasks begin that nobody waits for: a look whether a worker works."""


def answer_to(generation: Generation) -> list[str]:
    """Return the tokens of the one right answer."""
    prompt = prompt_of(generation)
    return [f"{prompt}.{index} " for index in range(1 + generation.seed % generation.max_tokens)]


def prompt_of(generation: Generation) -> str:
    """Return what the client said; a probe may say nothing."""
    return generation.messages[0].content if generation.messages else ""


class Job:
    """One attempt on a worker."""

    __slots__ = ("assign", "boasts", "ready_at_s", "sent", "texts")

    def __init__(self, assign: Assign, ready_at_s: float) -> None:
        self.assign = assign
        self.texts = answer_to(assign.generation)
        self.sent = assign.resume_from
        self.ready_at_s = ready_at_s
        self.boasts = 0
        """Tokens it will claim to have computed on top of those it sent."""


class SimWorker:
    """A worker process over all its lives: a new instance after a crash, a new link after a drop."""

    def __init__(self, world: World, name: str, *, models: tuple[str, ...], capacity: int, kv_bytes: int) -> None:
        self.name = name
        self.capacity = capacity
        self.wire: Wire | None = None
        self.jobs: dict[tuple[str, int], Job] = {}
        self.frozen = False
        """SIGSTOP: neither hears nor says anything, and its kernel keeps what arrives."""
        self.stalled = False
        """Alive and well by its heartbeats, but its engine hangs."""
        self.dead = False
        self.deaf = False
        """Does not answer the next cancel."""
        self.step_s = world.rng.uniform(0.02, 0.1)
        self.slowness = 1.0
        self._world = world
        self._rng: random.Random = world.rng
        self._models = models
        self._kv_bytes = kv_bytes
        self._resumes = (TEXT_VERSION,) if world.rng.random() < 0.7 else ()
        self._lives = 0
        self._instance = ""
        self._session = WorkerSession()
        self._unread: list[bytes] = []
        self._stepping = False
        self._leaving = False
        self.start()

    @property
    def linked(self) -> bool:
        """Whether it has been let in and may speak."""
        return self.wire is not None and self._session.state in (State.READY, State.DRAINING)

    @property
    def prompt(self) -> bool:
        """Whether what it is told takes effect at once."""
        return self.wire is not None and self.wire.honest and self.wire.prompt and not self.frozen and not self.deaf

    def start(self) -> None:
        """Begin a life as a new process."""
        self._lives += 1
        self._instance = f"i-{self._lives}"
        self._leaving = self.frozen = self.dead = False
        self._unread.clear()
        self._dial()

    def die(self) -> None:
        """SIGKILL: the kernel closes its socket; a supervisor starts it again."""
        self._world.note(self.name, "dies")
        self._unlink()
        self.dead = True
        self._later(self._rng.uniform(0.3, 3.0), self.start)

    def lose_link(self) -> None:
        """The connection drops; the process stays, aborts what it runs and dials again."""
        self._unlink()
        self._come_back()

    def freeze(self) -> None:
        """Stop the process."""
        self.frozen = True
        if self.wire is not None:
            self.wire.honest = False

    def thaw(self) -> None:
        """Let the process go on: it reads what has piled up and says what is overdue."""
        self.frozen = False
        unread, self._unread = self._unread, []
        for frame in unread:
            if self.wire is not None:
                self.on_frame(self.wire, frame)
        self._dial()

    def leave(self) -> None:
        """SIGTERM: finish what runs, say bye; a successor starts later."""
        if self.linked and not self._leaving:
            self._leaving = True
            self.say(Drain(deadline_s=5.0))
            self._finish_leaving()

    def say(self, *messages: FromWorker) -> None:
        """Send messages as one frame, if the session lets them pass."""
        if self.wire is None or self.frozen:
            return
        try:
            frames = self._session.send(messages, self._world.loop.time())
        except UnableToSend:
            return
        for frame in frames:
            self.wire.push_up(frame)

    def say_raw(self, frame: bytes) -> None:
        """Send bytes that the session would never let pass."""
        if self.wire is not None:
            self.wire.honest = False
            self.wire.push_up(frame)

    def give_up(self, key: tuple[str, int], *, retryable: bool = True, then: tuple[FromWorker, ...] = ()) -> None:
        """Report that an attempt failed, and say more in the same breath."""
        del self.jobs[key]
        if not retryable:
            self._world.refused.add(key[0])
        self.say(Failed(task=key[0], attempt=key[1], code="engine_error", retryable=retryable), *then)
        self._finish_leaving()

    def quit(self, key: tuple[str, int]) -> None:
        """Say that an attempt was cancelled, which nobody has asked for."""
        del self.jobs[key]
        self.say(Finished(task=key[0], attempt=key[1], reason=FinishReason.CANCELLED, generated_tokens=0))
        self._finish_leaving()

    def on_frame(self, wire: Wire, frame: bytes) -> None:
        """Hear the gateway."""
        if wire is not self.wire:
            return
        if self.frozen:
            self._unread.append(frame)
            return
        try:
            messages = self._session.receive(frame, self._world.loop.time())
        except ProtocolViolation as violation:
            self._world.violation(f"{self.name} cannot understand the gateway: {violation.reason}")
            self.lose_link()
            return
        for message in messages:
            if wire is not self.wire:
                break  # something in this very frame has killed it
            match message:
                case Welcome():
                    self._world.note(self.name, "is welcomed")
                    self._beat(wire, message.heartbeat_s)
                case Assign():
                    self._assign(message)
                case Cancel():
                    self._cancel(message)
                case Drain():
                    self._leaving = True
                    self._finish_leaving()
                case Bye():
                    self.lose_link()

    def on_close(self, wire: Wire, code: int) -> None:
        """Hear that the wire is gone."""
        if wire is not self.wire:
            return
        self.wire = None
        self.jobs.clear()
        self._unread.clear()
        self._come_back(refused=code in range(4400, 4408))

    def _come_back(self, *, refused: bool = False) -> None:
        """Dial again soon; a process that was refused or told to leave ends, and has a successor."""
        ends = refused or self._leaving
        self._later(self._rng.uniform(0.05, 1.0), self.start if ends else self._dial)

    def _dial(self) -> None:
        if self.wire is not None or self.frozen or self.dead:
            return
        self._session = WorkerSession()
        self.deaf = False
        self.wire = self._world.connect(self)
        hello = Hello(
            v=VERSION,
            name=self.name,
            instance=self._instance,
            gpu=GpuInfo(name="H100"),
            models=tuple(
                ModelOffer(id=model, context_tokens=8192, kv_bytes_per_token=KV_BYTES_PER_TOKEN)
                for model in self._models
            ),
            capacity=self.capacity,
            kv_bytes=self._kv_bytes,
            resumes=self._resumes or None,
            simulated=True,
        )
        self.say(hello)

    def _unlink(self) -> None:
        wire, self.wire = self.wire, None
        self.jobs.clear()
        if wire is not None:
            wire.drop()

    def _beat(self, wire: Wire, every_s: float) -> None:
        if wire is not self.wire:
            return
        if not self.frozen:
            status = "draining" if self._leaving else "ready"
            self.say(Heartbeat(status=status))  # type: ignore[arg-type]
        self._later(every_s, lambda: self._beat(wire, every_s))

    def _assign(self, assign: Assign) -> None:
        key = (assign.task, assign.attempt)
        if key in self.jobs:
            return
        if self._leaving:
            self.say(Failed(task=assign.task, attempt=assign.attempt, code="draining"))
            return
        if prompt_of(assign.generation).startswith(POISON) and self._world.faulty:
            self._world.poisoned[assign.task] += 1
            self.die()
            return
        self.jobs[key] = Job(assign, self._world.loop.time() + self._rng.uniform(0.01, 0.2))
        self._world.on_assigned(self, assign)
        self._keep_stepping()

    def _cancel(self, cancel: Cancel) -> None:
        key = (cancel.task, cancel.attempt)
        if self.deaf:
            self.deaf = False
            self.jobs.pop(key, None)
            self._world.unanswered.add(key)
        elif (job := self.jobs.pop(key, None)) is not None:
            self.say(Finished(task=key[0], attempt=key[1], reason=FinishReason.CANCELLED, generated_tokens=job.sent))
        self._finish_leaving()

    def _keep_stepping(self) -> None:
        if not self._stepping and self.jobs:
            self._stepping = True
            self._later(self.step_s * self.slowness, self._step)

    def _step(self) -> None:
        """Advance every sequence, as one engine step does, and say all of it in one frame."""
        self._stepping = False
        if not self.frozen and not self.stalled:
            messages = list(self._advance(self._world.loop.time()))
            if messages:
                self.say(*messages)
                self._finish_leaving()
        self._keep_stepping()

    def _advance(self, now: float) -> Iterator[FromWorker]:
        chunks: list[Chunk] = []
        ended: list[Finished] = []
        for key, job in list(self.jobs.items()):
            if now < job.ready_at_s:
                continue
            texts = job.texts[job.sent : job.sent + self._rng.randint(1, 4)]
            if texts:
                chunks.append(Chunk(*key, job.sent, texts))
                job.sent += len(texts)
            if job.sent >= len(job.texts):
                del self.jobs[key]
                full = len(job.texts) == job.assign.generation.max_tokens
                reason = FinishReason.LENGTH if full else FinishReason.STOP
                ended.append(
                    Finished(task=key[0], attempt=key[1], reason=reason, generated_tokens=job.sent + job.boasts)
                )
        if chunks:
            yield Step(chunks)
        yield from ended

    def _finish_leaving(self) -> None:
        if self._leaving and not self.jobs and self.linked:
            self.say(Bye(reason="drained"))

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        self._world.loop.call_later(delay_s, call)


def is_farewell(code: int) -> bool:
    """Return whether a close code blames nobody."""
    return code in FAREWELLS
