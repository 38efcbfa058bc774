"""The gateway between workers that behave, workers that do not, and clients that leave."""

from __future__ import annotations

from cluster.domain import FinishReason, Outcome
from cluster.engine.gateway import MAX_STRAYS_PER_MINUTE
from cluster.engine.links import MAX_OUTBOX
from cluster.protocol.messages import (
    Assign,
    Bye,
    Cancel,
    Chunk,
    CloseCode,
    Drain,
    Failed,
    Finished,
    Heartbeat,
    Step,
    Welcome,
)
from cluster.scheduler import commands
from tests.fakes import make_hello
from tests.unit.cluster.engine.rig import Rig


async def test_a_worker_is_welcomed_before_it_is_given_work(rig: Rig):
    rig.submit()

    worker = rig.join()

    welcome, assign = worker.heard
    assert isinstance(welcome, Welcome)
    assert (welcome.link, welcome.heartbeat_s) == (worker.link.id, 5.0)
    assert isinstance(assign, Assign)
    assert (assign.task, assign.attempt) == ("req_1", 1)


async def test_tokens_go_from_the_worker_to_the_stream(rig: Rig):
    worker = rig.join()
    stream = rig.submit()
    worker.take()

    worker.push("req_1", 0, "Hel", "lo")
    assert stream.take() == ["Hel", "lo"]
    worker.say(
        Step([Chunk("req_1", 1, 2, ["!"])]),
        Finished(task="req_1", attempt=1, reason=FinishReason.STOP, generated_tokens=4),
    )

    assert stream.take() == ["!"]
    assert (stream.finish_reason, stream.generated_tokens, stream.worker_name) == ("stop", 4, "alice")
    assert rig.held() == {"alice": 0}
    assert not rig.gateway.dropped


async def test_one_frame_may_carry_tokens_of_many_tasks(rig: Rig):
    worker = rig.join()
    streams = [rig.submit(f"req_{number}") for number in range(3)]

    worker.say(Step([Chunk(f"req_{number}", 1, 0, [f"token of {number}"]) for number in range(3)]))

    assert [stream.take() for stream in streams] == [["token of 0"], ["token of 1"], ["token of 2"]]


async def test_a_token_for_another_workers_task_costs_the_worker_its_link(rig: Rig):
    rig.join("alice", capacity=1)
    stream = rig.submit("req_1")
    mallory = rig.join("mallory", capacity=1)
    own = rig.submit("req_2")
    mallory.take()
    assert (stream.worker_name, own.worker_name) == ("alice", "mallory")

    mallory.push("req_1", 0, "evil")

    assert mallory.close_code == CloseCode.NOT_YOURS
    assert stream.take() == []
    assert not stream.ended
    assert rig.held() == {"alice": 1}
    assert not own.ended, "what it held waits for another worker"


async def test_another_workers_task_cannot_be_ended(rig: Rig):
    rig.join("alice", capacity=1)
    stream = rig.submit("req_1")
    mallory = rig.join("mallory")

    mallory.finish("req_1")
    mallory.say(Failed(task="req_1", attempt=1, code="sabotage", retryable=False))
    mallory.finish("req_1", FinishReason.CANCELLED)

    assert not stream.ended
    assert rig.held() == {"alice": 1, "mallory": 0}
    assert rig.gateway.dropped == {"stray end": 3}


async def test_messages_about_unknown_tasks_are_counted_and_dropped(rig: Rig):
    worker = rig.join()

    worker.push("req_nobody", 0, "hello?")
    worker.finish("req_nobody")

    assert rig.gateway.dropped == {"stray step": 1, "stray end": 1}
    assert worker.close_code is None


async def test_too_many_messages_about_unknown_tasks_close_the_link(rig: Rig):
    worker = rig.join()

    worker.say(Step([Chunk(f"req_{number}", 1, 0, ["?"]) for number in range(MAX_STRAYS_PER_MINUTE)]))
    assert worker.close_code is None
    worker.push("req_one_more", 0, "?")

    assert worker.close_code == CloseCode.BAD_FRAME


async def test_nothing_that_follows_in_the_frame_that_closed_the_link_is_acted_on(rig: Rig):
    worker = rig.join(capacity=1)
    stream = rig.submit()

    worker.say(Step([Chunk("req_1", 1, 5, ["gap"])]), Step([Chunk("req_1", 1, 0, ["late"])]))

    assert worker.close_code == CloseCode.BAD_FRAME
    assert stream.take() == []


