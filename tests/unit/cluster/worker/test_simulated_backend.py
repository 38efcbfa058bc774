from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from cluster.domain import FinishReason, Generation, Message
from cluster.protocol.messages import Assign, Failed, Finished, Step
from cluster.simulation.text import TEXT_VERSION, write
from cluster.worker.backends import simulated
from cluster.worker.backends.base import Backend, Capabilities, UnableToLoad
from cluster.worker.backends.simulated import SimulatedBackend, SimulatedOptions

Key = tuple[str, int]


class Recorder:
    """Stands where the agent stands: takes what is emitted and lets a test wait for it."""

    def __init__(self, backend: SimulatedBackend) -> None:
        self.backend = backend
        self.batches: list[Sequence[Step | Finished | Failed]] = []
        self.texts: dict[Key, list[str]] = {}
        self.ends: dict[Key, Finished | Failed] = {}
        self._changed = asyncio.Event()

    def emit(self, messages: Sequence[Step | Finished | Failed]) -> None:
        assert messages, "an empty batch"
        self.batches.append(messages)
        for message in messages:
            if isinstance(message, Step):
                for chunk in message.chunks:
                    assert (chunk.task, chunk.attempt) not in self.ends, "tokens after the end"
                    self.texts.setdefault((chunk.task, chunk.attempt), []).extend(chunk.texts)
            else:
                assert (message.task, message.attempt) not in self.ends, "ended twice"
                self.ends[message.task, message.attempt] = message
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def end_of(self, task: str, attempt: int = 1) -> Finished | Failed:
        await self.until(lambda: (task, attempt) in self.ends)
        return self.ends[task, attempt]


def assignment(task: str, *, resume_from: int = 0, attempt: int = 1, **changes: object) -> Assign:
    values: dict[str, object] = {"messages": (Message("user", "hi"),), "max_tokens": 50, "seed": 5, **changes}
    return Assign(
        task=task,
        attempt=attempt,
        model="llama-3-8b",
        prompt_tokens=20,
        generation=Generation(**values),  # type: ignore[arg-type]
        resume_from=resume_from,
    )


Start = Callable[..., Awaitable[Recorder]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    backends: list[SimulatedBackend] = []

    async def begin(**options: object) -> Recorder:
        backend = SimulatedBackend(SimulatedOptions(**{"models": ("llama-3-8b",), "speed": 0, **options}))  # type: ignore[arg-type]
        backends.append(backend)
        await backend.load()
        recorder = Recorder(backend)
        backend.start(recorder.emit)
        return recorder

    yield begin
    for backend in backends:
        await backend.stop()


async def load(**options: object) -> Capabilities:
    backend: Backend = SimulatedBackend(SimulatedOptions(**{"models": ("llama-3-8b",), **options}))  # type: ignore[arg-type]
    return await backend.load()


async def test_it_says_what_it_holds() -> None:
    held = await load(models=("llama-3-8b", "mistral-7b"), gpu="a6000")

    assert (held.gpu.name, held.gpu.count) == ("A6000", 1)
    assert [offer.id for offer in held.models] == ["llama-3-8b", "mistral-7b"]
    assert held.models[0].kv_bytes_per_token == 131_072
    assert held.capacity == held.kv_bytes // (131_072 * 1_024)
    assert held.resumes == (TEXT_VERSION,)
    assert held.simulated


async def test_a_model_named_twice_is_loaded_once() -> None:
    assert len((await load(models=("llama-3-8b", "llama-3-8b"))).models) == 1


async def test_capacity_is_bounded_by_what_an_engine_batches() -> None:
    assert (await load(models=("gpt-3.5-turbo",))).capacity == 256


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpu": "H1000"}, "GPU 'H1000' is not known"),
        ({"models": ("gpt-5",)}, "Model 'gpt-5' is not known"),
        ({"models": ("llama-2-70b",)}, "What would fit: --gpus 2 --tp 2 or --dtype fp8"),
        ({"models": ()}, "name at least one with --model"),
        ({"speed": 0.05}, "--speed 0.05: use 0 for as fast as it goes, or at least 0.1"),
        ({"speed": float("nan")}, "--speed nan"),
        ({"ttft_ms": -1.0}, "--ttft-ms -1"),
        ({"itl_ms": float("inf")}, "--itl-ms inf"),
        ({"load_time_s": -1.0}, "--load-time -1"),
        ({"capacity": 0}, "--capacity 0"),
    ],
)
async def test_what_cannot_be_meant_is_refused_in_words_for_the_operator(
    options: dict[str, object], words: str
) -> None:
    with pytest.raises(UnableToLoad, match=words):
        await load(**options)


