from __future__ import annotations

from datetime import timedelta

import pytest
from django.db.models import ProtectedError
from django.utils import timezone

from cluster.domain import GpuInfo, ModelOffer
from cluster.models import Worker
from cluster.selectors import list_workers
from cluster.services import record_worker_joined, record_workers_seen
from tests.factories import make_worker_spec, make_worker_token

pytestmark = pytest.mark.django_db


def test_a_worker_that_joins_is_recorded_as_it_described_itself() -> None:
    token, _ = make_worker_token()
    record_worker_joined(spec=make_worker_spec(), token_id=token.pk)

    worker = Worker.objects.get(pk="wrk_1")
    assert (worker.name, worker.instance, worker.gpu, worker.gpus) == ("h100-1", "one", "H100", 2)
    assert (worker.models, worker.capacity, worker.simulated, worker.token) == (["llama-3-8b"], 8, True, token)
    assert worker.first_seen_at == worker.last_seen_at


def test_a_worker_that_comes_back_keeps_its_first_time_and_updates_the_rest() -> None:
    record_worker_joined(spec=make_worker_spec(), token_id=None)
    long_ago = timezone.now() - timedelta(days=1)
    Worker.objects.update(first_seen_at=long_ago, last_seen_at=long_ago)

    record_worker_joined(spec=make_worker_spec(capacity=16, gpu=GpuInfo(name="H200", count=1)), token_id=None)

    worker = Worker.objects.get()
    assert (worker.capacity, worker.gpu, worker.gpus) == (16, "H200", 1)
    assert worker.first_seen_at == long_ago < worker.last_seen_at


def test_seeing_workers_moves_only_theirs() -> None:
    for worker_id in ("wrk_1", "wrk_2"):
        record_worker_joined(spec=make_worker_spec(id=worker_id), token_id=None)
    long_ago = timezone.now() - timedelta(days=1)
    Worker.objects.update(last_seen_at=long_ago)

    record_workers_seen(worker_ids=["wrk_2", "wrk_unknown"])

    assert [worker.id for worker in list_workers()] == ["wrk_2", "wrk_1"]
    assert Worker.objects.get(pk="wrk_1").last_seen_at == long_ago


def test_what_a_worker_says_of_itself_cannot_break_a_row() -> None:
    gpu = GpuInfo(name="H\x00100\x1b[31m" + "x" * 1000, count=10**30)
    offer = ModelOffer(id="a\0b" + "y" * 1000, context_tokens=1, kv_bytes_per_token=0)

    record_worker_joined(spec=make_worker_spec(gpu=gpu, models=(offer,)), token_id=None)

    worker = Worker.objects.get()
    assert worker.gpu == "H?100?[31m" + "x" * 54
    assert worker.gpus == 2**31 - 1
    assert worker.models == ["a?b" + "y" * 61]


def test_a_token_that_let_a_worker_in_cannot_be_deleted() -> None:
    token, _ = make_worker_token()
    record_worker_joined(spec=make_worker_spec(), token_id=token.pk)

    with pytest.raises(ProtectedError):
        token.delete()
