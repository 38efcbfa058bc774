from __future__ import annotations

from itertools import accumulate
from statistics import median

import msgspec
import pytest
import toktok
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.domain import FinishReason, Generation, Message
from cluster.simulation import text
from cluster.simulation.text import MAX_TOKENS, natural_text, write

ENCODINGS = ("cl100k_base", "o200k_base")
PINNED = (
    "This answer is simulated: a small grammar wrote it, not a language model. As a result, the"
    " gateway limits a small part of the result while the others wait. In the end, the first"
)
HELLO = Generation(messages=(Message("user", "hello"),), max_tokens=MAX_TOKENS, seed=7)


def with_(generation: Generation, **changes: object) -> Generation:
    return msgspec.structs.replace(generation, **changes)


def texts_of(count: int) -> list[tuple[str, ...]]:
    return [natural_text("gpt-4", with_(HELLO, seed=seed)) for seed in range(count)]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_piece_of_the_vocabulary_is_one_token(encoding: str) -> None:
    phrases = (*text._OPENERS, *text._SUBJECTS, *text._VERBS, *text._OBJECTS, *text._ENDINGS, text._OPENING)
    words = {word for phrase in phrases for word in phrase}
    firsts = {phrase[0].strip().capitalize() for phrase in (*text._OPENERS, *text._SUBJECTS) if phrase}
    pieces = sorted(words | firsts | {f" {first}" for first in firsts} | {".", text._PARAGRAPH})

    counts = toktok.batch_count(pieces, encoding)

    assert [piece for piece, count in zip(pieces, counts, strict=True) if count != 1] == []


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_prefix_counts_as_many_tokens_as_it_has_entries(encoding: str) -> None:
    for texts in texts_of(20):
        prefixes = list(accumulate(texts))

        assert toktok.batch_count(prefixes, encoding) == list(range(1, len(texts) + 1))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_whole_texts_count_as_many_tokens_as_they_have_entries(encoding: str) -> None:
    texts = texts_of(500)

    assert toktok.batch_count(["".join(t) for t in texts], encoding) == [len(t) for t in texts]


def test_the_first_sentence_says_that_the_answer_is_simulated() -> None:
    assert "".join(natural_text("gpt-4", HELLO)).startswith(
        "This answer is simulated: a small grammar wrote it, not a language model."
    )


def test_the_text_is_pinned_to_its_version() -> None:
    generation = Generation(messages=(Message("user", "hello"),), max_tokens=40, seed=1)

    assert text.TEXT_VERSION == "sim-text:1"
    assert "".join(write("gpt-4", generation).texts) == PINNED


def test_the_same_request_gives_the_same_text_with_or_without_the_cache() -> None:
    first = natural_text("gpt-4", HELLO)
    text._compose.cache_clear()

    assert natural_text("gpt-4", with_(HELLO)) == first


@pytest.mark.parametrize(
    "changed",
    [
        with_(HELLO, seed=8),
        with_(HELLO, temperature=0.5),
        with_(HELLO, top_p=0.5),
        with_(HELLO, messages=(Message("user", "hullo"),)),
        with_(HELLO, messages=(Message("system", "hello"),)),
    ],
)
def test_a_different_request_gives_a_different_text(changed: Generation) -> None:
    assert natural_text("gpt-4", changed) != natural_text("gpt-4", HELLO)


def test_a_different_model_gives_a_different_text() -> None:
    assert natural_text("gpt-4o", HELLO) != natural_text("gpt-4", HELLO)


def test_at_temperature_zero_neither_seed_nor_top_p_matters() -> None:
    greedy = with_(HELLO, temperature=0.0)

    assert natural_text("gpt-4", with_(greedy, seed=99, top_p=0.1)) == natural_text("gpt-4", greedy)


def test_lengths_are_spread_around_their_median_and_bounded() -> None:
    lengths = [len(texts) for texts in texts_of(2_000)]

    assert median(lengths) == pytest.approx(text.MEDIAN_TOKENS, rel=0.1)
    assert min(lengths) >= 8
    assert 600 < max(lengths) <= MAX_TOKENS


def test_texts_read_as_sentences() -> None:
    for texts in texts_of(50):
        whole = "".join(texts)
        assert whole.endswith(".") and "  " not in whole and " ." not in whole
        for sentence in whole.replace(".\n\n", ". ").split(". "):
            assert sentence[0].isupper(), sentence


def test_an_answer_that_ends_by_itself_ends_with_stop() -> None:
    script = write("gpt-4", HELLO)

    assert (script.reason, script.length) == (FinishReason.STOP, len(script.texts))


def test_max_tokens_cuts_the_text_without_changing_it() -> None:
    script = write("gpt-4", with_(HELLO, max_tokens=10))

    assert script.texts == natural_text("gpt-4", HELLO)[:10]
    assert (script.reason, script.length) == (FinishReason.LENGTH, 10)


def test_an_answer_as_long_as_max_tokens_is_complete() -> None:
    length = len(natural_text("gpt-4", HELLO))

    assert write("gpt-4", with_(HELLO, max_tokens=length)).reason is FinishReason.STOP


def test_a_stop_string_cuts_the_text_and_counts_what_it_cost() -> None:
    script = write("gpt-4", with_(HELLO, stop=("grammar",)))

    assert "".join(script.texts) == "This answer is simulated: a small "
    assert script.texts[-1] == " "
    assert script.reason is FinishReason.STOP
    assert script.length == len(["This", " answer", " is", " simulated", ":", " a", " small", " grammar"])


def test_what_may_become_a_stop_string_comes_out_late() -> None:
    script = write("gpt-4", with_(HELLO, stop=(" small potato",)))

    assert script.emitted is not None
    before, held, after = (script.emitted_after(n) for n in (6, 7, 8))
    assert (before, held, after) == (6, 6, 8)


def test_text_held_back_at_the_end_of_max_tokens_is_released() -> None:
    script = write("gpt-4", with_(HELLO, max_tokens=7, stop=(" small potato",)))

    assert "".join(script.texts) == "This answer is simulated: a small"
    assert script.reason is FinishReason.LENGTH


@settings(max_examples=50)
@given(st.integers(0, 50), st.integers(1, 300), st.data())
def test_with_any_stop_taken_from_the_text_it_never_appears(seed: int, max_tokens: int, data: st.DataObject) -> None:
    generation = with_(HELLO, seed=seed, max_tokens=max_tokens)
    whole = "".join(write("gpt-4", generation).texts)
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = whole[start : start + data.draw(st.integers(1, 12))]

    script = write("gpt-4", with_(generation, stop=(stop,)))

    assert "".join(script.texts) == whole[: whole.find(stop)]
    assert script.reason is FinishReason.STOP
    assert script.emitted is not None
    assert list(script.emitted) == sorted(script.emitted)
    assert script.emitted_after(script.length) == len(script.texts)
    assert all(out <= generated for generated, out in enumerate(script.emitted))