async def test_an_attempt_gets_its_text_and_one_end(start: Start) -> None:
    recorder = await start()
    assign = assignment("a")

    recorder.backend.assign(assign)
    end = await recorder.end_of("a")

    script = write("llama-3-8b", assign.generation)
    assert recorder.texts["a", 1] == list(script.texts)
    assert isinstance(end, Finished)
    assert (end.reason, end.generated_tokens) == (script.reason, script.length)
    assert end.ttft_ms > 0


async def test_a_batch_has_one_step_and_the_ends_after_it(start: Start) -> None:
    recorder = await start()
    for n in range(20):
        recorder.backend.assign(assignment(f"t{n}", seed=n))
    await recorder.until(lambda: len(recorder.ends) == 20)

    for batch in recorder.batches:
        assert all(isinstance(message, Finished) for message in batch[1:])
        if isinstance(batch[0], Step):
            chunks = [(chunk.task, chunk.attempt) for chunk in batch[0].chunks]
            assert len(chunks) == len(set(chunks))


async def test_a_resumed_attempt_starts_at_the_token_asked_for(start: Start) -> None:
    recorder = await start()
    assign = assignment("a", resume_from=20)

    recorder.backend.assign(assign)
    await recorder.end_of("a")

    assert isinstance(first := recorder.batches[0][0], Step)
    assert first.chunks[0].seq == 20
    assert recorder.texts["a", 1] == list(write("llama-3-8b", assign.generation).texts)[20:]


async def test_work_may_come_before_the_loop_has_turned_and_after_it_was_idle(start: Start) -> None:
    recorder = await start()
    for task in "abc":
        recorder.backend.assign(assignment(task))
        await recorder.end_of(task)

    assert set(recorder.ends) == {("a", 1), ("b", 1), ("c", 1)}


async def test_an_attempt_given_twice_runs_once(start: Start) -> None:
    recorder = await start()
    recorder.backend.assign(assignment("a"))
    recorder.backend.assign(assignment("a"))
    recorder.backend.assign(assignment("b"))

    await recorder.end_of("b")

    assert len(recorder.texts["a", 1]) == 50


async def test_a_cancel_is_answered_at_once_and_nothing_follows(start: Start) -> None:
    recorder = await start(speed=1.0, ttft_ms=0.0, itl_ms=5.0)
    recorder.backend.assign(assignment("a"))
    await recorder.until(lambda: ("a", 1) in recorder.texts)

    recorder.backend.cancel("a", 1)

    end = recorder.ends["a", 1]
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.CANCELLED
    assert len(recorder.texts["a", 1]) <= end.generated_tokens < 50
    recorder.backend.assign(assignment("b", max_tokens=2))
    await recorder.end_of("b")
    assert recorder.backend.read()[1].running == 0


@pytest.mark.parametrize("max_tokens", [1, 50])
@pytest.mark.parametrize("options", [{"ttft_ms": 60_000.0, "itl_ms": 0.0}, {"ttft_ms": 0.0, "itl_ms": 60_000.0}])
async def test_a_cancel_does_not_wait_for_the_step_under_way(
    start: Start, options: dict[str, float], max_tokens: int
) -> None:
    recorder = await start(speed=1.0, **options)
    if options["itl_ms"]:
        recorder.backend.assign(assignment("neighbour"))
        await recorder.until(lambda: ("neighbour", 1) in recorder.texts)
    recorder.backend.assign(assignment("a", max_tokens=max_tokens))
    for _ in range(5):
        await asyncio.sleep(0)

    recorder.backend.cancel("a", 1)

    end = recorder.ends["a", 1]
    assert isinstance(end, Finished) and end.reason is FinishReason.CANCELLED
    assert ("a", 1) not in recorder.texts
    assert recorder.backend.read()[1].waiting == 0


async def test_a_cancel_is_noticed_at_full_speed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    # Bursts of one step or two: otherwise a whole answer may be computed before the cancel comes.
    monkeypatch.setattr(simulated, "MAX_FRAME_TOKENS", 64)
    recorder = await start()
    for n in range(64):
        recorder.backend.assign(assignment(f"t{n}", seed=n, max_tokens=1200))
    await recorder.until(lambda: bool(recorder.texts))

    lengths = {
        f"t{n}": write("llama-3-8b", assignment("", seed=n, max_tokens=1200).generation).length for n in range(64)
    }
    longest = max(lengths, key=lambda task: lengths[task])
    recorder.backend.cancel(longest, 1)

    await recorder.until(lambda: len(recorder.ends) == 64)
    end = recorder.ends[longest, 1]
    assert isinstance(end, Finished) and end.reason is FinishReason.CANCELLED
    assert end.generated_tokens < lengths[longest]


