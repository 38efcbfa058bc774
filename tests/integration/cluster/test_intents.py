"""What operators want of workers: written by services, read by the gateways."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.models import Worker
from cluster.selectors import Intents, get_intents, list_evicted_links
from cluster.services import cordon_worker, drain_worker, evict_worker, record_worker_joined, uncordon_worker
from tests.factories import make_worker_spec

pytestmark = pytest.mark.django_db


def join(worker_id: str = "wrk_1", link: str = "lnk_1") -> None:
    record_worker_joined(spec=make_worker_spec(id=worker_id), token_id=None, link=link)


def test_nothing_is_wanted_of_a_worker_that_just_came() -> None:
    join()

    assert get_intents() == Intents()
    assert list_evicted_links(["wrk_1"]) == set()


def test_intents_are_told_apart_and_the_last_one_counts() -> None:
    for worker_id in ("wrk_1", "wrk_2", "wrk_3"):
        join(worker_id)

    cordon_worker(worker_id="wrk_1")
    cordon_worker(worker_id="wrk_2")
    drain_worker(worker_id="wrk_2")

    assert get_intents() == Intents(cordoned=frozenset({"wrk_1"}), draining=frozenset({"wrk_2"}))
    uncordon_worker(worker_id="wrk_1")
    uncordon_worker(worker_id="wrk_2")
    assert get_intents() == Intents()


@pytest.mark.parametrize("want", [cordon_worker, drain_worker, evict_worker])
def test_wanting_the_same_twice_is_no_news_and_an_unknown_worker_is_none(want: Callable[..., bool]) -> None:
    join()

    assert want(worker_id="wrk_1") is True
    assert want(worker_id="wrk_1") is False
    assert want(worker_id="wrk_unknown") is False


def test_an_intent_outlives_the_link_it_was_set_on() -> None:
    join(link="lnk_1")
    cordon_worker(worker_id="wrk_1")

    join(link="lnk_2")

    assert get_intents().cordoned == {"wrk_1"}


def test_an_eviction_is_about_one_link_and_spares_the_next() -> None:
    join(link="lnk_1")
    evict_worker(worker_id="wrk_1")
    assert list_evicted_links(["wrk_1", "wrk_2"]) == {"lnk_1"}
    assert list_evicted_links(["wrk_2"]) == list_evicted_links([]) == set()

    join(link="lnk_2")

    assert list_evicted_links(["wrk_1"]) == set()
    assert evict_worker(worker_id="wrk_1") is True
    assert list_evicted_links(["wrk_1"]) == {"lnk_2"}


def test_a_worker_that_was_never_linked_here_cannot_be_evicted() -> None:
    join(link="")

    assert evict_worker(worker_id="wrk_1") is False
    assert Worker.objects.get().evict_link == ""
