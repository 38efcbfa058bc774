from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from accounts.models import User
from inference.models import KeyTotal
from inference.selectors import Dimension, KeyUse, Period, get_usage, list_key_totals, list_usage
from tests.unit.inference.test_selectors import NINE, NOON, TEN, make_usage

pytestmark = pytest.mark.django_db

LAST_MONTH = datetime(2026, 10, 31, 23, tzinfo=UTC)


def test_usage_is_told_by_hour_day_and_month(alice: User) -> None:
    make_usage(alice, LAST_MONTH, requests=1)
    make_usage(alice, NINE, requests=2)
    make_usage(alice, TEN, requests=4)

    def told_by(period: Period) -> list[tuple[datetime, int]]:
        lines = list_usage(since=LAST_MONTH, until=NOON, period=period)
        return [(line["start"], line["sum_requests"]) for line in lines]

    assert told_by(Period.HOUR) == [(LAST_MONTH, 1), (NINE, 2), (TEN, 4)]
    assert told_by(Period.DAY) == [(LAST_MONTH.replace(hour=0), 1), (NINE.replace(hour=0), 6)]
    assert told_by(Period.MONTH) == [(datetime(2026, 10, 1, tzinfo=UTC), 1), (datetime(2026, 11, 1, tzinfo=UTC), 6)]


def test_usage_is_told_apart_by_model_key_and_user(alice: User, bob: User) -> None:
    make_usage(alice, requests=1, key_id=7)
    make_usage(alice, TEN, requests=2, key_id=7)
    make_usage(alice, requests=4, key_id=7, model="gpt-4o")
    make_usage(bob, requests=8, key_id=9)

    def told_by(*by: Dimension) -> list[tuple[object, ...]]:
        lines = list_usage(since=NINE, until=NOON, period=Period.DAY, by=by)
        columns = ("model", "key_id", "user__email", "sum_requests")
        return [tuple(line[name] for name in columns if name in line) for line in lines]

    assert told_by(Dimension.MODEL) == [("gpt-4o", 4), ("llama-3-8b", 11)]
    assert told_by(Dimension.KEY) == [(7, 7), (9, 8)]
    assert told_by(Dimension.KEY, Dimension.MODEL) == [("gpt-4o", 7, 4), ("llama-3-8b", 7, 3), ("llama-3-8b", 9, 8)]
    assert told_by(Dimension.USER) == [(alice.email, 7), (bob.email, 8)]


def test_usage_is_filtered_by_owner_key_and_model(alice: User, bob: User) -> None:
    make_usage(alice, requests=1, key_id=7)
    make_usage(alice, requests=2, key_id=8)
    make_usage(alice, requests=4, key_id=7, model="gpt-4o")
    make_usage(bob, requests=8, key_id=7)

    asked = {"since": NINE, "until": NOON, "user_id": alice.pk, "key_id": 7, "model": "llama-3-8b"}

    assert [line["sum_requests"] for line in list_usage(**asked, period=Period.HOUR)] == [1]
    assert get_usage(**asked).requests == 1


def test_the_hour_at_the_end_is_not_part_of_it(alice: User) -> None:
    make_usage(alice, NINE, requests=1)
    make_usage(alice, TEN, requests=2)

    lines = list_usage(since=NINE, until=NINE + timedelta(hours=1), period=Period.HOUR)

    assert [line["sum_requests"] for line in lines] == [1]


def test_the_totals_of_a_key_are_those_of_all_nodes() -> None:
    for node, key_id, count in (("a", 7, 1), ("b", 7, 2), ("a", 8, 100)):
        KeyTotal.objects.create(
            key_id=key_id, node=node, requests=count, prompt_tokens=10 * count, completion_tokens=100 * count
        )

    assert list_key_totals([7, 9]) == {7: KeyUse(requests=3, prompt_tokens=30, completion_tokens=300)}
    assert list_key_totals([]) == {}
