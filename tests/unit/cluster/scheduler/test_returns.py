"""Workers that come back: what was held against those who ran on them is forgiven, at once."""

from __future__ import annotations

from cluster.domain import WaitReason
from cluster.scheduler.events import AttemptFenced, WorkerLost
from tests.unit.cluster.scheduler.builders import CheckedScheduler, assigned, join, make_spec, make_task, submit, waits


def test_a_task_need_not_run_alone_once_the_worker_it_was_lost_on_is_back(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w1", capacity=2)), 0.0)
    lost = make_task("lost")
    scheduler.handle(submit(lost), 0.0)
    for name in ("w2", "w3"):
        scheduler.handle(join(make_spec(name, capacity=2)), 0.0)
    for number in range(2):
        scheduler.handle(submit(make_task(f"innocent-{number}")), 0.0)
    scheduler.handle(WorkerLost("w1", "link of w1", "dropped"), 1.0)
    assert scheduler.handle(AttemptFenced("lost", 1, 0), 1.0) == [waits(lost, WaitReason.ISOLATION)]

    commands = scheduler.handle(join(make_spec("w1", capacity=2), "another link"), 2.0)

    ((task_id, worker_id),) = assigned(commands)
    assert task_id == "lost" and worker_id in ("w2", "w3")
