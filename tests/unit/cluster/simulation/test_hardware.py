from __future__ import annotations

import pytest

from cluster.simulation.hardware import GPUS, UnknownGpu, get_gpu


@pytest.mark.parametrize("name", ["RTX4090", "4090", "rtx 4090", "RTX-4090"])
def test_a_card_is_found_however_its_name_is_spelled(name: str) -> None:
    assert get_gpu(name).name == "RTX4090"


def test_every_card_is_found_by_its_own_name() -> None:
    assert all(get_gpu(name.lower()) is card for name, card in GPUS.items())


def test_an_unknown_card_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(UnknownGpu, match=r"'H1000' is not known; choose one of .*H100.*RTX4090"):
        get_gpu("H1000")


def test_every_card_idles_below_its_limit() -> None:
    assert all(0 < card.idle_w < card.tdp_w and card.idle_c < card.load_c for card in GPUS.values())
