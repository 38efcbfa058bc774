from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.simulation.stops import StopMatcher


def run(tokens: list[str], stops: list[str]) -> list[str]:
    matcher = StopMatcher(stops)
    released: list[str] = []
    for token in tokens:
        released += matcher.feed(token)
    return released + matcher.flush()


def before_any_stop(text: str, stops: list[str]) -> str:
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


few_letters = st.text("ab.", min_size=1, max_size=5)


@given(st.lists(few_letters, max_size=12), st.lists(few_letters, max_size=4))
def test_the_text_ends_before_the_earliest_stop_however_it_is_split(tokens: list[str], stops: list[str]) -> None:
    assert "".join(run(tokens, stops)) == before_any_stop("".join(tokens), stops)


@given(st.lists(few_letters, max_size=12), st.lists(few_letters, max_size=4))
def test_what_is_shown_is_whole_tokens_but_for_the_last(tokens: list[str], stops: list[str]) -> None:
    shown = run(tokens, stops)

    assert shown[:-1] == tokens[: len(shown) - 1] if shown else True
    assert not shown or tokens[len(shown) - 1].startswith(shown[-1])


@given(st.lists(few_letters, min_size=1, max_size=12), st.lists(few_letters, min_size=1, max_size=4), st.data())
def test_matching_can_go_on_from_any_token_that_was_shown(
    tokens: list[str], stops: list[str], data: st.DataObject
) -> None:
    matcher = StopMatcher(stops)
    shown: list[str] = []
    for token in tokens:
        shown += matcher.feed(token)
        if matcher.matched:
            break
    shown += matcher.flush()
    n = data.draw(st.integers(0, max(0, len(shown) - 1)))

    assert run(tokens[n:], stops) == shown[n:]


def test_a_possible_beginning_is_held_back_and_released_when_it_was_none() -> None:
    matcher = StopMatcher(["one two three"])

    assert matcher.feed("one") == []
    assert matcher.feed(" two") == []
    assert matcher.feed(" four") == ["one", " two", " four"]


def test_text_that_cannot_begin_a_stop_is_not_delayed() -> None:
    assert StopMatcher(["xyz"]).feed("hello") == ["hello"]


def test_a_stop_inside_a_token_cuts_it() -> None:
    matcher = StopMatcher(["ll"])

    assert matcher.feed("hello") == ["he"]
    assert matcher.matched
    assert matcher.feed("again") == matcher.flush() == []


def test_an_earlier_stop_that_is_still_open_wins_over_a_later_complete_one() -> None:
    assert run(["ab", "c", "d"], ["abcd", "bc"]) == []
    assert run(["ab", "c", "x"], ["abcd", "bc"]) == ["a"]


def test_an_empty_stop_string_stops_nothing() -> None:
    assert run(["a", "b"], [""]) == ["a", "b"]
