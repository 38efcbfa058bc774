"""The gateway of a node: client streams on one side, worker links on the other.

It decides nothing about scheduling. Facts it sees become events for the dispatcher; commands it
is given become messages on a link or a change of a stream. Both directions are synchronous, so
the order in which things are seen here is the order in which they happened.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from typing import assert_never

from cluster.brokers.base import Broker
from cluster.domain import FinishReason, Outcome, Task, WorkerSpec
from cluster.engine import probes
from cluster.engine.links import WorkerLink
from cluster.engine.streams import StreamFailure, TokenStream, Verdict
from cluster.protocol.messages import (
    VERSION,
    Assign,
    Bye,
    Cancel,
    CloseCode,
    Drain,
    Failed,
    Finished,
    FromWorker,
    Heartbeat,
    Hello,
    Step,
    Welcome,
)
from cluster.scheduler import commands, events
from gpucloud.lib.crashpoint import crashpoint

log = logging.getLogger(__name__)

MAX_STRAYS_PER_MINUTE = 100

CANCELLED = FinishReason.CANCELLED

BLAMELESS = frozenset({1000, CloseCode.GOING_AWAY, CloseCode.NO_TOKEN, CloseCode.EVICTED})
"""Reasons for us to hang up that are no fault of the worker's process."""


