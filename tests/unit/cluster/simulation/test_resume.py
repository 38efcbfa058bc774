"""An answer that two workers wrote is the answer that one would have written."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.domain import FinishReason, Generation, Message
from cluster.simulation.gpu import Ended, EngineSettings, SimulatedGpu
from cluster.simulation.hardware import get_gpu
from cluster.simulation.kvcache import plan_memory
from cluster.simulation.llms import get_llm
from cluster.simulation.text import natural_text, write

MODEL = "llama-3-8b"


def generation(**changes: object) -> Generation:
    return Generation(**{"messages": (Message("user", "hi"),), "max_tokens": 60, "seed": 3, **changes})  # type: ignore[arg-type]


def run(
    request: Generation, *, resume_from: int = 0, steps: int = 10**6, gpu: str = "H100", seed: int = 1
) -> tuple[list[int], list[str], Ended | None]:
    """Run an attempt beside another; return the `seq` of its chunks, its texts, and its end if it got there."""
    engine = SimulatedGpu(
        plan_memory([get_llm(MODEL)], get_gpu(gpu), 1, None), EngineSettings(capacity=4), Random(seed)
    )
    engine.add("other", 1, model=MODEL, prompt_tokens=7, generation=generation(seed=seed), now=0.0)
    engine.add("a", 1, model=MODEL, prompt_tokens=20, generation=request, resume_from=resume_from, now=0.0)
    now, seqs, texts = 0.0, list[int](), list[str]()
    while engine.busy and steps:
        now += engine.step(now)
        steps -= 1
        output = engine.flush()
        for new in output.tokens:
            if new.task == "a":
                seqs.append(new.seq)
                texts += new.texts
        for end in output.ended:
            if end.task == "a":
                return seqs, texts, end
    return seqs, texts, None


@settings(max_examples=80, deadline=None)
@given(data=st.data(), seed=st.integers(0, 40), max_tokens=st.integers(1, 80), steps=st.integers(0, 90))
def test_what_a_worker_had_sent_and_what_the_next_one_adds_are_the_whole(
    data: st.DataObject, seed: int, max_tokens: int, steps: int
) -> None:
    text = "".join(natural_text(MODEL, generation(seed=seed, max_tokens=max_tokens)))
    cuts = st.tuples(st.integers(0, min(400, len(text) - 1)), st.integers(1, 25)).map(lambda at: text[at[0] :][: at[1]])
    stops = data.draw(st.lists(cuts, max_size=2).map(tuple), label="stops")
    request = generation(seed=seed, max_tokens=max_tokens, stop=stops)
    script = write(MODEL, request)

    _, before, end = run(request, steps=steps)
    if end is not None:
        return
    seqs, after, end = run(request, resume_from=len(before), gpu="A6000", seed=2)

    assert before + after == list(script.texts)
    assert seqs[:1] in ([], [len(before)])
    assert end == Ended("a", 1, script.reason, script.length)


def test_text_that_was_held_back_when_a_worker_died_is_not_lost() -> None:
    request = generation(stop=("simulated: a small grammar wrote nothing",))
    _, before, _ = run(request, steps=7)
    assert before == ["This", " answer", " is"]  # seven tokens are generated, four may begin the stop string

    _, after, _ = run(request, resume_from=len(before))

    assert before + after == list(natural_text(MODEL, request))[:60]


def test_a_stop_string_is_found_though_its_beginning_was_sent_by_nobody() -> None:
    request = generation(stop=("simulated: a small",))
    _, before, _ = run(request, steps=5)

    _, after, end = run(request, resume_from=len(before))

    assert "".join(before + after) == "This answer is "
    assert end == Ended("a", 1, FinishReason.STOP, 7)


@pytest.mark.parametrize("resume_from", [60, 61, 10**6])
def test_nothing_is_left_to_say_beyond_the_end(resume_from: int) -> None:
    request = generation(seed=5)
    script = write(MODEL, request)
    assert script.length == 60

    assert run(request, resume_from=resume_from) == ([], [], Ended("a", 1, script.reason, 60))
