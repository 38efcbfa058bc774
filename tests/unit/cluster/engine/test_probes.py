"""What a suspect worker is asked, and that its answer is told apart from everybody's tasks."""

from __future__ import annotations

import pytest

from cluster.domain import FinishReason
from cluster.engine import probes
from cluster.protocol.messages import Assign, Chunk, Failed, Finished, Step
from cluster.scheduler.commands import ProbeWorker
from cluster.scheduler.events import Event, ProbeAnswered
from tests.unit.cluster.engine.rig import Rig, RigWorker

MODEL = "llama-3-8b"


def probe(rig: Rig, number: int = 7) -> tuple[RigWorker, str, list[Event]]:
    """Return a worker that has just been probed, its id, and what the dispatcher is told from then on."""
    worker = rig.join()
    assert worker.link.worker is not None
    told: list[Event] = []
    rig.broker.attach_dispatcher(told.append)
    worker_id = worker.link.worker.id
    rig.gateway.execute(ProbeWorker("node-1", worker_id, worker.link.id, number, MODEL))
    return worker, worker_id, told


async def test_a_probe_is_an_ordinary_assignment_of_one_token(rig: Rig):
    worker, _, _ = probe(rig)

    (assign,) = worker.hear()

    assert isinstance(assign, Assign)
    assert (assign.task, assign.attempt, assign.model, assign.resume_from) == ("probe_7", 1, MODEL, 0)
    assert assign.generation.max_tokens == 1
    assert rig.gateway.streams == {}


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH])
async def test_a_worker_that_generates_the_token_has_passed(rig: Rig, reason: FinishReason):
    worker, worker_id, told = probe(rig)

    worker.say(
        Step([Chunk("probe_7", 1, 0, ["Yes"])]),
        Finished(task="probe_7", attempt=1, reason=reason, generated_tokens=1),
    )

    assert told == [ProbeAnswered(worker_id, worker.link.id, 7, True)]
    assert "stray end" not in rig.gateway.dropped and "stray step" not in rig.gateway.dropped


async def test_a_worker_that_says_it_cannot_has_not(rig: Rig):
    worker, worker_id, told = probe(rig)

    worker.say(Failed(task="probe_7", attempt=1, code="engine_error"))

    assert told == [ProbeAnswered(worker_id, worker.link.id, 7, False)]
    assert not rig.gateway.dropped


async def test_the_token_alone_is_no_answer_and_no_fault(rig: Rig):
    worker, _, told = probe(rig)

    worker.push("probe_7", 0, "Yes")

    assert told == []
    assert rig.gateway.dropped == {"late step": 1}


async def test_an_answer_counts_once_and_a_probe_that_was_not_sent_has_none(rig: Rig):
    worker, worker_id, told = probe(rig)

    worker.finish("probe_7")
    worker.finish("probe_7")
    worker.finish("probe_8")

    assert told == [ProbeAnswered(worker_id, worker.link.id, 7, True)]
    assert rig.gateway.dropped == {"stray end": 2}


async def test_a_probe_for_a_link_that_is_gone_goes_nowhere(rig: Rig):
    worker = rig.join()

    rig.gateway.execute(ProbeWorker("node-1", "wrk_1", "lnk_gone", 7, MODEL))

    assert worker.hear() == []


@pytest.mark.parametrize(
    ("task_id", "number"),
    [("probe_7", 7), ("probe_120", 120), ("req_7", 0), ("7", 0), ("probe_", 0), ("probe_x", 0), ("probe_-7", 0)],
)
def test_a_probe_is_known_by_its_id(task_id: str, number: int):
    assert probes.number_of(task_id) == number