class Gateway:
    """Holds this node's streams and links and speaks for them."""

    def __init__(self, node: str, broker: Broker, *, heartbeat_s: float, max_frame_bytes: int) -> None:
        self.node = node
        self.streams: dict[str, TokenStream] = {}
        self.links: dict[str, WorkerLink] = {}
        """Live links by link id."""
        self.open_sockets: Counter[int | None] = Counter()
        """Workers' sockets that are open, by the token they showed; also those that have not said hello."""
        self.draining = False
        """Whether workers that dial in are turned away."""
        self.dropped: Counter[str] = Counter()
        """Messages that fitted nowhere, by kind."""
        self._idle: asyncio.Future[None] | None = None
        self._broker = broker
        self._heartbeat_s = heartbeat_s
        self._max_frame_bytes = max_frame_bytes

    def submit(self, task: Task, *, buffered: bool) -> TokenStream:
        """Accept a task and return the stream its tokens will arrive on."""
        stream = TokenStream(task, buffered=buffered)
        self.streams[task.id] = stream
        self._broker.publish_event(events.TaskSubmitted(task))
        crashpoint("enqueue")
        return stream

    def abandon(self, stream: TokenStream) -> None:
        """End a stream whose client is gone and have its work stopped."""
        if stream.ended:
            return
        stream.abandon()
        self._broker.publish_event(events.TaskCancelled(stream.task.id))

    def close(self, stream: TokenStream) -> None:
        """Forget a stream; if it still runs, its work is stopped."""
        if not stream.ended:
            self.abandon(stream)
        self.streams.pop(stream.task.id, None)
        if not self.streams and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def wait_idle(self, timeout_s: float) -> bool:
        """Return True once no stream is left, False if some still are after `timeout_s`."""
        if self.streams:
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._idle], timeout=timeout_s)
            self._idle = None
        return not self.streams

    def receive(self, link: WorkerLink, messages: list[FromWorker]) -> None:
        """Act on what a worker said, in its order."""
        started: list[TokenStream] = []
        for message in messages:
            if link.closing is not None:
                break
            match message:
                case Step():
                    self._on_step(link, message, started)
                case Finished():
                    self._on_finished(link, message)
                case Heartbeat():
                    self._on_heartbeat(link, message)
                case Failed():
                    self._on_failed(link, message)
                case Hello():
                    self._on_hello(link, message)
                case Drain():
                    self._broker.publish_event(events.WorkerDraining(_worker(link).id, link.id))
                case Bye():
                    self.hang_up(link, 1000, "bye")
                case _:
                    assert_never(message)
        for stream in started:
            # A start that its end has overtaken, in the same frame, is no news.
            if not stream.ended:
                self._broker.publish_event(events.AttemptStarted(stream.task.id, stream.attempt))

    def hang_up(self, link: WorkerLink, code: int, reason: str) -> None:
        """End a link from our side. Its tasks move on now, not when the far end has answered."""
        link.close(code, reason)
        self.leave(link, reason, clean=code in BLAMELESS)

    def leave(self, link: WorkerLink, reason: str, *, clean: bool = False) -> None:
        """Forget a link and tell the dispatcher, unless both have happened already.

        `clean` says that nothing is wrong with the worker: it said goodbye, or was sent away.
        """
        if self.links.pop(link.id, None) is not None:
            clean = clean or self.draining
            self._broker.publish_event(events.WorkerLost(_worker(link).id, link.id, reason, clean))

    def drain(self, deadline_s: float) -> None:
        """Ask every worker to finish here and come back elsewhere; let no other in."""
        self.draining = True
        for link in self.links.values():
            link.send(Drain(deadline_s=deadline_s))

    def execute(self, command: commands.Command) -> None:
        """Carry out a command of the dispatcher."""
        match command:
            case commands.AnnounceAttempt():
                if stream := self.streams.get(command.task_id):
                    stream.announce(command.attempt, command.worker_id, command.worker_name, command.queued_s)
                    stream.notes.append((stream.progress_at_s, command, stream.next_seq))
            case commands.AssignTask():
                self._assign(command)
            case commands.CancelAttempt():
                if link := self.links.get(command.link):
                    link.send(Cancel(task=command.task_id, attempt=command.attempt))
            case commands.FenceAttempt():
                next_seq = 0
                if stream := self.streams.get(command.task_id):
                    next_seq = stream.fence(command.attempt)
                    stream.notes.append((time.monotonic(), command, next_seq))
                self._broker.publish_event(events.AttemptFenced(command.task_id, command.attempt, next_seq))
            case commands.FailTask():
                if stream := self.streams.get(command.task_id):
                    stream.fail(StreamFailure(command.outcome, command.code, command.message, command.retry_after_s))
            case commands.AnnounceWait():
                if stream := self.streams.get(command.task_id):
                    stream.notes.append((time.monotonic(), command, stream.next_seq))
            case commands.DrainWorker():
                if link := self.links.get(command.link):
                    link.send(Drain())
            case commands.ProbeWorker():
                if link := self.links.get(command.link):
                    probes.send(link, command)
            case commands.EvictWorker():
                # The dispatcher has let go of it already: nothing to tell, only to close.
                if link := self.links.pop(command.link, None):
                    link.close(command.close_code, command.reason)
            case _:
                assert_never(command)

    def fail(self, stream: TokenStream, code: str, message: str) -> None:
        """End a stream that may not go on and have its work stopped; nothing if it has ended."""
        if not stream.ended:
            stream.fail(StreamFailure(Outcome.FAILED, code, message))
            self._broker.publish_event(events.TaskCancelled(stream.task.id))

    def fail_all(self, code: str, message: str) -> None:
        """End every stream that still runs, as a last resort of a shutdown."""
        for stream in list(self.streams.values()):
            self.fail(stream, code, message)

    def _on_hello(self, link: WorkerLink, hello: Hello) -> None:
        # One process is one worker, over all its links; two tokens can never share an identity.
        identity = f"{link.token_id}/{hello.name}/{hello.instance}"
        worker_id = "wrk_" + hashlib.sha256(identity.encode()).hexdigest()[:20]
        link.worker = WorkerSpec(
            id=worker_id,
            name=hello.name,
            instance=hello.instance,
            gpu=hello.gpu,
            models=hello.models,
            capacity=hello.capacity,
            kv_bytes=hello.kv_bytes,
            resumes=frozenset(hello.resumes or ()),
            simulated=hello.simulated,
            lineage=f"{link.token_id}/{hello.name}",
        )
        self.links[link.id] = link
        # Welcome is queued before the event, so that it precedes any assignment the event causes.
        link.send(
            Welcome(
                v=VERSION,
                worker=worker_id,
                link=link.id,
                heartbeat_s=self._heartbeat_s,
                max_frame_bytes=self._max_frame_bytes,
            )
        )
        self._broker.publish_event(events.WorkerJoined(link.worker, self.node, link.id))
        log.info("worker joined: %s link=%s gpu=%s×%d", hello.name, link.id, hello.gpu.name, hello.gpu.count)

    def _on_heartbeat(self, link: WorkerLink, heartbeat: Heartbeat) -> None:
        self._broker.publish_event(
            events.HeartbeatReceived(_worker(link).id, link.id, heartbeat.gpu, heartbeat.load.tokens_per_s)
        )

    def _on_step(self, link: WorkerLink, step: Step, started: list[TokenStream]) -> None:
        worker_id = _worker(link).id
        streams = self.streams
        for chunk in step.chunks:
            stream = streams.get(chunk.task)
            if stream is None:
                self._drop(link, chunk.task, chunk.attempt, "step")
                continue
            first = stream.first_token_at_s is None
            verdict = stream.push(worker_id, chunk.attempt, chunk.seq, chunk.texts)
            if verdict is not Verdict.ACCEPTED:
                self._refuse(link, verdict, chunk.task, chunk.attempt, "step")
            elif first:
                started.append(stream)
                crashpoint("first_token")

    def _on_finished(self, link: WorkerLink, finished: Finished) -> None:
        task_id, attempt, reason = finished.task, finished.attempt, finished.reason
        worker_id = _worker(link).id
        if not self._end_assignment(link, task_id, attempt):
            return
        generated_tokens = finished.generated_tokens
        if reason is CANCELLED:
            self._broker.publish_event(events.AttemptReleased(task_id, attempt, worker_id, generated_tokens))
            return
        if stream := self.streams.get(task_id):
            stream.finish(worker_id, attempt, reason, generated_tokens)
        elif probe := probes.number_of(task_id):
            self._broker.publish_event(events.ProbeAnswered(worker_id, link.id, probe, True))
            return
        # Told also when the stream is gone: the worker's slot is free, whoever was waiting.
        self._broker.publish_event(events.AttemptFinished(task_id, attempt, worker_id, generated_tokens))

    def _on_failed(self, link: WorkerLink, failed: Failed) -> None:
        if not self._end_assignment(link, failed.task, failed.attempt):
            return
        if probe := probes.number_of(failed.task):
            self._broker.publish_event(events.ProbeAnswered(_worker(link).id, link.id, probe, False))
        else:
            self._broker.publish_event(
                events.AttemptFailed(failed.task, failed.attempt, _worker(link).id, failed.code, failed.retryable)
            )

    def _assign(self, command: commands.AssignTask) -> None:
        link = self.links.get(command.link)
        if link is None:
            return  # its WorkerLost is on the way and will bring the task back
        task = command.task
        link.assigned.add((task.id, command.attempt))
        link.send(
            Assign(
                task=task.id,
                attempt=command.attempt,
                model=task.model,
                prompt_tokens=task.prompt_tokens,
                generation=task.generation,
                resume_from=command.resume_from,
            )
        )
        crashpoint("assign")
        if link.congested:
            self.hang_up(link, CloseCode.SILENT, "the worker does not read")

    def _end_assignment(self, link: WorkerLink, task_id: str, attempt: int) -> bool:
        """Strike an attempt off what the link's worker holds; False if it never held it."""
        try:
            link.assigned.remove((task_id, attempt))
        except KeyError:
            self._drop(link, task_id, attempt, "end")
            return False
        return True

    def _refuse(self, link: WorkerLink, verdict: Verdict, task_id: str, attempt: int, kind: str) -> None:
        match verdict:
            case Verdict.GAP:
                self.hang_up(link, CloseCode.BAD_FRAME, "tokens are missing: seq is ahead of what was sent")
            case Verdict.SURPLUS:
                self.hang_up(link, CloseCode.BAD_FRAME, "more tokens than max_tokens")
            case Verdict.FOREIGN:
                self.hang_up(link, CloseCode.NOT_YOURS, "this attempt runs on another worker")
            case _:
                self._drop(link, task_id, attempt, kind)

    def _drop(self, link: WorkerLink, task_id: str, attempt: int, kind: str) -> None:
        """Count a message that fits nowhere. Late is natural, for a cancel takes time to arrive;
        about something that the worker does not hold, it is a fault of the worker."""
        if (task_id, attempt) in link.assigned:
            self.dropped[f"late {kind}"] += 1
        else:
            self.dropped[f"stray {kind}"] += 1
            if link.count_stray(time.monotonic()) > MAX_STRAYS_PER_MINUTE:
                self.hang_up(link, CloseCode.BAD_FRAME, "too many messages about tasks it does not hold")


def _worker(link: WorkerLink) -> WorkerSpec:
    """Return who is at the other end; the session lets nothing but a hello come first."""
    assert link.worker is not None
    return link.worker
