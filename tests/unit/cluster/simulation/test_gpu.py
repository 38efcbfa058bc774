"""The engine in virtual time: what a batch does, and what every attempt gets out of it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.domain import FinishReason, Generation, Message
from cluster.simulation.gpu import Ended, EngineSettings, Refused, SimulatedGpu
from cluster.simulation.hardware import get_gpu
from cluster.simulation.kvcache import plan_memory
from cluster.simulation.latency import LatencyModel, PrefillChunk
from cluster.simulation.llms import get_llm
from cluster.simulation.text import natural_text, write

SMOOTH = 0.15
"""Tolerance that covers the jitter of a step."""


class Bench:
    """Drives an engine through virtual time and keeps what comes out."""

    def __init__(self, *models: str, gpu: str = "H100", gpus: int = 1, tp: int | None = None, **engine: object) -> None:
        plan = plan_memory([get_llm(id) for id in models or ("llama-3-8b",)], get_gpu(gpu), gpus, tp)
        self.gpu = SimulatedGpu(plan, EngineSettings(**{"capacity": 256, **engine}), Random(1))  # type: ignore[arg-type]
        self.now = 0.0
        self.texts: dict[tuple[str, int], list[str]] = {}
        self.times: dict[tuple[str, int], list[float]] = {}
        self.ended: dict[tuple[str, int], Ended] = {}
        self.first_seq: dict[tuple[str, int], int] = {}

    def add(
        self,
        task: str,
        *,
        prompt: int = 100,
        resume_from: int = 0,
        model: str = "llama-3-8b",
        attempt: int = 1,
        **changes: object,
    ) -> Generation:
        request = generation(**changes)
        self.gpu.add(
            task, attempt, model=model, prompt_tokens=prompt, generation=request, resume_from=resume_from, now=self.now
        )
        return request

    def step(self) -> float:
        duration_s = self.gpu.step(self.now)
        self.now += duration_s
        self.collect()
        return duration_s

    def collect(self) -> None:
        output = self.gpu.flush()
        for new in output.tokens:
            key = (new.task, new.attempt)
            assert key not in self.ended, "tokens after the end"
            have = self.texts.setdefault(key, [])
            assert new.seq == self.first_seq.setdefault(key, new.seq) + len(have), "a gap or an overlap"
            have += new.texts
            self.times.setdefault(key, []).extend([self.now] * len(new.texts))
        for end in output.ended:
            assert (end.task, end.attempt) not in self.ended, "ended twice"
            self.ended[end.task, end.attempt] = end

    def run(self) -> None:
        while self.gpu.busy:
            self.step()


def generation(**changes: object) -> Generation:
    return Generation(**{"messages": (Message("user", "hi"),), "max_tokens": 50, "seed": 3, **changes})  # type: ignore[arg-type]


def test_an_attempt_emits_its_whole_text_and_ends_once() -> None:
    bench = Bench()
    request = bench.add("a", max_tokens=1200)

    bench.run()

    text = natural_text("llama-3-8b", request)
    assert bench.texts["a", 1] == list(text)
    assert bench.ended["a", 1] == Ended("a", 1, FinishReason.STOP, len(text))


def test_max_tokens_ends_with_length() -> None:
    bench = Bench()
    bench.add("a", max_tokens=5)

    bench.run()

    assert len(bench.texts["a", 1]) == 5
    assert bench.ended["a", 1] == Ended("a", 1, FinishReason.LENGTH, 5)


def test_the_first_token_comes_when_the_prompt_is_done_and_the_next_one_step_later() -> None:
    bench = Bench()
    bench.add("a", prompt=1024)

    first_s, second_s = bench.step(), bench.step()

    assert first_s == pytest.approx(0.024, rel=SMOOTH)
    assert second_s == pytest.approx(0.0073, rel=SMOOTH)
    assert bench.times["a", 1] == [first_s, first_s + second_s]


def test_a_long_prompt_is_read_in_chunks_while_others_decode() -> None:
    bench = Bench()
    bench.add("short", prompt=10)
    bench.step()
    bench.add("long", prompt=5_000)

    for _ in range(3):
        bench.step()

    assert len(bench.texts["short", 1]) == 4
    assert len(bench.texts["long", 1]) == 1


def test_decodes_leave_less_of_the_budget_to_prompts() -> None:
    bench = Bench()
    bench.add("short", prompt=10)
    bench.step()
    bench.add("long", prompt=2_048)

    bench.step()
    assert ("long", 1) not in bench.texts

    bench.step()
    assert len(bench.texts["long", 1]) == 1


def test_prompts_of_a_batch_share_one_step() -> None:
    bench = Bench()
    for task in "abcd":
        bench.add(task, prompt=500)

    bench.step()

    assert set(bench.texts) == {(task, 1) for task in "abcd"}


def test_a_batch_of_decodes_costs_little_more_than_one() -> None:
    one, many = Bench(), Bench()
    one.add("a", prompt=10)
    for n in range(32):
        many.add(f"t{n}", prompt=10)
    one.step()
    many.step()

    assert many.step() < 1.3 * one.step()


def test_two_models_of_one_worker_take_turns() -> None:
    both, alone = Bench("llama-3-8b", "mistral-7b"), Bench()
    both.add("a")
    both.add("b", model="mistral-7b")
    alone.add("a")
    both.step()
    alone.step()

    assert both.step() == pytest.approx(2 * alone.step(), rel=SMOOTH)


def test_replicas_share_the_batch() -> None:
    one, four = Bench("llama-2-7b"), Bench("llama-2-7b", gpus=4, tp=1)
    for bench in (one, four):
        for n in range(40):
            bench.add(f"t{n}", model="llama-2-7b", prompt=1_000, max_tokens=1_000)
        while len(bench.texts) < 40:
            bench.step()

    assert four.now < 0.4 * one.now
    assert four.step() < 0.8 * one.step()


def test_a_resumed_attempt_continues_the_same_text_and_reads_its_past_again() -> None:
    whole, rest = Bench(), Bench()
    whole.add("a", max_tokens=1200, prompt=10)
    rest.add("a", max_tokens=1200, prompt=10, attempt=2, resume_from=30)
    whole.run()

    first_s = rest.step()
    rest.run()

    expected = LatencyModel(get_llm("llama-3-8b").shape, get_gpu("H100"), 1, "bf16").step([PrefillChunk(40, 0)], 0, 0)
    assert rest.first_seq["a", 2] == 30
    assert rest.texts["a", 2] == whole.texts["a", 1][30:]
    assert rest.ended["a", 2].generated_tokens == whole.ended["a", 1].generated_tokens
    assert first_s == pytest.approx(expected.time_s, rel=SMOOTH)


def test_an_attempt_resumed_at_its_very_end_only_ends() -> None:
    bench = Bench()
    bench.add("a", max_tokens=5, resume_from=5)

    bench.run()

    assert bench.texts == {}
    assert bench.ended["a", 1] == Ended("a", 1, FinishReason.LENGTH, 5)


def test_a_stop_string_ends_the_attempt_at_the_token_that_completes_it() -> None:
    bench = Bench()
    bench.add("a", stop=("small grammar",))

    bench.run()

    assert "".join(bench.texts["a", 1]) == "This answer is simulated: a "
    assert bench.ended["a", 1] == Ended("a", 1, FinishReason.STOP, 8)


def test_a_cancelled_attempt_frees_everything_and_says_nothing_more() -> None:
    bench = Bench()
    bench.add("a")
    bench.add("b")
    for _ in range(5):
        bench.step()

    assert bench.gpu.cancel("a", 1) == 5
    bench.run()

    assert len(bench.texts["a", 1]) == 5
    assert set(bench.ended) == {("b", 1)}
    assert bench.gpu.read(bench.now).vram_kv_bytes == 0


def test_an_attempt_is_cancelled_in_the_step_that_would_have_ended_it() -> None:
    bench = Bench()
    bench.add("a", max_tokens=1)
    bench.add("b", max_tokens=1)
    bench.now += bench.gpu.step(bench.now)

    assert bench.gpu.cancel("a", 1) == 1
    assert bench.gpu.cancel("a", 1) is None

    bench.collect()
    assert set(bench.texts) == set(bench.ended) == {("b", 1)}


def test_cancelling_what_is_not_here_does_nothing() -> None:
    bench = Bench()
    bench.add("a")

    assert bench.gpu.cancel("b", 1) is None
    assert bench.gpu.cancel("a", 2) is None
    assert bench.gpu.running == 1


def test_an_attempt_is_cancelled_while_its_prompt_is_read_and_while_it_waits() -> None:
    bench = Bench(capacity=1)
    bench.add("long", prompt=5_000)
    bench.add("waiting")
    bench.step()

    assert bench.gpu.cancel("waiting", 1) == 0
    assert bench.gpu.cancel("long", 1) == 0
    assert not bench.gpu.busy
    assert bench.gpu.read(bench.now).vram_kv_bytes == 0


def test_clearing_drops_also_what_was_not_flushed() -> None:
    bench = Bench()
    bench.add("a", max_tokens=1)
    bench.add("b")
    bench.gpu.step(0.0)

    bench.gpu.clear()
    bench.collect()

    assert (bench.texts, bench.ended, bench.gpu.busy) == ({}, {}, False)


def test_no_more_run_at_once_than_the_capacity() -> None:
    bench = Bench(capacity=2)
    for task in "abc":
        bench.add(task, max_tokens=3)

    assert (bench.gpu.running, bench.gpu.waiting) == (2, 1)
    bench.run()
    assert set(bench.ended) == {("a", 1), ("b", 1), ("c", 1)}
    assert bench.times["c", 1][0] > bench.times["a", 1][-1]


def test_an_attempt_waits_while_the_cache_is_taken_and_is_served_in_turn() -> None:
    bench = Bench("llama-2-7b", gpu="RTX4090")
    half_tokens = bench.gpu.plan.kv_bytes // 524_288 // 2
    for task in "abc":
        bench.add(task, model="llama-2-7b", prompt=half_tokens - 100, max_tokens=20)

    assert (bench.gpu.running, bench.gpu.waiting) == (2, 1)
    bench.run()
    assert len(bench.ended) == 3


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    bench = Bench("llama-2-7b", gpu="RTX4090")

    with pytest.raises(Refused, match="20000 prompt tokens and max_tokens 50 need 10,511,974,400 bytes") as refusal:
        bench.add("a", model="llama-2-7b", prompt=20_000)

    assert refusal.value.code == "kv_cache_too_small"
    assert not bench.gpu.busy


def test_a_model_that_is_not_loaded_is_refused() -> None:
    with pytest.raises(Refused, match="'gpt-4' is not on this worker; it serves llama-3-8b") as refusal:
        Bench().add("a", model="gpt-4")

    assert refusal.value.code == "model_not_served"


def test_an_attempt_given_twice_runs_once() -> None:
    bench = Bench()
    bench.add("a", max_tokens=4)
    bench.add("a", max_tokens=4)

    bench.run()

    assert len(bench.texts["a", 1]) == 4


def test_fixed_times_replace_the_computed_ones() -> None:
    bench = Bench(ttft_s=0.2, itl_s=0.01)
    bench.add("a", prompt=5_000, max_tokens=4)

    bench.run()

    assert bench.times["a", 1] == pytest.approx([0.2, 0.21, 0.22, 0.23])


def test_a_fixed_time_to_first_token_holds_for_each_arrival() -> None:
    bench = Bench(ttft_s=0.2, itl_s=0.01)
    bench.add("a")
    bench.now = 0.15
    bench.add("b")
    bench.now = 0.0

    bench.run()

    assert bench.times["a", 1][0] == pytest.approx(0.2)
    assert bench.times["b", 1][0] == pytest.approx(0.35, abs=0.011)


def test_a_fixed_token_time_leaves_the_first_token_to_the_cards() -> None:
    bench = Bench(itl_s=0.5)
    bench.add("a", prompt=1024, max_tokens=3)

    bench.run()

    first, second, third = bench.times["a", 1]
    assert first == pytest.approx(0.024, rel=SMOOTH)
    assert (second - first, third - second) == pytest.approx((0.5, 0.5))


def test_a_fixed_time_to_first_token_of_zero_is_immediate() -> None:
    bench = Bench(ttft_s=0.0)
    bench.add("a", max_tokens=2)

    assert bench.step() == 0.0
    assert len(bench.texts["a", 1]) == 1


def test_gauges_rise_under_load_and_fall_at_rest() -> None:
    bench = Bench(gpus=2)
    for n in range(64):
        bench.add(f"t{n}", prompt=500, max_tokens=400)
    while len(bench.ended) < 20:
        bench.step()
    loaded = bench.gpu.read(bench.now)
    bench.run()
    bench.gpu.read(bench.now)

    rested = bench.gpu.read(bench.now + 300)

    assert loaded.utilization == pytest.approx(1.0)
    assert 2 * 115 < loaded.power_w <= 2 * 700
    assert loaded.vram_kv_bytes > 44 * 500 * 131_072
    assert rested.utilization == rested.vram_kv_bytes == 0
    assert rested.power_w == pytest.approx(2 * 115)
    assert rested.temperature_c < loaded.temperature_c
    assert loaded.vram_weights_bytes + bench.gpu.plan.kv_bytes < loaded.vram_total_bytes


def test_equal_seeds_give_equal_runs() -> None:
    ends = []
    for _ in range(2):
        bench = Bench()
        bench.add("a", max_tokens=100)
        bench.run()
        ends.append(bench.now)

    assert ends[0] == ends[1]


def test_steps_without_a_flush_lose_nothing() -> None:
    bench, now = Bench(), 0.0
    request = bench.add("a", max_tokens=1200, stop=("matters",))
    while bench.gpu.busy:
        now += bench.gpu.step(now)

    bench.collect()

    assert bench.texts["a", 1] == list(write("llama-3-8b", request).texts)
    assert ("a", 1) in bench.ended


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 3_000), st.integers(1, 60), st.integers(0, 70)),
            st.tuples(st.just("cancel"), st.integers(0, 12)),
            st.tuples(st.just("step"), st.integers(1, 20)),
        ),
        max_size=30,
    )
)
def test_whatever_happens_texts_are_whole_and_memory_comes_back(actions: list[tuple[str, int, int, int]]) -> None:
    bench = Bench("llama-3-8b", "mistral-7b", gpu="A6000", capacity=3)
    requests: dict[str, tuple[Generation, int]] = {}
    cancelled: set[str] = set()

    for word, *numbers in actions:
        match word:
            case "add":
                prompt, max_tokens, resume_from = numbers
                task = f"t{len(requests)}"
                model = "mistral-7b" if len(requests) % 2 else "llama-3-8b"
                stop = ("the",) if prompt % 3 == 0 else ()
                request = bench.add(
                    task,
                    model=model,
                    prompt=prompt,
                    max_tokens=max_tokens,
                    resume_from=resume_from,
                    stop=stop,
                    seed=prompt,
                )
                requests[task] = (request, resume_from)
            case "cancel":
                if bench.gpu.cancel(f"t{numbers[0]}", 1) is not None:
                    cancelled.add(f"t{numbers[0]}")
            case "step":
                for _ in range(numbers[0]):
                    if bench.gpu.busy:
                        bench.step()
                assert bench.gpu.running <= 3
                assert bench.gpu.read(bench.now).vram_kv_bytes <= bench.gpu.plan.kv_bytes
    bench.run()

    assert {task for task, _ in bench.ended} == set(requests) - cancelled
    assert bench.gpu.read(bench.now).vram_kv_bytes == 0
    for number, (task, (request, resume_from)) in enumerate(requests.items()):
        whole = list(write("mistral-7b" if number % 2 else "llama-3-8b", request).texts)[resume_from:]
        got = bench.texts.get((task, 1), [])
        assert got == whole if task not in cancelled else got == whole[: len(got)]