async def test_a_gap_closes_the_link_and_the_task_begins_again_elsewhere(rig: Rig):
    broken = rig.join("alice")
    stream = rig.submit()
    healthy = rig.join("bob")
    broken.push("req_1", 0, "a")

    broken.push("req_1", 2, "c")

    assert broken.close_code == CloseCode.BAD_FRAME
    assert healthy.take().attempt == 2
    healthy.push("req_1", 0, "A", "B", attempt=2)
    assert stream.take() == ["A", "B"]
    assert stream.attempt == 2


async def test_a_gap_after_the_client_has_seen_tokens_ends_the_stream(rig: Rig):
    broken = rig.join("alice")
    stream = rig.submit()
    rig.join("bob")
    broken.push("req_1", 0, "a")
    assert stream.take() == ["a"]

    broken.push("req_1", 2, "c")

    assert stream.failure is not None
    assert (stream.failure.outcome, stream.failure.code) == (Outcome.FAILED, "worker_lost")
    assert rig.held() == {"bob": 0}


async def test_a_buffered_stream_begins_again_whatever_had_arrived(rig: Rig):
    first = rig.join("alice")
    stream = rig.submit(buffered=True)
    second = rig.join("bob")
    first.push("req_1", 0, "a", "b", "c")

    rig.gateway.leave(first.link, "link dropped")
    second.push("req_1", 0, "x", attempt=2)
    second.finish("req_1", attempt=2)

    assert stream.take() == ["x"]
    assert stream.finish_reason == FinishReason.STOP


async def test_repeated_tokens_are_delivered_once(rig: Rig):
    worker = rig.join()
    stream = rig.submit()

    worker.push("req_1", 0, "a")
    worker.push("req_1", 0, "a")
    worker.push("req_1", 1, "b")

    assert stream.take() == ["a", "b"]
    assert rig.gateway.dropped == {"late step": 1}


async def test_a_repeated_finish_changes_nothing(rig: Rig):
    worker = rig.join(capacity=2)
    rig.submit("req_1")
    rig.submit("req_2")

    worker.finish("req_1")
    worker.finish("req_1")

    assert rig.held() == {"alice": 1}
    assert rig.gateway.dropped == {"stray end": 1}
    assert worker.close_code is None


async def test_a_client_that_leaves_has_its_work_stopped_and_the_slot_comes_back(rig: Rig):
    worker = rig.join(capacity=1)
    stream = rig.submit("req_1")
    worker.take()
    waiting = rig.submit("req_2")

    rig.gateway.abandon(stream)
    rig.gateway.close(stream)

    assert worker.hear() == [Cancel(task="req_1", attempt=1)]
    assert rig.held() == {"alice": 1}, "until the worker has answered"
    worker.finish("req_1", FinishReason.CANCELLED)
    assert worker.take().task == "req_2"
    assert waiting.attempt == 1


async def test_what_arrives_after_a_cancel_is_not_the_workers_fault(rig: Rig):
    worker = rig.join(capacity=1)
    stream = rig.submit()
    rig.gateway.close(stream)

    for seq in range(2 * MAX_STRAYS_PER_MINUTE):
        worker.push("req_1", seq, "late")
    worker.finish("req_1", FinishReason.LENGTH)

    assert worker.close_code is None
    assert rig.gateway.dropped == {"late step": 2 * MAX_STRAYS_PER_MINUTE}
    assert rig.held() == {"alice": 0}


async def test_a_task_whose_client_left_while_it_waited_is_never_assigned(rig: Rig):
    worker = rig.join(capacity=1)
    running = rig.submit("req_1")
    gone = rig.submit("req_2")
    worker.take()

    rig.gateway.close(gone)
    worker.finish("req_1")

    assert running.ended
    assert worker.hear() == []
    assert rig.held() == {"alice": 0}


async def test_closing_a_finished_stream_stops_nothing(rig: Rig):
    worker = rig.join()
    stream = rig.submit()
    worker.take()
    worker.finish("req_1")

    rig.gateway.close(stream)

    assert worker.hear() == []
    assert rig.gateway.streams == {}
    assert not rig.scheduler.dropped


async def test_a_worker_that_gives_up_hands_the_task_on(rig: Rig):
    first = rig.join("alice")
    stream = rig.submit()
    second = rig.join("bob")

    first.say(Failed(task="req_1", attempt=1, code="engine_error"))

    assert second.take().attempt == 2
    second.push("req_1", 0, "ok", attempt=2)
    assert stream.take() == ["ok"]
    assert rig.held() == {"alice": 0, "bob": 1}


