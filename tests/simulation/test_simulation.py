"""Many worlds, each with its own mishaps: nothing that must hold is ever violated."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.live import ROOT
from tests.simulation.plan import CALM_EVERY
from tests.simulation.runner import run_seeds
from tests.simulation.vocabulary import FAULTS, KINDS

SEEDS = 500
SOAK_SEEDS = 10_000


@pytest.mark.timeout(300)
def test_whatever_goes_wrong_every_request_ends_once_and_no_token_is_out_of_place():
    report = run_seeds(range(1, SEEDS + 1))

    print(report)
    assert not report.violations, str(report)
    assert report.events >= 300 * SEEDS
    rare = {action.__name__ for kind in KINDS for action in FAULTS[kind] if report.faults[action.__name__] < 20}
    assert not rare, "faults that hardly ever happened prove nothing"
    assert report.outcomes["completed"] > report.requests / 3
    assert {"cancelled client_closed", "failed worker_crashed", "expired queue_timeout"} <= set(report.outcomes)


def test_where_nothing_goes_wrong_everything_is_completed():
    report = run_seeds(range(0, 5 * CALM_EVERY, CALM_EVERY))

    assert not report.violations, str(report)
    assert set(report.outcomes) == {"completed"}
    assert not report.faults


def test_a_client_that_was_given_up_is_not_told_that_its_answer_is_complete():
    """A server that cannot cut it off goes on to write what the client may yet read."""
    report = run_seeds(range(1, 31), kinds=("clients do not read",))

    assert not report.violations, str(report)
    assert report.outcomes["cancelled client_too_slow"] > 10


def test_a_server_that_was_paused_blames_nobody():
    report = run_seeds(range(1, 21), kinds=("pauses",))

    assert not report.violations, str(report)


def test_a_seed_is_the_same_run_every_time():
    logs = [
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", "7", "--events", "150"],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.partition("\nseeds ")[0]
        for hash_seed in ("1", "2")
    ]

    assert logs[0] == logs[1]
    assert len(logs[0].splitlines()) > 300


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_ten_thousand_worlds():
    report = run_seeds(range(SEEDS + 1, SEEDS + SOAK_SEEDS + 1))

    print(report)
    assert not report.violations, str(report)
