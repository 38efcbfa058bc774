"""Whatever happens in whatever order, the Scheduler never contradicts itself."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cluster.domain import Tier
from cluster.scheduler.commands import (
    AnnounceAttempt,
    AnnounceWait,
    AssignTask,
    CancelAttempt,
    Command,
    DrainWorker,
    EvictWorker,
    FailTask,
    FenceAttempt,
    ProbeWorker,
)
from cluster.scheduler.core import Scheduler, Settings
from cluster.scheduler.events import (
    AttemptFailed,
    AttemptFenced,
    AttemptFinished,
    AttemptReleased,
    AttemptStalled,
    AttemptStarted,
    Event,
    IntentsObserved,
    LoopPaused,
    ProbeAnswered,
    TaskCancelled,
    Tick,
    WorkerDraining,
    WorkerLost,
)
from tests.unit.cluster.scheduler.builders import MODEL, beat, join, make_spec, make_task, submit
from tests.unit.cluster.scheduler.order import OrderChecker

T = TypeVar("T", str, tuple[str, int])

SETTINGS = Settings(
    max_waiting=20,
    max_waiting_share=0.6,
    queue_timeout_s=30,
    no_worker_grace_s=10,
    total_timeout_s=60,
    aged_after_s=4,
    aged_every=4,
    quantum_tokens=200,
    return_s=5,
    isolation_patience_s=12,
    retry_floor=2,
    worker_stale_s=7,
    worker_silent_s=16,
    cancel_ack_s=2,
    suspect_after=2,
    probe_after_s=2,
    flap_memory_s=50,
)
OTHER = "mistral-7b"
WORKERS = {
    spec.id: spec
    for spec in (
        make_spec("w1", capacity=2, kv_tokens=250, resumes=("sim-text/1",), simulated=True),
        make_spec("w2", capacity=2, kv_tokens=450, resumes=("sim-text/1", "x"), simulated=True),
        make_spec("w3", models=(MODEL, OTHER), capacity=3, kv_tokens=900, resumes=("x",)),
        make_spec("w4", models=(OTHER,), capacity=1, kv_tokens=0, lineage="four"),
        make_spec("w5", models=(OTHER,), capacity=2, context_tokens=450, simulated=True, resumes=("sim-text/1",)),
    )
}
PICK = st.integers(min_value=0, max_value=1_000)


class Cluster(RuleBasedStateMachine):
    """Plays gateways, workers and time; holds what must be true of the conversation as a whole."""

    settings = SETTINGS

    @initialize(seed=st.integers(0, 7), present=st.sampled_from((5, 5, 3, 0)))
    def start(self, seed: int, present: int) -> None:
        self.now = 0.0
        self.scheduler = Scheduler(self.settings, random.Random(seed), now=0.0)
        self.order = OrderChecker(self.scheduler)
        self.tasks = 0
        self.links: dict[str, str] = {}
        self.link_number = 0
        self.last_seen_s: dict[str, float] = {}
        self.alive: set[str] = set()
        """Tasks whose stream is open."""
        self.attempts: dict[str, int] = {}
        """The newest attempt announced, by task."""
        self.held: dict[tuple[str, int], str] = {}
        """What each worker believes it runs, by task and attempt."""
        self.fencing: dict[str, int] = {}
        self.seen: dict[str, int] = {}
        """How many tokens a task's client has."""
        self.worked: dict[str, str] = {}
        """Where a task's newest attempt was."""
        self.probes: dict[int, tuple[str, str]] = {}
        """Worker and link, by probe."""
        self.sent_away: set[str] = set()
        """Links over which a worker was told to leave, or said that it will."""
        self.stalled: set[tuple[str, int]] = set()
        """Attempts that are over for the stream and perhaps not for the worker."""
        self.told: set[str] = set()
        self.cordoned: frozenset[str] = frozenset()
        self.draining: frozenset[str] = frozenset()
        for worker_id in sorted(WORKERS)[:present]:
            self.join(worker_id)

    @rule(
        model=st.sampled_from((MODEL, MODEL, OTHER)),
        tier=st.sampled_from(Tier),
        tenant=st.sampled_from("abc"),
        tokens=st.sampled_from((40, 90, 180, 430)),
        simulated_only=st.sampled_from((False, False, False, True)),
        number=st.sampled_from((1, 1, 2, 5)),
    )
    def submit(self, model: str, tier: Tier, tenant: str, tokens: int, simulated_only: bool, number: int) -> None:
        for _ in range(number):
            self.tasks += 1
            name, only = f"t{self.tasks}", simulated_only
            task = make_task(name, model=model, tier=tier, tenant=tenant, max_tokens=tokens, simulated_only=only)
            self.alive.add(task.id)
            self.tell(submit(task))

    @precondition(lambda self: len(self.links) < len(WORKERS))
    @rule(pick=PICK)
    def come(self, pick: int) -> None:
        self.join(self.one_of(set(WORKERS) - set(self.links), pick))

    @precondition(lambda self: self.links)
    @rule(pick=PICK)
    def come_again(self, pick: int) -> None:
        self.join(self.one_of(self.links, pick))

    def join(self, worker_id: str) -> None:
        self.link_number += 1
        self.forget(worker_id)
        self.links[worker_id] = f"l{self.link_number}"
        self.last_seen_s[worker_id] = self.now
        self.tell(join(WORKERS[worker_id], self.links[worker_id]))

    @precondition(lambda self: self.links)
    @rule(pick=PICK, clean=st.sampled_from((False, False, True)))
    def lose(self, pick: int, clean: bool) -> None:
        worker_id = self.one_of(self.links, pick)
        link = self.links.pop(worker_id)
        self.forget(worker_id)
        self.tell(WorkerLost(worker_id, link, "closed", clean))

    @precondition(lambda self: self.links)
    @rule(pick=PICK)
    def drain(self, pick: int) -> None:
        worker_id = self.one_of(self.links, pick)
        self.sent_away.add(self.links[worker_id])
        self.tell(WorkerDraining(worker_id, self.links[worker_id]))

    @rule(cordoned=st.frozensets(st.sampled_from(sorted(WORKERS)), max_size=2), draining=st.sampled_from((0, 0, 1)))
    def want(self, cordoned: frozenset[str], draining: int) -> None:
        self.cordoned, self.draining = cordoned, frozenset(sorted(WORKERS)[:draining])
        self.tell(IntentsObserved(self.cordoned, self.draining))

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def stall(self, pick: int) -> None:
        task_id, attempt = self.one_of(self.held, pick)
        if self.attempts[task_id] == attempt:
            self.stalled.add((task_id, attempt))
        self.tell(AttemptStalled(task_id, attempt, "first_token"))

    @precondition(lambda self: self.probes)
    @rule(pick=PICK, ok=st.booleans())
    def answer_probe(self, pick: int, ok: bool) -> None:
        probe = sorted(self.probes)[pick % len(self.probes)]
        worker_id, link = self.probes.pop(probe)
        self.tell(ProbeAnswered(worker_id, link, probe, ok))

    @rule(paused_s=st.sampled_from((3.0, 20.0)))
    def pause(self, paused_s: float) -> None:
        self.now += paused_s
        self.last_seen_s = dict.fromkeys(self.last_seen_s, self.now)
        self.tell(LoopPaused(paused_s))

    @precondition(lambda self: self.links)
    @rule()
    def everybody_beats(self) -> None:
        for worker_id in sorted(self.links):
            self.beat(worker_id)

    @precondition(lambda self: self.links)
    @rule(pick=PICK)
    def one_beats(self, pick: int) -> None:
        self.beat(self.one_of(self.links, pick))

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def begin(self, pick: int) -> None:
        task_id, attempt = self.one_of(self.held, pick)
        self.tell(AttemptStarted(task_id, attempt))

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def finish(self, pick: int) -> None:
        task_id, attempt = self.one_of(self.held, pick)
        worker_id = self.held.pop((task_id, attempt))
        if self.attempts.get(task_id) == attempt and (task_id, attempt) not in self.stalled:
            self.alive.discard(task_id)
        self.tell(AttemptFinished(task_id, attempt, worker_id))

    @precondition(lambda self: self.held)
    @rule(pick=PICK, retryable=st.booleans())
    def fail(self, pick: int, retryable: bool) -> None:
        task_id, attempt = self.one_of(self.held, pick)
        self.tell(AttemptFailed(task_id, attempt, self.held.pop((task_id, attempt)), "engine_error", retryable))

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        task_id, attempt = self.one_of(self.held, pick)
        self.tell(AttemptReleased(task_id, attempt, self.held.pop((task_id, attempt))))

    @precondition(lambda self: self.fencing)
    @rule(pick=PICK, next_seq=st.sampled_from((0, 0, 0, 5)))
    def fence(self, pick: int, next_seq: int) -> None:
        task_id = self.one_of(self.fencing, pick)
        self.seen[task_id] = self.seen.get(task_id, 0) + next_seq
        self.tell(AttemptFenced(task_id, self.fencing.pop(task_id), self.seen[task_id]))

    @precondition(lambda self: self.alive)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        task_id = self.one_of(self.alive, pick)
        self.alive.discard(task_id)
        self.fencing.pop(task_id, None)
        self.tell(TaskCancelled(task_id))
        assert task_id not in self.scheduler.live_task_ids()

    @rule(seconds=st.sampled_from((1.0, 2.0, 5.0)))
    def time_passes(self, seconds: float) -> None:
        self.wait(seconds)
        self.everybody_beats()

    @rule(seconds=st.sampled_from((0.1, 1.0, 3.0, 7.5, 20.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tell(Tick())
        deadline = self.scheduler.next_deadline()
        assert deadline is None or deadline > self.now, "a tick leaves nothing that is due"

    @rule(
        pick=PICK,
        kind=st.sampled_from((AttemptFinished, AttemptReleased, AttemptFailed, AttemptStarted, AttemptFenced)),
        attempt=st.integers(1, 4),
    )
    def say_something_stray(self, pick: int, kind: type, attempt: int) -> None:
        """An old or invented event about a real task id: it is dropped, and says nothing to anybody."""
        task_id = f"t{1 + pick % (self.tasks + 1)}"
        if kind is AttemptStarted:
            event: Event = AttemptStarted(task_id, attempt + 4)
        elif kind is AttemptFenced:
            event = AttemptFenced(task_id, attempt + 4, 0)
        elif kind is AttemptFailed:
            event = AttemptFailed(task_id, attempt, "w-unknown", "engine_error")
        else:
            event = kind(task_id, attempt, "w-unknown")
        before = sum(self.scheduler.dropped.values())

        assert self.tell(event) == []
        assert sum(self.scheduler.dropped.values()) == before + 1

    @precondition(lambda self: self.links)
    @rule(pick=PICK)
    def hear_an_old_link(self, pick: int) -> None:
        worker_id = self.one_of(self.links, pick)

        assert self.tell(WorkerLost(worker_id, "l0", "closed")) == []
        assert self.tell(WorkerDraining(worker_id, "l0")) == []
        assert self.tell(beat(worker_id, "l0")) == []

    def beat(self, worker_id: str) -> None:
        self.last_seen_s[worker_id] = self.now
        self.tell(beat(worker_id, self.links[worker_id]))

    def tell(self, event: Event) -> list[Command]:
        commands = self.scheduler.handle(event, self.now)
        self.scheduler.check_invariants()
        self.ticking = isinstance(event, Tick)
        for command in commands:
            self.obey(command)
        assert set(self.scheduler.live_task_ids()) == self.alive
        assert self.scheduler.running + self.scheduler.waiting == len(self.alive)
        assert set(self.scheduler.placement.workers) == set(self.links)
        snapshot = self.scheduler.snapshot(self.now, version=1, wall_s=0.0)
        assert snapshot.waiting == len(snapshot.head) == sum(tier.depth for tier in snapshot.tiers)
        never_ran = [record for record in self.scheduler.tasks.values() if record.attempt == 0]
        assert len(never_ran) <= self.settings.max_waiting, "more wait than may, retries aside"
        return commands

    def obey(self, command: Command) -> None:
        """Do what a command asks, and complain about one that should not have been given."""
        match command:
            case AnnounceAttempt():
                assert command.task_id in self.alive
                assert command.task_id not in self.fencing, "assigned before the stream has answered"
                assert command.attempt == self.attempts.get(command.task_id, 0) + 1
                assert command.attempt <= SETTINGS.max_attempts
                assert command.choice is not None and command.choice.candidates >= 1
                assert 0 <= command.choice.load <= 1 and 0 <= command.choice.wait <= 1
                self.attempts[command.task_id] = command.attempt
            case AnnounceWait():
                assert command.task_id in self.alive and command.position >= 1
            case AssignTask():
                task = command.task
                assert self.attempts[task.id] == command.attempt, "assigned before it was announced"
                assert self.links[command.worker_id] == command.link, "assigned to a link that is gone"
                assert self.now - self.last_seen_s[command.worker_id] <= SETTINGS.worker_stale_s, (
                    "assigned to a stale one"
                )
                spec = WORKERS[command.worker_id]
                offers = {offer.id: offer for offer in spec.models}
                assert task.kv_tokens <= offers[task.model].context_tokens
                assert spec.simulated or not task.simulated_only, "not allowed for this task"
                assert command.worker_id not in self.cordoned, "assigned to a cordoned worker"
                assert command.link not in self.sent_away, "assigned to a draining worker"
                # In one tick a worker may be given a task and then be found to owe us an answer.
                fit = self.ticking or self.scheduler.placement.workers[command.worker_id].open
                assert fit, "assigned to an unfit worker"
                assert command.resume_from == self.seen.get(task.id, 0), "goes on from another token than the stream"
                if command.resume_from:
                    assert spec.resumes & WORKERS[self.worked[task.id]].resumes, "goes on with another kind of text"
                self.worked[task.id] = command.worker_id
                self.held[task.id, command.attempt] = command.worker_id
            case CancelAttempt():
                over = command.task_id not in self.scheduler.live_task_ids()
                assert over or self.fencing.get(command.task_id) == command.attempt
                assert self.links[command.worker_id] == command.link
            case ProbeWorker():
                assert self.links[command.worker_id] == command.link
                assert command.model in {offer.id for offer in WORKERS[command.worker_id].models}
                self.probes[command.probe] = (command.worker_id, command.link)
            case DrainWorker():
                assert self.links[command.worker_id] == command.link
                assert command.worker_id in self.draining
                assert command.link not in self.told, "told twice to leave"
                self.told.add(command.link)
                self.sent_away.add(command.link)
            case FenceAttempt():
                assert self.attempts[command.task_id] == command.attempt
                self.fencing[command.task_id] = command.attempt
            case FailTask():
                assert command.message.endswith(".")
                self.alive.remove(command.task_id)
                self.fencing.pop(command.task_id, None)
            case EvictWorker():
                if self.links.get(command.worker_id) == command.link:
                    del self.links[command.worker_id]
                    self.forget(command.worker_id)

    def forget(self, worker_id: str) -> None:
        """A worker whose link is gone has dropped all it held."""
        self.held = {key: holder for key, holder in self.held.items() if holder != worker_id}

    @staticmethod
    def one_of(things: Iterable[T], pick: int) -> T:
        ordered = sorted(things)
        return ordered[pick % len(ordered)]

    def teardown(self) -> None:
        """Once everybody is gone and time has passed, nothing is left: no task, no timer, no queue."""
        if not hasattr(self, "scheduler"):
            return
        for worker_id in sorted(self.links):
            link = self.links.pop(worker_id)
            self.forget(worker_id)
            self.tell(WorkerLost(worker_id, link, "closed"))
        self.now += SETTINGS.total_timeout_s + SETTINGS.flap_memory_s
        self.tell(Tick())

        assert self.alive == set()
        assert self.scheduler.next_deadline() is None
        assert not self.scheduler.queues
        assert not self.scheduler.placement.absent_since_s


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.soak
class TestClusterAtLength(Cluster.TestCase):
    settings = settings(
        max_examples=3_000, stateful_step_count=150, deadline=None, suppress_health_check=list(HealthCheck)
    )
