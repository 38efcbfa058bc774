"""What may happen in a simulated world: one line per kind of event.

An action is a function of the world that returns whether it could happen just now. `FAULTS` are
grouped by kind; a run has some kinds on and the others off (swarm testing), so that a rare fault is
not always drowned by the frequent ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from cluster.protocol.messages import Chunk, Finished, Step
from cluster.protocol.messages import FinishReason as Reason
from cluster.scheduler import events

if TYPE_CHECKING:
    from tests.simulation.workers import SimWorker
    from tests.simulation.world import World

Action = Callable[["World"], bool]

OVERSIZE = b"\xc4" * (1024 * 1024 + 1)
GARBAGE = (b"", b"\xc1", b"\xff\x00garbage", b"\x91\x81\xa1t\xa8surprise", b"\x91" * 5_000)


def submit(world: World) -> bool:
    """A client comes."""
    world.submit()
    return True


def client_leaves(world: World) -> bool:
    """A client that waits or reads goes away now."""
    if client := world.pick([client for client in world.present if client.gone_at_s is None]):
        client.leave()
    return client is not None


def client_leaves_later(world: World) -> bool:
    """A client will go away after some tokens."""
    if client := world.pick([client for client in world.present if client.stream]):
        client.leave_after_tokens = client.passed_tokens + world.rng.randint(1, 5)
    return client is not None


def client_stops_reading(world: World) -> bool:
    """A client does not read for a while, perhaps for so long that it is cut off."""
    if client := world.pick([client for client in world.present if client.reading]):
        client.stop_reading()
        world.later(world.rng.uniform(0.2, 12.0), client.read_on)
    return client is not None


def link_is_slow(world: World) -> bool:
    """Frames take up to a second for a while; that alone is no reason to evict anybody."""
    if worker := world.pick_linked():
        wire = worker.wire
        assert wire is not None
        wire.latency_s, wire.prompt = world.rng.uniform(0.05, 1.0), False
    return worker is not None


def link_is_clogged(world: World) -> bool:
    """What is said now arrives when the worker has long been given up."""
    if worker := world.pick_linked():
        wire = worker.wire
        assert wire is not None
        wire.latency_s, wire.prompt, wire.honest = world.rng.uniform(3.0, 7.0), False, False
    return worker is not None


def link_drops(world: World) -> bool:
    """A connection is reset; the worker dials again as the same instance."""
    if worker := world.pick_linked():
        worker.lose_link()
    return worker is not None


def link_is_half_open(world: World) -> bool:
    """Both ends believe in a connection that carries nothing; the worker's pings notice later."""
    worker = world.pick_linked()
    if worker is None or worker.wire is None:
        return False
    wire = worker.wire
    wire.break_silently()
    world.later(world.rng.uniform(1.0, 6.0), lambda: worker.lose_link() if worker.wire is wire else None)
    return True


def link_duplicates(world: World) -> bool:
    """The next frame arrives twice."""
    if worker := world.pick_linked():
        assert worker.wire is not None
        worker.wire.duplicate_next, worker.wire.honest = True, False
    return worker is not None


def link_reorders(world: World) -> bool:
    """The next frame is overtaken by those behind it."""
    if worker := world.pick_linked():
        assert worker.wire is not None
        worker.wire.delay_next_s, worker.wire.honest = world.rng.uniform(0.05, 0.5), False
    return worker is not None


def worker_dies(world: World) -> bool:
    """A worker process is killed."""
    if worker := world.pick_linked():
        worker.die()
    return worker is not None


def worker_freezes(world: World) -> bool:
    """A worker process is stopped, and goes on later, perhaps after it was given up."""
    if worker := world.pick_linked():
        worker.freeze()
        world.later(world.rng.uniform(0.5, 8.0), worker.thaw)
    return worker is not None


def worker_stalls(world: World) -> bool:
    """A worker sends heartbeats and nothing else."""
    if worker := world.pick_linked():
        worker.stalled = True
        world.later(world.rng.uniform(1.0, 8.0), lambda: setattr(worker, "stalled", False))
    return worker is not None


