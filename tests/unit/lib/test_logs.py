"""What must never be read in a log, whoever logged it."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import pytest

from accounts.keys import make_key
from gpucloud.lib.logs import MAX_LINE_CHARS, LineFormatter, escape, redact
from gpucloud.lib.secret import make_secret

JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ1c2VyX2lkIjoiMSJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
CANARY = "Canary5uccessor"


def written(message: str, *arguments: Any, logger: str = "gpucloud", exc_info: Any = None) -> str:
    record = logging.LogRecord(logger, logging.INFO, __file__, 1, message, arguments, exc_info)
    return LineFormatter("%(name)s: %(message)s").format(record)


def raised(error: BaseException, cause: BaseException | None = None) -> Any:
    try:
        raise error from cause
    except BaseException:
        return sys.exc_info()


@pytest.mark.parametrize("make", [make_key, lambda: make_key(test=True), lambda: make_secret("wk-")])
def test_of_a_key_its_public_prefix_stays(make: Any) -> None:
    secret = make()
    prefix, private = secret[:-49], secret[-49:]

    for text in (f"key {secret} failed", f"GET /v1/models/{secret}", f"?key={secret}&x=1", f"{secret}{secret}"):
        assert private not in redact(text)
        assert private[10:] not in redact(text)
    assert prefix in redact(f"key {secret} failed")
    assert redact(f"{prefix}…{secret[-4:]}") == f"{prefix}…{secret[-4:]}"


@pytest.mark.parametrize(
    "text",
    [
        f"token {JWT} refused",
        f"Authorization: Bearer {CANARY}",
        f"{{'Authorization': 'Bearer {CANARY}'}}",
        f"(b'authorization', b'Bearer {CANARY}')",
        f"authorization={CANARY}",
        f"Authorization: Basic {CANARY}==",
        f"/login/?email=a@b.example&password={CANARY}&next=/",
        f"/login/?password%3D{CANARY}",
        f"{{'password': '{CANARY}', 'email': 'a'}}",
        f'{{"password": "{CANARY}"}}',
        f'{{"new_password": "with spaces {CANARY}"}}',
        f"refresh_token={CANARY}",
        f"api_key={CANARY}",
        f"api-key: {CANARY}",
        f"Cookie: sessionid={CANARY}; csrftoken={CANARY}",
        f"Set-Cookie: __Host-sessionid={CANARY}",
        f"sessionid={CANARY}",
        f"[(b'cookie', b'a={CANARY}')]",
        f"GPUCLOUD_WORKER_TOKEN={CANARY}",
        f"<QueryDict: {{'password': ['{CANARY}']}}>",
    ],
)
def test_what_is_called_a_secret_is_taken_out(text: str) -> None:
    assert CANARY not in redact(text)
    assert JWT.split(".")[1] not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "prompt_tokens=12 completion_tokens: 5 tokens_per_minute: 0 → 100",
        "Rotated; the secret before works until 2026-11-24 10:00 UTC.",
        "audit actor=3 accounts.apikey=7 did='Changed: name: a → b'",
        "audit actor='command line' cluster.workertoken=1 did='Created.'",
        "worker joined: disk-node-with-a-rather-long-name link=lnk_0123456789abcdef gpu=H100×8",
        "request req_0123456789abcdef failed",
    ],
)
def test_everyday_lines_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


def test_asvs_16_4_1_nobody_forges_a_line_or_drives_a_terminal() -> None:
    name = "evil\n2026-01-01 INFO gpucloud: audit\r\x1b[2J\x9b31m\u2028\u202egnp\ud800\x00"

    line = written("worker joined: %s", name)

    assert line.isprintable()
    assert line.startswith(r"gpucloud: worker joined: evil\n2026-01-01 INFO")
    assert escape("ordinary · ünïcode 🚀") == "ordinary · ünïcode 🚀"


def test_a_traceback_stays_below_its_line() -> None:
    line = written("it failed", exc_info=raised(ValueError(f"a\n2026 INFO x: forged\npassword={CANARY} {JWT}")))

    head, *rest = line.split("\n")
    assert head == "gpucloud: it failed"
    assert len(rest) > 2
    assert all(part.startswith("  ") for part in rest)
    assert "ValueError" in line
    assert CANARY not in line
    assert JWT not in line


@pytest.mark.parametrize("logger", ["inference.openai.routing", "cluster.worker.agent", "uvicorn.error", "asyncio"])
def test_exceptions_where_prompts_pass_are_told_by_type_and_place(logger: str) -> None:
    group = ExceptionGroup(CANARY, [KeyError(CANARY)])
    noted = ValueError(CANARY)
    noted.add_note(CANARY)
    for error, cause in ((ValueError(CANARY), KeyError(CANARY)), (group, None), (noted, group)):
        line = written("it failed", logger=logger, exc_info=raised(error, cause))

        assert CANARY not in line
        assert type(error).__name__ in line
        assert "test_logs.py" in line


def test_a_task_that_died_does_not_tell_its_last_words() -> None:
    line = written(
        f"Task exception was never retrieved\nfuture: <Task exception=ValueError('{CANARY}')>", logger="asyncio"
    )

    assert CANARY not in line
    assert "ValueError" in line


def test_a_line_has_an_end() -> None:
    assert len(written("%s", "x" * 1_000_000)) <= MAX_LINE_CHARS


@pytest.mark.parametrize("text", ["password" * 4_000, "sk-" * 10_000, "eyJ" * 10_000, "cookie " * 4_000, "=" * 30_000])
def test_hostile_text_is_read_in_linear_time(text: str) -> None:
    begun = time.perf_counter()

    redact(text)

    assert time.perf_counter() - begun < 0.5
