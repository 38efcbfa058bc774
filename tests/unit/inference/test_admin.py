from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from cluster.domain import Choice, WaitReason
from inference.models import Request
from inference.records import Assigned, Queued, Retried
from inference.timeline import encode_timeline
from tests.unit.inference.test_selectors import make_request, make_usage

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(client: Client, charlie: User) -> Client:
    client.force_login(charlie)
    return client


@pytest.mark.parametrize("model", ["request", "usagerollup", "latencyhistogram", "keytotal", "ledgercounter"])
def test_an_operator_may_look_at_the_ledger_and_not_add_to_it(operator: Client, model: str) -> None:
    assert operator.get(reverse(f"admin:inference_{model}_changelist")).status_code == 200
    assert operator.get(reverse(f"admin:inference_{model}_add")).status_code == 403


def test_an_operator_may_neither_change_nor_delete_a_request(operator: Client, alice: User) -> None:
    make_request(alice, "req_1")
    change = reverse("admin:inference_request_change", args=["req_1"])

    assert operator.get(change).status_code == 200
    assert operator.post(change, {"state": "lost"}).status_code == 403
    assert operator.post(reverse("admin:inference_request_delete", args=["req_1"]), {"post": "yes"}).status_code == 403
    assert Request.objects.get().state == "completed"


def test_a_request_is_found_by_the_beginning_of_its_id(operator: Client, alice: User) -> None:
    make_request(alice, "req_abc1")
    make_request(alice, "req_xyz1")

    page = operator.get(reverse("admin:inference_request_changelist"), {"q": "req_abc"}).content.decode()

    assert "req_abc1" in page
    assert "req_xyz1" not in page


def test_sums_are_listed_with_their_owner(operator: Client, alice: User) -> None:
    make_usage(alice, requests=4)

    assert alice.email in operator.get(reverse("admin:inference_usagerollup_changelist")).content.decode()


def test_the_page_of_a_request_tells_its_story(operator: Client, alice: User) -> None:
    noted = encode_timeline(
        [
            Queued(0.2, WaitReason.NO_SLOT, 3),
            Assigned(250.0, 1, "wrk_1", "h100-1", "H100", 0, Choice(2, 0.875, 1.0)),
            Retried(900.5, 1, "worker_lost", 42),
        ]
    )
    make_request(alice, "req_1", timeline=noted, total_ms=2_000.0, error_code="worker_lost", state="failed")

    page = operator.get(reverse("admin:inference_request_change", args=["req_1"])).content.decode()

    assert "every worker for its model was full; number 3 in line" in page
    assert "attempt 1 to h100-1 (H100); best of 2: load 0.88, wait 1.00 (1 is best)" in page
    assert "<td>+650.5&nbsp;ms</td>" in page
    assert "failed: worker_lost" in page
    assert "no_slot" not in page