async def test_a_task_that_no_worker_could_do_is_not_tried_again(rig: Rig):
    first = rig.join("alice")
    stream = rig.submit()
    second = rig.join("bob")

    first.say(Failed(task="req_1", attempt=1, code="bad_request", message="quotes the prompt", retryable=False))

    assert stream.failure is not None
    assert stream.failure.code == "worker_failed"
    assert "quotes the prompt" not in stream.failure.message
    assert second.hear() == []


async def test_a_lost_link_is_told_once_however_often_it_is_lost(rig: Rig):
    worker = rig.join()

    rig.gateway.hang_up(worker.link, CloseCode.SILENT, "first")
    rig.gateway.hang_up(worker.link, CloseCode.BAD_FRAME, "second")
    rig.gateway.leave(worker.link, "third")

    assert worker.close_code == CloseCode.SILENT
    assert rig.held() == {}
    assert not rig.scheduler.dropped


async def test_a_link_that_never_said_hello_is_nobodys_loss(rig: Rig):
    stranger = rig.dial()

    rig.gateway.leave(stranger.link, "link dropped")

    assert not rig.scheduler.dropped


async def test_the_same_process_on_a_new_link_replaces_the_old_one(rig: Rig):
    old = rig.join("alice", instance="i-1")
    stream = rig.submit()

    new = rig.join("alice", instance="i-1")

    assert old.close_code == CloseCode.REPLACED
    assert list(rig.gateway.links) == [new.link.id]
    _, assign = new.heard
    assert isinstance(assign, Assign)
    assert assign.attempt == 2
    rig.gateway.leave(old.link, "closed")
    old.push("req_1", 0, "from the old link")
    assert stream.take() == []
    assert rig.held() == {"alice": 1}


async def test_who_copies_a_workers_name_with_another_token_does_not_replace_it(rig: Rig):
    alice = rig.join("alice", instance="i-1")

    mallory = rig.dial(token_id=2)
    mallory.say(make_hello(name="alice", instance="i-1"))

    assert alice.close_code is None
    assert alice.link.worker and mallory.link.worker
    assert alice.link.worker.id != mallory.link.worker.id


async def test_an_evicted_worker_is_closed_with_the_reason_given(rig: Rig):
    worker = rig.join()
    assert worker.link.worker is not None

    rig.gateway.execute(
        commands.EvictWorker("node-1", worker.link.worker.id, worker.link.id, CloseCode.SILENT, "silent")
    )

    assert worker.link.closing == (CloseCode.SILENT, "silent")
    assert rig.gateway.links == {}


async def test_a_worker_that_says_drain_gets_nothing_new_and_leaves_with_bye(rig: Rig):
    worker = rig.join()
    running = rig.submit("req_1")
    worker.take()

    worker.say(Drain(deadline_s=5))
    rig.submit("req_2")
    assert worker.hear() == []
    worker.push("req_1", 0, "a")
    worker.finish("req_1")
    worker.say(Bye(reason="drained"))

    assert running.take() == ["a"]
    assert worker.link.closing == (1000, "bye")
    assert rig.held() == {}


async def test_a_draining_gateway_tells_every_worker(rig: Rig):
    workers = [rig.join("alice"), rig.join("bob", instance="i-2")]

    rig.gateway.drain(5.0)

    assert rig.gateway.draining
    assert [worker.hear() for worker in workers] == [[Drain(deadline_s=5.0)]] * 2


async def test_a_worker_that_does_not_read_is_cut_off(rig: Rig):
    worker = rig.join(capacity=MAX_OUTBOX + 10)

    for number in range(MAX_OUTBOX + 1):
        rig.submit(f"req_{number}")

    assert worker.close_code == CloseCode.SILENT
    assert rig.held() == {}
    assert len(rig.scheduler.tasks) == MAX_OUTBOX + 1, "they wait for another worker"


async def test_heartbeats_reach_the_scheduler(rig: Rig):
    worker = rig.join()
    (record,) = rig.scheduler.placement.workers.values()
    before_s = record.last_seen_at_s

    worker.say(Heartbeat(status="ready"))

    assert record.last_seen_at_s > before_s


async def test_the_last_resort_ends_all_streams_that_still_run(rig: Rig):
    worker = rig.join()
    finished, running = rig.submit("req_1"), rig.submit("req_2")
    worker.finish("req_1")

    rig.gateway.fail_all("server_draining", "The server restarted.")

    assert finished.failure is None
    assert running.failure is not None
    assert (running.failure.outcome, running.failure.code) == (Outcome.FAILED, "server_draining")
    assert rig.scheduler.tasks == {}
