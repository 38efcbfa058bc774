"""The worker's command line, shared by `python -m cluster.worker` and `manage.py runworker`.

Arguments become agents, and agents run in one event loop until a signal or a refusal ends them.
Exit codes: 0 after a farewell, 1 when the gateway refuses the worker, 2 when what was asked for
makes no sense. A second signal ends the process at once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Sequence

import msgspec

from cluster.protocol.messages import Name
from cluster.simulation.hardware import UnknownGpu, get_gpu
from cluster.simulation.llms import UnknownLlm, get_llm
from cluster.worker.agent import Agent, UnableToServe, link_url
from cluster.worker.backends.base import UnableToLoad
from cluster.worker.backends.simulated import SimulatedBackend, SimulatedOptions
from gpucloud.lib.logs import make_handler

DEFAULT_MODEL = "llama-3-8b"
TOKEN_VARIABLE = "GPUCLOUD_WORKER_TOKEN"
MAX_COUNT = 1_000


class UsageError(Exception):
    """The arguments do not fit together; the text says what would."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run workers as the command line says and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster.worker", description="Run gpucloud workers.")
    add_arguments(parser)
    options = parser.parse_args(argv)
    logging.basicConfig(handlers=[make_handler()], level=logging.INFO)
    try:
        return run(options)
    except UsageError as error:
        parser.error(str(error))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a worker."""
    add = parser.add_argument
    add("--gateway", default="http://127.0.0.1:8000", type=_gateway, metavar="URL", help="default: %(default)s")
    add("--token", help=f"worker token; better in the environment as {TOKEN_VARIABLE}")
    add("--name", type=_name, help="default: this host's name")
    add("--gpu", default="H100", type=_gpu, metavar="GPU", help="GPU board to simulate; default: %(default)s")
    add("--gpus", default=1, type=_count, metavar="N", help="boards in this worker; default: 1")
    add("--tp", type=_count, metavar="N", help="tensor parallelism; default: all boards")
    add("--dtype", choices=("bf16", "fp8", "int4"), help="default: the model's own")
    add(
        "--model",
        dest="models",
        nargs="+",
        action="extend",
        type=_model,
        metavar="M",
        help=f"models to serve; default: {DEFAULT_MODEL}",
    )
    add("--count", default=1, type=_count, metavar="N", help="workers in this process, name-1 … name-N")
    add("--speed", default=1.0, type=_speed, metavar="X", help="1 is real time, 0 as fast as it goes")
    add("--ttft-ms", type=_duration, metavar="MS", help="fixed time to first token; needs --itl-ms")
    add("--itl-ms", type=_duration, metavar="MS", help="fixed time between tokens; needs --ttft-ms")
    add("--load-time", default=0.0, type=_duration, metavar="S", help="seconds to load the models; default: 0")
    add("--backend", default="simulated", choices=("simulated", "upstream"))
    add("--upstream", metavar="URL", help="the engine that --backend upstream fronts")
    add("--exit-with-parent", action="store_true", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Run the workers that the options describe, or raise `UsageError`; return the exit code."""
    token = options.token or os.environ.get(TOKEN_VARIABLE, "")
    if not token.isascii() or not token.isprintable() or not token.strip():
        raise UsageError(f"a worker token is needed: --token T, or {TOKEN_VARIABLE} in the environment")
    if options.backend == "upstream" or options.upstream:
        raise UsageError("--backend upstream: fronting a real engine is not built yet; use --backend simulated")
    if (options.ttft_ms is None) != (options.itl_ms is None):
        raise UsageError("--ttft-ms and --itl-ms belong together: give both or neither")
    if options.exit_with_parent:
        threading.Thread(target=_exit_at_end_of_input, name="parent-watch", daemon=True).start()
    return asyncio.run(_run(options, token.strip()))


async def _run(options: argparse.Namespace, token: str) -> int:
    agents = [
        Agent(SimulatedBackend(_simulated(options, number)), name=name, gateway=options.gateway, token=token)
        for number, name in enumerate(_names(options))
    ]
    _leave_on_signals(agents)
    running = [asyncio.create_task(agent.run(), name=agent.name) for agent in agents]
    try:
        await asyncio.gather(*running)
    except (UnableToLoad, UnableToServe) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # The others may be in the middle of something; they finish it first.
        for agent in agents:
            agent.leave()
        await asyncio.gather(*running, return_exceptions=True)
        return 2 if isinstance(error, UnableToLoad) else 1
    return 0


def _simulated(options: argparse.Namespace, number: int) -> SimulatedOptions:
    return SimulatedOptions(
        gpu=options.gpu,
        gpus=options.gpus,
        tp=options.tp,
        dtype=options.dtype,
        models=tuple(options.models or [DEFAULT_MODEL]),
        speed=options.speed,
        ttft_ms=options.ttft_ms,
        itl_ms=options.itl_ms,
        load_time_s=options.load_time,
        seed=number,
    )


def _names(options: argparse.Namespace) -> list[str]:
    name = options.name or re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()).strip("-.")[:56] or "worker"
    if options.count == 1:
        return [name]
    return [f"{name}-{number}" for number in range(1, options.count + 1)]


def _leave_on_signals(agents: list[Agent]) -> None:
    loop = asyncio.get_running_loop()
    asked = False

    def on_signal(number: int) -> None:
        nonlocal asked
        if asked:
            # At once means at once: no farewell, no clean-up that could hang.
            os._exit(128 + number)
        asked = True
        for agent in agents:
            agent.leave()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


def _exit_at_end_of_input() -> None:
    """End this process when its standard input ends, as it does when its parent is gone.

    A thread, so that it works while the event loop is busy or not up yet; `os.read`, because the
    buffered reader's lock would trip the interpreter's own shutdown.
    """
    while os.read(0, 4096):
        pass
    os._exit(0)


def _gateway(text: str) -> str:
    try:
        link_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _name(text: str) -> str:
    try:
        # With the longest suffix that --count may add, it must still be a name of the protocol.
        msgspec.convert(f"{text}-{MAX_COUNT}", Name)
    except msgspec.ValidationError:
        longest = 64 - len(f"-{MAX_COUNT}")
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected 1 to {longest} letters, digits and ._:- beginning with a letter or digit"
        ) from None
    return text


def _gpu(text: str) -> str:
    try:
        return get_gpu(text).name
    except UnknownGpu as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _model(text: str) -> str:
    try:
        return get_llm(text).id
    except UnknownLlm as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to {MAX_COUNT:,}")
    return int(text)


def _speed(text: str) -> float:
    speed = _duration(text)
    if 0 < speed < 0.1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0 (as fast as it goes) or at least 0.1")
    return speed


def _duration(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of at least 0")
    return number
