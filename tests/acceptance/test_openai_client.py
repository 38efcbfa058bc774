"""The main job, through the official client: a stock SDK gets tokens from a worker that dialled in."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from inference.tokens import count_text
from tests.live import LiveServer, wait_until

QUESTION = [{"role": "user", "content": "How does a scheduler keep its promises?"}]


@pytest.fixture
def client(live: LiveServer):
    with openai.OpenAI(base_url=live.base_url, api_key=live.key, max_retries=0, timeout=20) as client:
        yield client


def test_an_answer_has_the_exact_shape(client):
    raw = client.chat.completions.with_raw_response.create(model="llama-3-8b", messages=QUESTION, max_tokens=12, seed=7)
    body = raw.http_response.json()

    assert set(body) == {
        "id", "object", "created", "model", "choices", "usage", "service_tier", "system_fingerprint",
    }  # fmt: skip
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["logprobs"] is None
    assert choice["finish_reason"] == "length"
    assert set(choice["message"]) == {"role", "content", "refusal", "annotations"}
    assert choice["message"]["refusal"] is None
    assert choice["message"]["annotations"] == []
    assert body["usage"]["completion_tokens"] == 12
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 12
    assert raw.headers["x-request-id"].startswith("req_")
    assert int(raw.headers["openai-processing-ms"]) >= 0


def test_a_stream_has_the_exact_chunks(client):
    with client.chat.completions.with_streaming_response.create(
        model="llama-3-8b",
        messages=QUESTION,
        max_tokens=5,
        seed=7,
        stream=True,
        stream_options={"include_usage": True},
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-request-id"].startswith("req_")
        lines = [line for line in response.iter_lines() if line]

    assert lines[-1] == "data: [DONE]"
    role, *contents, finish, usage = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert len(contents) == 5
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in contents)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [role, *contents])
    assert all("logprobs" in chunk["choices"][0] for chunk in [role, *contents, finish])
    assert finish["choices"][0]["delta"] == {}
    assert finish["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert all(chunk["usage"] is None for chunk in [role, *contents, finish])
    assert len({chunk["id"] for chunk in [role, *contents, finish, usage]}) == 1


def test_a_stream_without_include_usage_has_no_usage(client):
    chunks = list(client.chat.completions.create(model="llama-3-8b", messages=QUESTION, max_tokens=3, stream=True))

    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_streamed_and_whole_answers_agree_for_one_seed(client):
    asked = {"model": "llama-3-8b", "messages": QUESTION, "seed": 11, "max_tokens": 60}

    whole = client.chat.completions.create(**asked)
    streamed = "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(**asked, stream=True))

    assert streamed == whole.choices[0].message.content


def test_another_seed_gives_another_answer(client):
    first, second = (
        client.chat.completions.create(model="llama-3-8b", messages=QUESTION, seed=seed, max_tokens=60)
        for seed in (1, 2)
    )

    assert first.choices[0].message.content != second.choices[0].message.content


def test_billed_tokens_are_the_tokens_of_the_text(client):
    answer = client.chat.completions.create(model="llama-3-8b", messages=QUESTION, seed=5, max_tokens=200)

    assert answer.usage.completion_tokens == count_text("llama-3-8b", answer.choices[0].message.content)


async def test_the_async_client_works_with_many_streams_at_once(live):
    async with openai.AsyncOpenAI(base_url=live.base_url, api_key=live.key, max_retries=0) as client:

        async def ask(seed: int) -> str:
            stream = await client.chat.completions.create(
                model="mistral-7b", messages=QUESTION, seed=seed % 4, max_tokens=40, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

        answers = await asyncio.gather(*(ask(seed) for seed in range(32)))

    assert len(set(answers)) == 4
    assert all(answers[seed] == answers[seed % 4] for seed in range(32))


@pytest.mark.parametrize("as_list", [True, False])
def test_a_stop_string_ends_the_answer_and_is_not_in_it(client, as_list):
    asked = {"model": "llama-3-8b", "messages": QUESTION, "max_tokens": 100, "temperature": 0}
    # The stop strings are part of the request, so the text with them is its own: look for a word
    # that any English text has.
    stop = " the"

    answer = client.chat.completions.create(**asked, stop=[stop, "\u0001never"] if as_list else stop)

    assert answer.choices[0].finish_reason == "stop"
    assert stop not in answer.choices[0].message.content


def test_max_completion_tokens_is_the_new_name(client):
    answer = client.chat.completions.create(model="llama-3-8b", messages=QUESTION, max_completion_tokens=4)

    assert answer.usage.completion_tokens == 4


def test_text_parts_and_every_role_are_read(client):
    answer = client.chat.completions.create(
        model="llama-3-8b",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
            {
                "role": "user",
                "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "two and two?"}],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "4"},
            {"role": "user", "name": "Alice", "content": "Thanks."},
        ],
        max_tokens=4,
        temperature=0.2,
        top_p=0.9,
        user="alice-1",
        metadata={"trace": "t-1"},
    )

    assert answer.usage.completion_tokens == 4
    assert answer.usage.prompt_tokens > 20


def test_models_are_listed_and_say_that_they_are_stand_ins(client):
    models = {model.id: model for model in client.models.list()}

    assert set(models) == {
        "gpt-4", "gpt-4o", "gpt-3.5-turbo", "claude-3", "claude-3-opus", "claude-3-sonnet", "llama-2-7b",
        "llama-2-70b", "llama-3-8b", "llama-3-70b", "mistral-7b", "mixtral-8x7b",
    }  # fmt: skip
    one = client.models.retrieve("gpt-4")
    assert one.object == "model"
    assert one.gpucloud["simulated"] is True
    assert one.gpucloud["stand_in"]
    assert models["llama-3-8b"].gpucloud["stand_in"] is None


def test_a_completed_answer_is_in_the_ledger_when_the_client_has_it(live, client):
    raw = client.chat.completions.with_raw_response.create(model="llama-3-8b", messages=QUESTION, max_tokens=6)

    (row,) = live.rows("SELECT * FROM inference_request WHERE id = ?", raw.headers["x-request-id"])
    assert row["state"] == "completed"
    assert row["finish_reason"] == "length"
    assert (row["generated_tokens"], row["delivered_tokens"]) == (6, 6)
    assert row["prompt_tokens"] == raw.parse().usage.prompt_tokens
    assert row["worker_name"] == "fast"
    assert row["attempts"] == 1
    assert row["total_ms"] >= row["ttft_ms"] >= 0


@pytest.fixture(scope="module")
def keys(live):
    """By name: keys that may have the default tier, the flexible one, and any but have the default one."""
    keys = {"plain": live.key}
    for name, tier in (("frugal", "flex"), ("free", "default")):
        keys[name] = live.manage("createkey", "--user", f"{name}@example.com", "--rpm", "0", "--tier", tier).strip()
    live.execute(
        "UPDATE accounts_apikey SET highest_tier = 'priority' "
        "WHERE user_id = (SELECT id FROM accounts_user WHERE email = 'free@example.com')"
    )
    return keys


@pytest.mark.parametrize(
    ("key", "asked", "served"),
    [
        ("plain", None, "default"),
        ("plain", "auto", "default"),
        ("plain", "flex", "flex"),
        ("plain", "priority", "default"),
        ("frugal", None, "flex"),
        ("frugal", "auto", "flex"),
        ("frugal", "default", "flex"),
        ("free", "auto", "default"),
        ("free", "priority", "priority"),
    ],
)
def test_the_tier_that_was_served_is_said_and_written_down_whatever_was_asked_for(live, keys, key, asked, served):
    tier = {} if asked is None else {"service_tier": asked}
    question = {"model": "llama-3-8b", "messages": QUESTION, "max_tokens": 2, **tier}
    with openai.OpenAI(base_url=live.base_url, api_key=keys[key], max_retries=0, timeout=20) as client:
        raw = client.chat.completions.with_raw_response.create(**question)
        chunks = list(client.chat.completions.create(**question, stream=True))

    assert raw.parse().service_tier == served
    assert {chunk.service_tier for chunk in chunks} == {served}
    (row,) = live.rows("SELECT tier FROM inference_request WHERE id = ?", raw.headers["x-request-id"])
    assert row["tier"] == served


def test_the_books_balance(live, client):
    client.chat.completions.create(model="llama-3-8b", messages=QUESTION, max_tokens=2)

    assert live.manage("balance").splitlines()[-1] == "balance: 0"


def test_each_request_leaves_one_line_without_its_content(live, client):
    secret = "canary-in-the-prompt"
    raw = client.chat.completions.with_raw_response.create(
        model="llama-3-8b", messages=[{"role": "user", "content": secret}], max_tokens=2
    )
    request_id = raw.headers["x-request-id"]

    (line,) = wait_until(
        lambda: [line for line in live.request_lines() if line["id"] == request_id], "the request's line"
    )
    assert line["outcome"] == "completed"
    assert line["status"] == 200
    assert line["completion_tokens"] == 2
    assert secret not in live.log()
    assert live.key not in live.log()
