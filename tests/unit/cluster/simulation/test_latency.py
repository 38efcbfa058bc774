"""Expected times are predictions of the reference implementation (vLLM profile, bf16), in milliseconds."""

from __future__ import annotations

import pytest

from cluster.simulation.hardware import get_gpu
from cluster.simulation.latency import LatencyModel, PrefillChunk
from cluster.simulation.llms import get_llm


def latency(llm: str, gpu: str, tp: int = 1, dtype: str = "bf16") -> LatencyModel:
    return LatencyModel(get_llm(llm).shape, get_gpu(gpu), tp, dtype)


def prefill_ms(model: LatencyModel, tokens: int) -> float:
    return model.step([PrefillChunk(tokens, 0)], 0, 0).time_s * 1000


def decode_ms(model: LatencyModel, batch: int) -> float:
    return model.step([], batch, batch * 1024).time_s * 1000


@pytest.mark.parametrize(
    ("gpu", "prefill", "alone", "batch_of_32"),
    [("A100", 70, 11.6, 14.2), ("H100", 24, 7.3, 8.9), ("RTX4090", 111, 19.1, 24.6), ("A6000", 176, 23.5, 30.8)],
)
def test_llama_3_8b_takes_the_predicted_times(gpu: str, prefill: float, alone: float, batch_of_32: float) -> None:
    model = latency("llama-3-8b", gpu)

    assert prefill_ms(model, 1024) == pytest.approx(prefill, rel=0.03)
    assert decode_ms(model, 1) == pytest.approx(alone, rel=0.03)
    assert decode_ms(model, 32) == pytest.approx(batch_of_32, rel=0.03)


@pytest.mark.parametrize(
    ("gpu", "tp", "prefill", "alone", "batch_of_32"),
    [
        ("A100", 2, 182, 49.7, 53.6),
        ("A100", 4, 107, 26.9, 29.4),
        ("A100", 8, 69, 15.6, 17.4),
        ("H100", 2, 67, 30.4, 32.7),
        ("H100", 4, 43, 17.1, 18.6),
        ("H100", 8, 32, 10.6, 11.7),
        ("A6000", 4, 397, 56, 72),
        ("A6000", 8, 536, 32, 60),
        ("RTX4090", 8, 1015, 27, 87),
    ],
)
def test_llama_2_70b_takes_the_predicted_times_on_several_gpus(
    gpu: str, tp: int, prefill: float, alone: float, batch_of_32: float
) -> None:
    model = latency("llama-2-70b", gpu, tp)

    assert prefill_ms(model, 512) == pytest.approx(prefill, rel=0.12)
    assert decode_ms(model, 1) == pytest.approx(alone, rel=0.03)
    assert decode_ms(model, 32) == pytest.approx(batch_of_32, rel=0.08)


def test_a_mixed_step_reads_the_weights_once() -> None:
    model = latency("llama-3-8b", "H100")
    apart = model.step([PrefillChunk(64, 0)], 0, 0).time_s + model.step([], 32, 32_768).time_s

    together = model.step([PrefillChunk(64, 0)], 32, 32_768).time_s

    assert together < 0.7 * apart


def test_fp8_weights_decode_faster_than_bf16_even_without_fp8_tensor_cores() -> None:
    assert decode_ms(latency("llama-3-8b", "A100", dtype="fp8"), 1) < 0.75 * decode_ms(latency("llama-3-8b", "A100"), 1)


def test_fp8_prefill_is_faster_only_where_tensor_cores_have_it() -> None:
    def gain(gpu: str) -> float:
        return prefill_ms(latency("llama-3-8b", gpu), 2048) / prefill_ms(latency("llama-3-8b", gpu, dtype="fp8"), 2048)

    assert gain("H100") > 1.4
    assert gain("A100") == pytest.approx(1.0, abs=0.05)


def test_a_step_never_beats_the_data_sheet() -> None:
    model = latency("llama-3-8b", "H100")
    for cost in (model.step([PrefillChunk(2048, 0)], 0, 0), model.step([], 1, 1024), model.step([], 256, 256 * 4096)):
        assert cost.flops / cost.time_s < model.peak_flops
        assert cost.bytes / cost.time_s < model.peak_bytes_s


def test_a_prompt_costs_the_same_compute_whole_or_in_chunks() -> None:
    model = latency("llama-3-8b", "H100")
    whole = model.step([PrefillChunk(2000, 0)], 0, 0).flops
    head = 2 * 128_256 * 4096

    halves = model.step([PrefillChunk(1000, 0)], 0, 0).flops + model.step([PrefillChunk(1000, 1000)], 0, 0).flops

    assert halves - head == pytest.approx(whole, rel=1e-9)