def stream_stalls(world: World) -> bool:
    """A stream's gateway has seen no progress for too long, or believes so."""
    stream = world.pick([stream for stream in world.gateway.streams.values() if stream.worker_id and not stream.ended])
    if stream is None:
        return False
    phase: Literal["first_token", "next_token"] = "first_token" if stream.next_seq == 0 else "next_token"
    world.tell(events.AttemptStalled(stream.task.id, stream.attempt, phase))
    return True


def worker_slows_down(world: World) -> bool:
    """A worker takes its time for each step."""
    if worker := world.pick_linked():
        worker.slowness = world.rng.uniform(5.0, 50.0)
        world.later(world.rng.uniform(1.0, 5.0), lambda: setattr(worker, "slowness", 1.0))
    return worker is not None


def worker_flaps(world: World) -> bool:
    """A worker loses its link again and again."""
    if worker := world.pick_linked():
        for number in range(world.rng.randint(3, 5)):
            world.later(number * 0.8, worker.lose_link)
    return worker is not None


def worker_leaves(world: World) -> bool:
    """A worker is told to end."""
    if worker := world.pick_linked():
        worker.leave()
    return worker is not None


def worker_fails_a_task(world: World) -> bool:
    """A worker reports that an attempt failed."""
    worker = world.pick_busy()
    if worker is None:
        return False
    worker.give_up(world.rng.choice(sorted(worker.jobs)), retryable=world.rng.random() < 0.8)
    return True


def worker_quits_a_task(world: World) -> bool:
    """A worker says that it was asked to cancel, and was not."""
    worker = world.pick_busy()
    if worker is None:
        return False
    worker.quit(world.rng.choice(sorted(worker.jobs)))
    return True


def worker_is_deaf(world: World) -> bool:
    """A worker will not answer the next cancel."""
    if worker := world.pick_linked():
        worker.deaf = True
    return worker is not None


def worker_boasts(world: World) -> bool:
    """A worker will claim to have computed a million tokens more than it sent."""
    worker = world.pick_busy()
    if worker is None:
        return False
    worker.jobs[world.rng.choice(sorted(worker.jobs))].boasts = 1_000_000
    return True


def worker_skips_tokens(world: World) -> bool:
    """A worker sends tokens that leave a gap."""
    return _lie(world, lambda job_sent: job_sent + world.rng.randint(1, 3))


def worker_repeats_tokens(world: World) -> bool:
    """A worker sends tokens again that it has sent."""
    return _lie(world, lambda job_sent: world.rng.randrange(job_sent) if job_sent else None)


def worker_goes_on_after_it_has_failed(world: World) -> bool:
    """A worker reports that an attempt failed, and sends tokens of it all the same."""
    worker = world.pick_busy()
    if worker is None:
        return False
    key = world.rng.choice(sorted(worker.jobs))
    _blame(worker)
    worker.give_up(key, then=(Step([Chunk(*key, seq, ["evil "]) for seq in (0, worker.jobs[key].sent)]),))
    return True


def worker_speaks_for_another(world: World) -> bool:
    """A worker sends exactly the next token of a stream that another one serves."""
    liar = world.pick_linked()
    if liar is None:
        return False
    stream = world.pick(world.streams_served_by_others(liar))
    if stream is None:
        return False
    _blame(liar)
    liar.say(Step([Chunk(stream.task.id, stream.attempt, stream.next_seq, ["evil "])]))
    return True


def worker_ends_the_task_of_another(world: World) -> bool:
    """A worker says that an attempt is finished which it does not hold."""
    liar = world.pick_linked()
    if liar is None:
        return False
    stream = world.pick(world.streams_served_by_others(liar))
    if stream is None:
        return False
    _blame(liar)
    liar.say(Finished(task=stream.task.id, attempt=stream.attempt, reason=Reason.STOP, generated_tokens=3))
    return True


