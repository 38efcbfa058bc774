"""What a client is told of its limits."""

from __future__ import annotations

import pytest

from accounts.limits import UNLIMITED, Limit, Limits, Refusal, Standing
from inference.openai.http import split_lines
from inference.openai.ratelimits import describe_standing, format_span, refused

STANDING = Standing(3, 60.0, 700, 12.5)


def told(limits: Limits) -> dict[bytes, bytes]:
    return dict(split_lines(describe_standing(limits, STANDING)))


@pytest.mark.parametrize(
    ("span_s", "text"),
    [(0, b"0ms"), (0.0204, b"20ms"), (1, b"1s"), (8.64, b"8.64s"), (60, b"1m0s"), (361.5, b"6m1.5s"), (-1, b"0ms")],
)
def test_a_span_is_written_as_openai_writes_it(span_s: float, text: bytes) -> None:
    assert format_span(span_s) == text


def test_each_limit_that_a_key_has_is_told_by_three_headers() -> None:
    requests = Limits(requests_per_minute=60)
    both = Limits(requests_per_minute=60, tokens_per_minute=1000)

    assert describe_standing(UNLIMITED, STANDING) == b""
    assert describe_standing(Limits(concurrent_requests=1, monthly_tokens=9), STANDING) == b""
    assert told(requests) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"3",
        b"x-ratelimit-reset-requests": b"1m0s",
    }
    assert told(both) == told(requests) | {
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"700",
        b"x-ratelimit-reset-tokens": b"12.5s",
    }


@pytest.mark.parametrize(
    ("limit", "retry_after_s", "kind", "code"),
    [
        (Limit.REQUESTS, 2.25, "requests", "rate_limit_exceeded"),
        (Limit.CONCURRENCY, 1.0, "requests", "rate_limit_exceeded"),
        (Limit.TOKENS, 2.25, "tokens", "rate_limit_exceeded"),
        (Limit.TOKENS, None, "tokens", "rate_limit_exceeded"),
        (Limit.BUDGET, 1.0, "tokens", "rate_limit_exceeded"),
        (Limit.BUDGET, None, "insufficient_quota", "insufficient_quota"),
    ],
)
def test_a_refusal_says_which_limit_and_when_to_come_again(
    limit: Limit, retry_after_s: float | None, kind: str, code: str
) -> None:
    error = refused(Limits(requests_per_minute=60), Refusal(limit, 100, 90, 20, retry_after_s, STANDING))

    headers = dict(error.headers)
    assert (error.status, error.envelope.error.type, error.code) == (429, kind, code)
    assert "100" in error.envelope.error.message
    assert headers[b"x-ratelimit-remaining-requests"] == b"3"
    if retry_after_s is None:
        # Stock clients retry a 429 by themselves; this tells them not to.
        assert headers[b"x-should-retry"] == b"false" and b"retry-after" not in headers
    else:
        assert headers[b"retry-after-ms"] == b"%d" % (retry_after_s * 1000)
        assert int(headers[b"retry-after"]) >= retry_after_s
