from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.simulation.fleet import DEFAULT_FLEET, FleetWorker
from cluster.simulation.hardware import get_gpu
from cluster.simulation.kvcache import DoesNotFit, KvPool, plan_memory
from cluster.simulation.llms import LLMS, get_llm

H100, RTX4090 = get_gpu("H100"), get_gpu("RTX4090")


@pytest.mark.parametrize(
    ("llm", "gpu", "tp", "tokens"),
    [
        ("llama-3-8b", "A100", 1, 453_000),
        ("llama-3-8b", "RTX4090", 1, 43_000),
        ("llama-2-70b", "A100", 4, 500_000),
        ("llama-2-70b", "H100", 8, 1_420_000),
    ],
)
def test_the_pool_holds_as_many_tokens_as_predicted(llm: str, gpu: str, tp: int, tokens: int) -> None:
    plan = plan_memory([get_llm(llm)], get_gpu(gpu), gpus=tp)

    assert plan.kv_bytes / plan.models[0].kv_bytes_per_token == pytest.approx(tokens, rel=0.05)


def test_the_pool_holds_as_many_tokens_as_vllm_reported_on_an_h100() -> None:
    plan = plan_memory([get_llm("llama-2-7b")], H100)

    assert plan.kv_bytes / plan.models[0].kv_bytes_per_token == pytest.approx(119_408, rel=0.05)


def test_models_of_one_worker_share_its_memory() -> None:
    one = plan_memory([get_llm("llama-3-8b")], H100)

    both = plan_memory([get_llm("llama-3-8b"), get_llm("mistral-7b")], H100)

    assert both.kv_bytes == one.kv_bytes - get_llm("mistral-7b").shape.weights_bytes("bf16")
    assert both.weights_bytes + both.kv_bytes < both.vram_bytes


def test_replicas_multiply_weights_and_cache() -> None:
    one = plan_memory([get_llm("llama-3-8b")], H100, gpus=2, tp=2)

    four = plan_memory([get_llm("llama-3-8b")], H100, gpus=8, tp=2)

    assert four.replicas == 4
    assert (four.weights_bytes, four.kv_bytes) == (4 * one.weights_bytes, 4 * one.kv_bytes)


def test_a_context_longer_than_the_pool_is_cut_to_it() -> None:
    roomy = plan_memory([get_llm("claude-3")], H100, gpus=8)
    tight = plan_memory([get_llm("claude-3")], H100, gpus=1)

    assert roomy.models[0].context_tokens == 200_000
    assert tight.models[0].context_tokens == tight.kv_bytes // 327_680 < 20_000


def test_a_refusal_shows_the_arithmetic_and_what_would_fit() -> None:
    with pytest.raises(DoesNotFit) as refusal:
        plan_memory([get_llm("llama-2-70b")], H100)

    text = str(refusal.value)
    assert "llama-2-70b 138.0 GB (bf16)" in text
    assert "138.0 GB per GPU" in text
    assert "usable are 76.3 GB of 85.9 GB" in text
    assert "What would fit: --gpus 2 --tp 2 or --dtype fp8." in text


def test_what_a_refusal_suggests_does_fit() -> None:
    assert plan_memory([get_llm("llama-2-70b")], H100, gpus=2, tp=2)
    assert plan_memory([get_llm("llama-2-70b")], H100, dtype="fp8")


def test_a_refusal_names_another_gpu_when_no_flag_would_help() -> None:
    with pytest.raises(DoesNotFit, match="What would fit: --gpu B200 --gpus 8 --tp 8"):
        plan_memory([get_llm("llama-2-70b"), get_llm("llama-3-70b"), get_llm("claude-3")], RTX4090)


def test_a_refusal_suggests_fewer_models_when_nothing_holds_them_all() -> None:
    with pytest.raises(DoesNotFit, match="Serve fewer models on this worker"):
        plan_memory(list(LLMS.values()) * 2, RTX4090)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gpus": 4, "tp": 3}, "--gpus 4 --tp 3"),
        ({"gpus": 0}, "--gpus 0"),
        ({"gpus": 3}, "32 attention heads, which --tp 3 does not divide"),
        ({"dtype": "fp7"}, "--dtype 'fp7' is not known; choose one of bf16"),
    ],
)
def test_impossible_arguments_are_refused_by_name(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(DoesNotFit, match=words):
        plan_memory([get_llm("llama-3-8b")], H100, **arguments)  # type: ignore[arg-type]


def test_a_worker_without_models_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="name at least one with --model"):
        plan_memory([], H100)


@pytest.mark.parametrize("worker", DEFAULT_FLEET, ids=lambda worker: worker.name)
def test_every_worker_of_the_default_fleet_fits_with_room_for_a_batch(worker: FleetWorker) -> None:
    models = [get_llm(id) for id in worker.models]

    plan = plan_memory(models, get_gpu(worker.gpu), worker.gpus, worker.tp, worker.dtype)

    assert all(plan.kv_bytes // model.kv_bytes_per_token >= 15_000 for model in plan.models)
    assert all(model.context_tokens == model.card.context_tokens for model in plan.models)


def test_the_default_fleet_serves_every_model() -> None:
    assert {id for worker in DEFAULT_FLEET for id in worker.models} == set(LLMS)


def test_names_in_the_default_fleet_are_distinct() -> None:
    assert len({worker.name for worker in DEFAULT_FLEET}) == len(DEFAULT_FLEET)


def test_a_holder_cannot_reserve_twice() -> None:
    pool = KvPool(100)
    assert pool.reserve("a", 10)

    with pytest.raises(ValueError, match="'a' holds KV cache already"):
        pool.reserve("a", 10)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=40))
def test_a_pool_never_gives_more_than_it_has(actions: list[tuple[int, int]]) -> None:
    pool, held = KvPool(100), dict[int, int]()

    for holder, size_bytes in actions:
        if holder in held:
            pool.release(holder)
            del held[holder]
        elif pool.reserve(holder, size_bytes):
            held[holder] = size_bytes
        assert pool.reserved_bytes == sum(held.values()) <= 100
