from __future__ import annotations

import pytest

from cluster.simulation.llms import LLMS, UnknownLlm, get_llm

OPEN = {"llama-2-7b", "llama-2-70b", "llama-3-8b", "llama-3-70b", "mistral-7b", "mixtral-8x7b"}
CLOSED = {"gpt-4", "gpt-4o", "gpt-3.5-turbo", "claude-3", "claude-3-opus", "claude-3-sonnet"}


def test_exactly_the_promised_ids_are_served() -> None:
    assert set(LLMS) == OPEN | CLOSED


def test_closed_models_say_whose_shape_they_borrow_and_open_ones_borrow_none() -> None:
    assert {card.id for card in LLMS.values() if card.stand_in} == CLOSED


def test_an_unknown_model_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(UnknownLlm, match=r"'gpt-5' is not known; choose among gpt-4, .*mixtral-8x7b"):
        get_llm("gpt-5")


@pytest.mark.parametrize(
    ("id", "kv_bytes"),
    [("llama-2-7b", 524_288), ("llama-2-70b", 327_680), ("llama-3-8b", 131_072), ("gpt-4", 73_728)],
)
def test_the_cache_of_a_token_is_that_of_the_published_shape(id: str, kv_bytes: int) -> None:
    assert get_llm(id).shape.kv_bytes_per_token(1) == kv_bytes


def test_key_value_heads_are_copied_when_there_are_more_gpus_than_heads() -> None:
    shape = get_llm("llama-3-8b").shape

    assert shape.kv_bytes_per_token(16) == shape.kv_bytes_per_token(8)


@pytest.mark.parametrize(
    ("id", "dtype", "gigabytes"),
    [
        ("llama-2-70b", "bf16", 138.0),
        ("llama-3-70b", "fp8", 72.7),
        ("mixtral-8x7b", "bf16", 93.4),
        ("gpt-4", "mxfp4", 65),
    ],
)
def test_weights_weigh_what_the_published_checkpoints_do(id: str, dtype: str, gigabytes: float) -> None:
    assert get_llm(id).shape.weights_bytes(dtype) / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_a_large_batch_reads_every_expert_and_a_single_token_only_its_own() -> None:
    shape = get_llm("mixtral-8x7b").shape

    assert shape.experts_touched(1) == pytest.approx(2)
    assert shape.experts_touched(100) == pytest.approx(8, rel=1e-6)
