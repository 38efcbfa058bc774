from __future__ import annotations

import threading

import pytest
import toktok

from cluster.domain import Message
from inference import tokens

# OpenAI's own example for counting chat tokens, with the prompt tokens its API reported.
COOKBOOK = (
    Message(
        "system",
        "You are a helpful, pattern-following assistant that translates corporate jargon into plain English.",
    ),
    Message("system", "New synergies will help drive top-line growth.", "example_user"),
    Message("system", "Things working well together will increase revenue.", "example_assistant"),
    Message(
        "system",
        "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage.",
        "example_user",
    ),
    Message("system", "Let's talk later when we're less busy about how to do better.", "example_assistant"),
    Message("user", "This late pivot means we don't have time to boil the ocean for the client deliverable."),
)


@pytest.mark.parametrize(
    ("model", "text", "count"),
    [
        ("gpt-4", "", 0),
        ("gpt-4", "hello world", 2),
        ("gpt-3.5-turbo", "tiktoken is great!", 6),
        ("gpt-4o", "tiktoken is great!", 6),
        ("gpt-4", "antidisestablishmentarianism", 6),
        ("gpt-4", "2 + 2 = 4", 7),
        ("gpt-4", "お誕生日おめでとう", 9),
        ("gpt-4o", "お誕生日おめでとう", 8),
    ],
)
def test_known_texts_have_the_counts_openai_publishes(model: str, text: str, count: int) -> None:
    assert tokens.count_text(model, text) == count


@pytest.mark.parametrize(("model", "count"), [("gpt-3.5-turbo", 129), ("gpt-4", 129), ("gpt-4o", 124)])
def test_openais_example_chat_has_the_count_its_api_reported(model: str, count: int) -> None:
    assert tokens.count_chat(model, COOKBOOK) == count


def test_special_tokens_in_a_users_text_are_plain_text() -> None:
    assert tokens.count_text("gpt-4", "<|endoftext|>") == 7


def test_only_openais_families_are_counted_exactly() -> None:
    assert tokens.is_exact("gpt-4o") and tokens.is_exact("gpt-3.5-turbo")
    assert not tokens.is_exact("llama-3-8b")
    assert tokens.count_text("llama-3-8b", "お誕生日おめでとう") == tokens.count_text("gpt-4o", "お誕生日おめでとう")


def test_short_and_long_texts_are_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Ein naïver Satz, 中文, emoji 🧠🧠 and <|im_start|> code(): x += 1\n\n" * 20
    short = tokens.count_text("gpt-4o", text)

    monkeypatch.setattr(tokens, "THREAD_FROM_CHARS", 10)

    assert tokens.count_text("gpt-4o", text) == short


async def test_a_long_chat_is_counted_in_a_thread_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    counted_in: list[threading.Thread] = []
    count_chat = tokens.count_chat

    def spy(model: str, messages: tuple[Message, ...]) -> int:
        counted_in.append(threading.current_thread())
        return count_chat(model, messages)

    monkeypatch.setattr(tokens, "count_chat", spy)

    short_chat, long_chat = (Message("user", "hello world"),), (Message("user", "hello world " * 20_000),)
    assert (tokens.is_long(short_chat), tokens.is_long(long_chat)) == (False, True)
    short = tokens.count_chat("gpt-4", short_chat)
    long = await tokens.count_long_chat("gpt-4", long_chat)

    assert short == 3 + 3 + 1 + 2
    assert long > 40_000
    assert counted_in[0] is threading.main_thread()
    assert counted_in[1] is not threading.main_thread()


def test_warming_loads_every_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toktok, "_CACHE", {})

    tokens.warm()

    assert {name for name, _ in toktok._CACHE} == {"cl100k_base", "o200k_base"}
