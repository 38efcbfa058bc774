"""How the cluster's failures read to a client, and what they say about coming again."""

from __future__ import annotations

import pytest

from cluster.domain import Outcome
from cluster.engine.streams import StreamFailure
from inference.openai.errors import from_failure, retry_headers, unavailable


def failure(code: str, retry_after_s: float | None = None) -> StreamFailure:
    return StreamFailure(Outcome.FAILED, code, "What happened.", retry_after_s)


def test_a_full_share_is_a_429_of_the_type_that_clients_know_for_it():
    error = from_failure(failure("rate_limit_exceeded", 7.2))

    assert error.status == 429
    assert (error.envelope.error.type, error.envelope.error.code) == ("requests", "rate_limit_exceeded")
    assert dict(error.headers) == {b"retry-after": b"8", b"retry-after-ms": b"7200"}


@pytest.mark.parametrize(
    "code", ["no_worker_available", "queue_timeout", "engine_overloaded", "server_draining", "service_unavailable"]
)
def test_what_may_go_well_later_is_a_503_that_says_when(code: str):
    error = from_failure(failure(code, 3.0))

    assert (error.status, error.envelope.error.type, error.envelope.error.code) == (503, "server_error", code)
    assert dict(error.headers) == {b"retry-after": b"3", b"retry-after-ms": b"3000"}


@pytest.mark.parametrize("code", ["rate_limit_exceeded", "no_worker_available"])
def test_a_failure_that_does_not_know_when_says_soon(code: str):
    assert dict(from_failure(failure(code)).headers)[b"retry-after"] == b"1"


@pytest.mark.parametrize(
    ("code", "status"), [("timeout", 504), ("worker_lost", 500), ("worker_failed", 500), ("worker_crashed", 500)]
)
def test_what_is_not_a_matter_of_waiting_names_no_time(code: str, status: int):
    error = from_failure(failure(code, 3.0))

    assert (error.status, error.envelope.error.type, error.headers) == (status, "server_error", ())


def test_a_request_that_no_worker_could_hold_is_the_clients_affair():
    error = from_failure(failure("context_length_exceeded"))

    assert (error.status, error.envelope.error.type) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("retry_after_s", "seconds", "millis"),
    [(0.0, b"1", b"1"), (0.25, b"1", b"250"), (1.001, b"2", b"1001"), (60.0, b"60", b"60000"), (1e9, b"60", b"60000")],
)
def test_a_client_is_told_to_wait_a_whole_second_at_least_and_a_minute_at_most(
    retry_after_s: float, seconds: bytes, millis: bytes
):
    assert retry_headers(retry_after_s) == ((b"retry-after", seconds), (b"retry-after-ms", millis))


def test_an_overloaded_server_says_when_to_come_again():
    error = unavailable("Try again.", "engine_overloaded")

    assert (error.status, error.envelope.error.type) == (503, "server_error")
    assert dict(error.headers) == {b"retry-after": b"1", b"retry-after-ms": b"1000"}
