from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucloud.lib.jsonguard import TooManyValues, UnsafeJson, check_json, load_json

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


def refusal(body: bytes, **limits: int) -> UnsafeJson:
    with pytest.raises(UnsafeJson) as refused:
        check_json(body, **limits)
    return refused.value


@given(value=VALUES, ascii_only=st.booleans())
def test_whatever_json_can_say_passes_and_comes_back(value: Any, ascii_only: bool):
    body = json.dumps(value, ensure_ascii=ascii_only).encode()

    assert load_json(body) == value


@given(value=VALUES, limit=st.integers(1, 6))
def test_depth_is_counted_as_a_parser_would_go(value: Any, limit: int):
    body = json.dumps(value).encode()

    if depth_of(value) > limit:
        assert "deeper" in refusal(body, max_depth=limit).reason
    else:
        check_json(body, max_depth=limit)


@given(value=VALUES, limit=st.integers(1, 12))
def test_values_are_counted_by_brackets_and_commas(value: Any, limit: int):
    body = json.dumps(value).encode()

    if nodes_of(value) > limit:
        with pytest.raises(TooManyValues):
            check_json(body, max_nodes=limit)
    else:
        check_json(body, max_nodes=limit)


@given(body=st.binary() | st.text(st.sampled_from('[]{}",:\\u0dD8a1eN ')).map(str.encode))
def test_any_bytes_at_all_raise_nothing_else_and_what_passes_cannot_hurt_a_parser(body: bytes):
    try:
        value = load_json(body, max_depth=8)
    except UnsafeJson as error:
        assert error.reason
    else:
        assert depth_of(value) <= 8
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        assert "\0" not in json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (rb'{"messages": [{"content": "a\u0000b"}]}', "messages[0].content"),
        (rb'{"messages": [{"content": "\ud800"}]}', "messages[0].content"),
        (rb'{"messages": [1, {"content": "\udc00\ud800"}]}', "messages[1].content"),
        (rb'{"metadata": {"\u0000": "x"}}', "metadata"),
        (rb'["\\\ud800"]', "[0]"),
        (rb'"\uD83D"', ""),
        (rb'{"a": "\u0000", "a": "hidden behind its twin"}', ""),
    ],
)
def test_text_that_cannot_be_written_down_is_named(body: bytes, path: str):
    assert refusal(body).path == path


@pytest.mark.parametrize(
    "body", [rb'"\\u0000"', rb'"\\\\ud800"', rb'"\ud83d\ude00"', rb'"\u00e9\u2028"', rb'"\n\"\\"', '"é😀"'.encode()]
)
def test_text_that_only_looks_like_it_passes(body: bytes):
    check_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-16-le"),
        "{}".encode("utf-32"),
        b'{"a": "\xff"}',
        b'"\xed\xa0\x80"',
        b'"\x00"',
    ],
)
def test_what_is_not_utf_8_is_refused(body: bytes):
    assert "UTF-8" in refusal(body).reason


@pytest.mark.parametrize("body", [b"NaN", b'{"a": -Infinity}', b'{"a": [1, Infinity]}', b'{"\\"NaN": NaN}'])
def test_numbers_that_are_none_are_refused(body: bytes):
    assert "not JSON numbers" in refusal(body).reason


def test_a_number_too_large_for_a_float_is_not_loaded():
    with pytest.raises(UnsafeJson, match="too large"):
        load_json(b'{"a": 1e400}')


def test_text_about_such_numbers_passes():
    check_json(b'{"content": "NaN is not Infinity, and \\"NaN\\" neither"}')
    check_json(b'{"content": "%s"}' % (b"7" * 5_000))


def test_a_number_of_very_many_digits_is_refused():
    assert "1,000 digits" in refusal(b'{"max_tokens": %s}' % (b"9" * 5_000)).reason


def test_the_parameter_with_most_values_is_named():
    assert refusal(b'{"model": "x", "stop": [%s]}' % b",".join([b'"a"'] * 100_000)).path == "stop"
    assert refusal(b'{"a": 1, "stop": [%s' % (b'"",' * 500_000)).path == ""


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'"' * 1_000_000,
        b'{"a":"' + b"\\\\" * 500_000 + b'"}',
        b'{"a":"' + rb"\ud83d\ude00" * 80_000 + b'"}',
        b"[" + b"[]," * 49_000 + b"[]]",
        (b"[" * 31 + b"]" * 31 + b",") * 3_000,
        b'{"a": [' + b'"x", ' * 80_000 + b'"\\u0000"]}',
    ],
)
def test_a_hostile_megabyte_takes_no_longer_than_a_harmless_one(body: bytes):
    began_s = time.process_time()

    try:
        check_json(body)
    except UnsafeJson:
        pass

    assert time.process_time() - began_s < 0.5


def depth_of(value: Any) -> int:
    match value:
        case list():
            return 1 + max(map(depth_of, value), default=0)
        case dict():
            return 1 + max(map(depth_of, value.values()), default=0)
        case _:
            return 0


def nodes_of(value: Any) -> int:
    match value:
        case list() | dict():
            items = list(value.values()) if isinstance(value, dict) else value
            return 1 + max(0, len(items) - 1) + sum(map(nodes_of, items))
        case _:
            return 0