async def test_cancelling_the_unknown_is_not_answered(start: Start) -> None:
    recorder = await start()

    recorder.backend.cancel("nobody", 1)

    assert recorder.batches == []


async def test_aborted_attempts_are_never_heard_of_again(start: Start) -> None:
    recorder = await start()
    recorder.backend.assign(assignment("a"))
    recorder.backend.assign(assignment("b"))

    recorder.backend.abort_all()
    recorder.backend.assign(assignment("a", attempt=2))
    await recorder.end_of("a", 2)

    assert set(recorder.texts) == set(recorder.ends) == {("a", 2)}


async def test_what_the_engine_refuses_fails_with_a_word_and_a_reason(start: Start) -> None:
    recorder = await start(gpu="RTX4090")

    recorder.backend.assign(assignment("a", max_tokens=100_000))

    failed = recorder.ends["a", 1]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable) == ("kv_cache_too_small", True)
    assert "max_tokens 100000" in failed.message


async def test_a_broken_engine_fails_its_attempts_and_is_replaced(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = await start()
    monkeypatch.setattr(recorder.backend._gpu, "step", lambda now: 1 / 0)
    recorder.backend.assign(assignment("a"))

    failed = await recorder.end_of("a")
    recorder.backend.assign(assignment("a", attempt=2))
    finished = await recorder.end_of("a", 2)

    assert isinstance(failed, Failed) and failed.code == "engine_error"
    assert isinstance(finished, Finished)
    assert "The simulated engine failed" in caplog.text


async def test_tokens_come_no_sooner_than_the_engine_says(start: Start) -> None:
    recorder = await start(speed=2.0, ttft_ms=40.0, itl_ms=4.0)
    began = time.monotonic()

    recorder.backend.assign(assignment("a", max_tokens=11))
    end = await recorder.end_of("a")

    assert time.monotonic() - began >= (0.040 + 10 * 0.004) / 2
    assert isinstance(end, Finished) and end.ttft_ms > 19


async def test_a_first_token_does_not_wait_for_the_step_after_it(start: Start) -> None:
    recorder = await start(speed=1.0, ttft_ms=0.0, itl_ms=60_000.0)

    recorder.backend.assign(assignment("a"))
    await recorder.until(lambda: ("a", 1) in recorder.texts)

    assert recorder.texts["a", 1] == ["This"]


async def test_a_late_loop_catches_up_instead_of_shifting_the_schedule(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated, "BURST_S", 1.0)
    recorder = await start(speed=1.0, ttft_ms=0.0, itl_ms=5.0)
    recorder.backend.assign(assignment("a"))
    await recorder.until(lambda: ("a", 1) in recorder.texts)
    tokens, batches = len(recorder.texts["a", 1]), len(recorder.batches)

    late_until = time.monotonic() + 0.1
    while time.monotonic() < late_until:
        pass
    await recorder.until(lambda: len(recorder.texts["a", 1]) >= tokens + 19)

    assert len(recorder.batches) - batches <= 3


async def test_above_real_time_tokens_of_one_tick_travel_together(start: Start) -> None:
    recorder = await start(speed=50.0, ttft_ms=0.0, itl_ms=5.0)

    recorder.backend.assign(assignment("a"))
    await recorder.end_of("a")

    assert len(recorder.batches) < 50 / 5


async def test_an_idle_engine_takes_no_steps(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = await start()
    recorder.backend.assign(assignment("a"))
    await recorder.end_of("a")
    steps: list[float] = []
    monkeypatch.setattr(recorder.backend._gpu, "step", steps.append)

    for _ in range(100):
        await asyncio.sleep(0)

    assert steps == []


async def test_gauges_show_the_work_and_then_the_rest(start: Start) -> None:
    recorder = await start()
    recorder.backend.assign(assignment("a"))
    await recorder.end_of("a")

    reading, load = recorder.backend.read()
    await asyncio.sleep(0)
    rested, idle = recorder.backend.read()

    assert reading.utilization > 0.5
    assert load.tokens_per_s > 0
    assert rested.utilization < 0.5
    assert (idle.tokens_per_s, idle.running, idle.waiting) == (0.0, 0, 0)
    assert reading.vram_weights_bytes == pytest.approx(16.06e9)


async def test_a_stopped_backend_is_silent(start: Start) -> None:
    recorder = await start(speed=1.0, ttft_ms=0.0, itl_ms=5.0)
    recorder.backend.assign(assignment("a"))

    await recorder.backend.stop()
    await recorder.backend.stop()

    assert recorder.ends == {}
    assert recorder.backend.read()[1].running == 0
