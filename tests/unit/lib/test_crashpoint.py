"""Dying on purpose: only in tests, only where asked, only when it is time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpucloud.lib.crashpoint import EXIT_CODE, POINTS, UnableToCrash, crashpoint, make_crashpoint
from tests.live import ROOT, process_environment

CODE = ("gpucloud", "accounts", "inference", "cluster")


def test_nothing_happens_unless_it_is_asked_for():
    for point in POINTS:
        crashpoint(point)


def test_the_process_ends_at_the_nth_passage_of_the_named_point_and_at_no_other():
    ended: list[int] = []
    crash = make_crashpoint({"GPUCLOUD_CRASH": "assign:3", "GPUCLOUD_TESTING": "1"}, ended.append)

    for _ in range(2):
        crash("assign")
        crash("accept")
    assert ended == []
    crash("assign")
    assert ended == [EXIT_CODE]
    crash("assign")
    assert ended == [EXIT_CODE]


@pytest.mark.parametrize(
    "environment",
    [
        {"GPUCLOUD_CRASH": "assign:1"},
        {"GPUCLOUD_CRASH": "assign:1", "GPUCLOUD_TESTING": "0"},
        {"GPUCLOUD_CRASH": "nowhere:1", "GPUCLOUD_TESTING": "1"},
        {"GPUCLOUD_CRASH": "assign", "GPUCLOUD_TESTING": "1"},
        {"GPUCLOUD_CRASH": "assign:0", "GPUCLOUD_TESTING": "1"},
    ],
)
def test_a_crash_that_cannot_be_meant_is_refused(environment: dict[str, str]):
    with pytest.raises(UnableToCrash):
        make_crashpoint(environment)


def test_a_process_that_is_asked_to_crash_outside_tests_does_not_start():
    done = subprocess.run(
        [sys.executable, "-c", "import gpucloud.lib.crashpoint"],
        env=process_environment(GPUCLOUD_CRASH="accept:1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.returncode == 1
    assert "GPUCLOUD_TESTING" in done.stderr


def test_each_point_has_its_place_in_the_product():
    sources = [path.read_text() for folder in CODE for path in Path(ROOT / folder).rglob("*.py")]

    assert {point for point in POINTS if not any(f'crashpoint("{point}")' in source for source in sources)} == set()