def worker_speaks_of_nobody(world: World) -> bool:
    """A worker sends tokens of tasks and attempts that never were."""
    liar = world.pick_linked()
    if liar is None:
        return False
    _blame(liar)
    liar.say(Step([Chunk("req_nobody", world.rng.randint(1, 5), 0, ["evil "]) for _ in range(3)]))
    return True


def worker_sends_garbage(world: World) -> bool:
    """A worker sends bytes that are no frame."""
    if liar := world.pick_linked():
        liar.say_raw(world.rng.choice(GARBAGE))
    return liar is not None


def worker_sends_too_much(world: World) -> bool:
    """A worker sends a frame over the limit."""
    if liar := world.pick_linked():
        liar.say_raw(OVERSIZE)
    return liar is not None


def ledger_is_slow(world: World) -> bool:
    """Commits take long for a while, some of them too long for a client to wait."""
    world.ledger.delay_s = world.rng.uniform(0.1, 2.0)
    world.later(world.rng.uniform(0.5, 2.0), world.mend_ledger)
    return True


def ledger_is_away(world: World) -> bool:
    """The ledger takes no requests for a while."""
    world.ledger.healthy = False
    world.later(world.rng.uniform(0.2, 2.0), world.mend_ledger)
    return True


def server_pauses(world: World) -> bool:
    """The server's process is stopped for a while; nobody else is to blame."""
    world.loop.jump(world.rng.uniform(2.5, 8.0))
    return True


def operator_changes_intent(world: World) -> bool:
    """An operator cordons or drains some workers, and lets the others be."""
    ids = sorted(world.scheduler.placement.workers)
    cordoned = frozenset(id for id in ids if world.rng.random() < 0.2)
    draining = frozenset(id for id in ids if world.rng.random() < 0.1) - cordoned
    world.tell(events.IntentsObserved(cordoned=cordoned, draining=draining))
    return True


def withdraw_intents(world: World) -> None:
    """Let all workers be."""
    world.tell(events.IntentsObserved(cordoned=frozenset(), draining=frozenset()))


FAULTS: dict[str, tuple[Action, ...]] = {
    "clients leave": (client_leaves, client_leaves_later),
    "clients do not read": (client_stops_reading,),
    "slow links": (link_is_slow,),
    "clogged links": (link_is_clogged,),
    "dropped links": (link_drops, worker_flaps),
    "half-open links": (link_is_half_open,),
    "wrong order": (link_duplicates, link_reorders),
    "crashes": (worker_dies,),
    "hangs": (worker_freezes, worker_stalls, worker_slows_down, stream_stalls),
    "departures": (worker_leaves,),
    "failed attempts": (worker_fails_a_task, worker_quits_a_task, worker_is_deaf),
    "lies": (
        worker_boasts,
        worker_skips_tokens,
        worker_repeats_tokens,
        worker_goes_on_after_it_has_failed,
        worker_speaks_for_another,
        worker_ends_the_task_of_another,
        worker_speaks_of_nobody,
    ),
    "garbage": (worker_sends_garbage, worker_sends_too_much),
    "ledger": (ledger_is_slow, ledger_is_away),
    "pauses": (server_pauses,),
    "operators": (operator_changes_intent,),
}
KINDS = tuple(FAULTS)


def _lie(world: World, choose_seq: Callable[[int], int | None]) -> bool:
    worker = world.pick_busy()
    if worker is None:
        return False
    key = world.rng.choice(sorted(worker.jobs))
    job = worker.jobs[key]
    seq = choose_seq(job.sent)
    if seq is None:
        return False
    _blame(worker)
    # The right words at the wrong place: what the rightful worker says is not ours to doubt.
    worker.say(Step([Chunk(*key, seq, job.texts[seq : seq + 2] or ["beyond "])]))
    return True


def _blame(worker: SimWorker) -> None:
    assert worker.wire is not None
    worker.wire.honest = False
