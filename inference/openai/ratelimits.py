"""What a client is told of its key's limits: OpenAI's header names, and the refusals of admission.

Pure. Times are written as OpenAI does, by Go's rules: `20ms`, `8.64s`, `6m0s`.
"""

from __future__ import annotations

from accounts.limits import MINUTE_S, Limit, Limits, Refusal, Standing
from inference.openai.errors import ApiError, retry_headers
from inference.openai.http import split_lines


def describe_standing(limits: Limits, standing: Standing) -> bytes:
    """Return the header lines of those limits that a key has, each with its CR LF."""
    lines = b""
    if limits.requests_per_minute:
        reset = format_span(standing.reset_requests_s)
        lines = _REQUESTS % (limits.requests_per_minute, standing.remaining_requests, reset)
    if limits.tokens_per_minute:
        reset = format_span(standing.reset_tokens_s)
        lines += _TOKENS % (limits.tokens_per_minute, standing.remaining_tokens, reset)
    return lines


def refused(limits: Limits, refusal: Refusal) -> ApiError:
    """Return the 429 for a request that does not fit, with all that helps a client to come again in time."""
    headers = split_lines(describe_standing(limits, refusal.standing))
    if refusal.retry_after_s is None:
        headers += ((b"x-should-retry", b"false"),)
    else:
        headers += retry_headers(refusal.retry_after_s)
    kind = "requests" if refusal.limit in (Limit.REQUESTS, Limit.CONCURRENCY) else "tokens"
    code = "rate_limit_exceeded"
    if refusal.limit is Limit.BUDGET and refusal.retry_after_s is None:
        kind = code = "insufficient_quota"
    return ApiError(429, _explain(refusal), type=kind, code=code, headers=headers)


def format_span(span_s: float) -> bytes:
    """Return a duration as Go writes it, to the millisecond."""
    if span_s == MINUTE_S:
        return b"1m0s"  # of every request that was just admitted
    millis = max(0, round(span_s * 1000))
    if millis < 1000:
        return b"%dms" % millis
    minutes, millis = divmod(millis, 60_000)
    seconds = b"%ds" % (millis // 1000) if millis % 1000 == 0 else b"%gs" % (millis / 1000)
    return b"%dm%b" % (minutes, seconds) if minutes else seconds


def _explain(refusal: Refusal) -> str:
    allowed, used, asked = refusal.allowed, refusal.used, refusal.asked
    if refusal.retry_after_s is None:
        match refusal.limit:
            case Limit.BUDGET:
                return (
                    "You exceeded this key's token budget of the month (UTC): "
                    f"budget {allowed}, used {used}, requested {asked}."
                )
            case _:
                return (
                    f"Request too large for this key's limit on tokens per min (TPM): limit {allowed}, requested "
                    f"{asked}. Shorten the messages, or ask for fewer tokens by max_completion_tokens."
                )
    again = f"Please try again in {format_span(refusal.retry_after_s).decode()}."
    match refusal.limit:
        case Limit.REQUESTS:
            return f"Rate limit reached on requests per min (RPM): limit {allowed}, used {used}. {again}"
        case Limit.TOKENS:
            return (
                f"Rate limit reached on tokens per min (TPM): limit {allowed}, used {used}, requested {asked}. {again}"
            )
        case Limit.CONCURRENCY:
            return f"Too many requests at once: this key may have {allowed} running. {again}"
        case Limit.BUDGET:
            return (
                f"What is left of this key's token budget is held by requests that are running: budget {allowed}, "
                f"used and held {used}, requested {asked}. {again}"
            )


_REQUESTS = (
    b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\nx-ratelimit-reset-requests: %b\r\n"
)
_TOKENS = b"x-ratelimit-limit-tokens: %d\r\nx-ratelimit-remaining-tokens: %d\r\nx-ratelimit-reset-tokens: %b\r\n"
