"""The command line: what it refuses, and a real process from its first frame to its exit code."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command, get_commands

from cluster.protocol.messages import Bye, Cancel, Drain, Finished, Heartbeat, Step
from cluster.worker import cli
from tests.fakes import FakeGateway, make_assign

ROOT = Path(__file__).parents[4]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("GPUCLOUD_")}


@pytest.fixture(autouse=True)
def no_token_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cli.TOKEN_VARIABLE, raising=False)


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway().listening() as gateway:
        yield gateway


@asynccontextmanager
async def worker(gateway: FakeGateway, *arguments: str) -> AsyncIterator[Process]:
    command = [sys.executable, "-m", "cluster.worker", "--gateway", gateway.url, "--name", "alice", *arguments]
    environment = ENVIRONMENT | {cli.TOKEN_VARIABLE: "s3cret"}
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdin=PIPE, stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "a worker token is needed: --token T, or GPUCLOUD_WORKER_TOKEN"),
        ("--token T --gateway 127.0.0.1:8000", "expected one like http://127.0.0.1:8000"),
        ("--token T --gpu H1000", "H200, H100"),
        ("--token T --model llama-9", "llama-3-8b"),
        ("--token T --model llama-2-70b --gpu T4", "Does not fit on 1 x T4"),
        ("--token T --gpus 8 --tp 3", "--tp 3"),
        ("--token T --gpus 0", "expected a whole number from 1"),
        ("--token T --count 1.5", "expected a whole number from 1"),
        ("--token T --speed 0.05", "expected 0 (as fast as it goes) or at least 0.1"),
        ("--token T --speed nan", "expected a number of at least 0"),
        ("--token T --load-time -1", "expected a number of at least 0"),
        ("--token T --ttft-ms 5", "--ttft-ms and --itl-ms belong together"),
        ("--token T --name a/b", "letters, digits and ._:-"),
        ("--token T --name " + "a" * 60, "expected 1 to 59"),
        ("--token T --dtype fp4", "bf16"),
        ("--token T --backend upstream --upstream http://127.0.0.1:11434", "not built yet"),
    ],
)
def test_what_makes_no_sense_ends_with_2_and_says_what_would(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: int | str | None = cli.main(arguments.split())
    except SystemExit as exit:
        code = exit.code

    assert code == 2
    assert words in capsys.readouterr().err


def test_models_may_be_repeated_and_listed() -> None:
    assert parse("--model", "gpt-4", "gpt-4o", "--model", "claude-3").models == ["gpt-4", "gpt-4o", "claude-3"]


@pytest.mark.parametrize("speed", ["0", "0.1", "25"])
def test_a_speed_is_zero_or_not_too_slow(speed: str) -> None:
    assert parse("--speed", speed).speed == float(speed)


def test_a_worker_runs_without_django() -> None:
    code = "import sys, cluster.worker.cli; sys.exit('django' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_manage_runworker_is_ours_and_takes_the_same_arguments() -> None:
    assert get_commands()["runworker"] == "cluster"
    with pytest.raises(CommandError, match="a worker token is needed") as refused:
        call_command("runworker", "--gpu", "A100")
    assert refused.value.returncode == 2


async def test_a_process_serves_its_gateway_and_leaves_on_sigterm(gateway: FakeGateway) -> None:
    async with worker(gateway, "--speed", "0") as process:
        link = await gateway.next_link()
        hello = await link.welcome()
        await link.send(make_assign())
        await link.expect(Step)
        await link.expect(Finished)
        process.send_signal(signal.SIGTERM)
        await link.expect(Drain)
        await link.expect(Bye)
        _, log = await process.communicate()

    assert process.returncode == 0
    assert gateway.tokens == ["Bearer s3cret"]
    assert (hello.name, hello.simulated, [offer.id for offer in hello.models]) == ("alice", True, ["llama-3-8b"])
    lines = log.decode()
    assert "worker=alice event=linked" in lines
    assert "Traceback" not in lines
    for secret in ("s3cret", "a secret prompt"):
        assert secret not in lines


async def test_a_second_signal_does_not_wait_for_what_runs(gateway: FakeGateway) -> None:
    async with worker(gateway, "--ttft-ms", "60000", "--itl-ms", "60000") as process:
        link = await gateway.next_link()
        await link.welcome()
        await link.send(make_assign())
        await link.expect(Heartbeat)
        process.send_signal(signal.SIGTERM)
        await link.expect(Drain)
        process.send_signal(signal.SIGINT)

        assert await process.wait() == 128 + signal.SIGINT


async def test_a_running_attempt_can_be_cancelled_while_its_worker_leaves(gateway: FakeGateway) -> None:
    async with worker(gateway, "--ttft-ms", "60000", "--itl-ms", "60000") as process:
        link = await gateway.next_link()
        await link.welcome()
        await link.send(make_assign())
        await link.expect(Heartbeat)
        process.send_signal(signal.SIGTERM)
        await link.expect(Drain)
        await link.send(Cancel(task="t-1", attempt=1))

        assert (await link.expect(Finished)).reason == "cancelled"
        assert await process.wait() == 0


async def test_a_refused_token_ends_the_process_with_1_and_a_sentence(gateway: FakeGateway) -> None:
    gateway.refuse_with = [HTTPStatus.FORBIDDEN]
    async with worker(gateway) as process:
        _, log = await process.communicate()

    assert process.returncode == 1
    assert "error: the gateway does not accept the worker token (HTTP 403)" in log.decode()
    assert "Traceback" not in log.decode()


async def test_several_workers_share_a_process_under_their_own_names(gateway: FakeGateway) -> None:
    async with worker(gateway, "--count", "3") as process:
        hellos = [await (await gateway.next_link()).welcome() for _ in range(3)]
        process.send_signal(signal.SIGTERM)

        assert await process.wait() == 0
    assert {hello.name for hello in hellos} == {"alice-1", "alice-2", "alice-3"}
    assert len({hello.instance for hello in hellos}) == 3


async def test_a_worker_ends_with_its_parent_if_asked_to(gateway: FakeGateway) -> None:
    async with worker(gateway, "--exit-with-parent") as process:
        await (await gateway.next_link()).welcome()
        assert process.returncode is None
        assert process.stdin is not None
        process.stdin.close()

        assert await process.wait() == 0
