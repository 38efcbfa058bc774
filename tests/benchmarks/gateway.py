"""What the gateway costs: server-process CPU time per request, against bare ASGI.

Run: `make bench` (or `python -m tests.benchmarks.gateway [--quick]`).

Both sides run on the same uvicorn in processes of their own and answer the same headers and
bytes. CPU time is what their process used, all threads, user and system, read from the kernel; that
is far steadier than requests per second on a shared machine. The two are measured in turn, A/B/A/B,
and the median of the ratios is printed. Requests per second stand beside it for colour.

What is in the full path: API key, all limits of the key, parsing, limits of the body, token count, scheduler, a worker
process over WebSocket at `--speed 0`, the ledger with its fsync, the log line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.live import ROOT, LiveServer, free_port, wait_until

CONNECTIONS = 64
MODEL = "llama-3-8b"
TOKENS_WHOLE = 16
TOKENS_STREAMED = 100
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LIMITS = ("--rpm", "1000000", "--tpm", "1000000000", "--concurrent", "100000", "--monthly-tokens", "1000000000000")
"""All that a key can have, and none in the way."""


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used so far, all its threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


class Recorded(NamedTuple):
    """An answer of ours, for the baseline to give."""

    headers: list[tuple[str, str]]
    body: bytes


class Bare:
    """The baseline: an ASGI echo of the same bytes on the same uvicorn."""

    def __init__(self, folder: Path, whole: Recorded, stream: Recorded) -> None:
        events = [b"data: " + part for part in _unchunk(stream.body).split(b"data: ")[1:]]
        recorded = {
            "whole": whole.body.decode(),
            "whole_headers": whole.headers,
            "stream_headers": stream.headers,
            "events": [event.decode() for event in events],
        }
        (folder / "recorded").write_text(json.dumps(recorded))
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.bare", str(folder), str(self.port)], cwd=ROOT
        )
        wait_until(lambda: _answers(self.port), "the bare server listens")


def _answers(port: int) -> bool:
    try:
        record(port, "", b"{}")
    except OSError:
        return False
    return True


def record(port: int, key: str, body: bytes) -> Recorded:
    """Send one request and return what came back; the date is the server's own to add."""

    async def run() -> Recorded:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        try:
            head, answer = await exchange(reader, writer, key, body)
        finally:
            writer.close()
        lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line]
        own = ("date", "transfer-encoding")
        return Recorded([(name, value) for name, value in lines if name.lower() not in own], answer)

    return asyncio.run(run())


def request_bytes(key: str, body: bytes) -> bytes:
    """Return a chat completion request as a keep-alive client sends it."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"accept: application/json\r\nuser-agent: bench\r\nauthorization: Bearer {key}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str, body: bytes
) -> tuple[bytes, bytes]:
    """Send one request and return head and body of its answer."""
    writer.write(request_bytes(key, body))
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise AssertionError(head.decode() + (await reader.read(2000)).decode())
    if b"chunked" in head:
        return head, await reader.readuntil(b"\r\n0\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head, await reader.readexactly(length)


async def _client(port: int, key: str, body: bytes, count: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    events = 0
    for _ in range(count):
        events += (await exchange(reader, writer, key, body))[1].count(b"data: {")
    writer.close()
    return events


def load(port: int, key: str, body: bytes, count: int) -> tuple[float, int]:
    """Send `count` requests over each of the connections; return seconds taken and events seen."""

    async def run() -> tuple[float, int]:
        began = time.perf_counter()
        seen = await asyncio.gather(*(_client(port, key, body, count) for _ in range(CONNECTIONS)))
        return time.perf_counter() - began, sum(seen)

    return asyncio.run(run())


def compare(name: str, bare: Bare, live: LiveServer, body: dict[str, Any], count: int, rounds: int) -> float:
    """Measure both sides in turn and return the median of bare ÷ ours."""
    payload = json.dumps(body).encode()
    assert live.process is not None
    load(live.port, live.key, payload, max(1, count // 4))
    load(bare.port, live.key, payload, max(1, count // 4))
    ratios = []
    total = CONNECTIONS * count
    for _ in range(rounds):
        figures = []
        for pid, port in ((bare.process.pid, bare.port), (live.process.pid, live.port)):
            before = cpu_s(pid)
            took_s, events = load(port, live.key, payload, count)
            figures.append((cpu_s(pid) - before, took_s, events))
        (bare_cpu, bare_s, bare_events), (our_cpu, our_s, our_events) = figures
        if our_events != bare_events:
            raise AssertionError(f"{name}: {our_events} events against {bare_events} of the bare server")
        ratios.append(bare_cpu / our_cpu)
        extra = f", {our_events / our_s:,.0f} events/s" if our_events else ""
        print(
            f"  {name}: bare {bare_cpu / total * 1e6:.0f} µs ({total / bare_s:,.0f} requests/s), "
            f"ours {our_cpu / total * 1e6:.0f} µs ({total / our_s:,.0f} requests/s{extra}), ratio {ratios[-1]:.2f}",
            flush=True,
        )
    return statistics.median(ratios)


def chat(**more: Any) -> dict[str, Any]:
    """Return the body that both sides are asked."""
    message = {"role": "user", "content": "Tell me how a scheduler keeps its promises."}
    return {"model": MODEL, "messages": [message], "seed": 1, **more}


def measure_latency(live: LiveServer, count: int) -> None:
    """Print what the gateway adds to a first token at one connection."""

    async def run() -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port, limit=1 << 22)
        payload = request_bytes(live.key, json.dumps(chat(max_tokens=4, stream=True)).encode())
        added = []
        for _ in range(count):
            began = time.perf_counter()
            writer.write(payload)
            await reader.readuntil(b"data: {")
            added.append((time.perf_counter() - began) * 1000)
            await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.close()
        return added

    asyncio.run(run())
    added = sorted(asyncio.run(run()))
    print(
        f"added latency at one connection: p50 {added[len(added) // 2]:.2f} ms, "
        f"p99 {added[int(len(added) * 0.99)]:.2f} ms (worker's own time to first token, about 0.1 ms, included)"
    )


def measure_live_streams(live: LiveServer, seconds: float) -> None:
    """Print how many streams at 30 tokens/s one core carries with a p99 gap under 100 ms."""
    best = 0
    for streams in (200, 500, 1000, 2000):
        assert live.process is not None
        before, began = cpu_s(live.process.pid), time.perf_counter()
        gaps = sorted(asyncio.run(_watch_streams(live, streams, seconds)))
        share = (cpu_s(live.process.pid) - before) / (time.perf_counter() - began)
        p99 = gaps[int(len(gaps) * 0.99)] * 1000
        print(f"  {streams} live streams: p99 gap {p99:.0f} ms, {share:.2f} of a core", flush=True)
        if p99 < 100:
            best = streams
        else:
            break
    print(f"live streams at 30 tokens/s with p99 gap < 100 ms: {best}")


async def _watch_streams(live: LiveServer, streams: int, seconds: float) -> list[float]:
    gaps: list[float] = []
    payload = request_bytes(
        live.key, json.dumps(chat(model="mistral-7b", max_tokens=int(seconds * 30), stream=True)).encode()
    )

    async def watch(number: int) -> None:
        await asyncio.sleep(number / streams)  # arrivals spread over a second
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(payload)
        last = None
        while True:
            data = await reader.read(65536)
            now = time.perf_counter()
            if not data or data.endswith(b"0\r\n\r\n"):
                break
            if last is not None:
                gaps.append(now - last)
            last = now
        writer.close()

    await asyncio.gather(*(watch(number) for number in range(streams)))
    return gaps


def main() -> None:
    """Print all figures; the two ratios last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests and rounds: for a look, not for a figure")
    quick = parser.parse_args().quick
    rounds, count = (3, 20) if quick else (7, 120)
    with tempfile.TemporaryDirectory(prefix="gpucloud-bench-") as name:
        folder = Path(name)
        live = LiveServer(folder)
        live.prepare()
        live.key = live.manage("createkey", "--user", "alice@example.com", *LIMITS).strip()
        live.start()
        bare = None
        try:
            live.start_worker("--speed", "0", "--model", MODEL, "--gpu", "H100", name="fast")
            whole, streamed = chat(max_tokens=TOKENS_WHOLE), chat(max_tokens=TOKENS_STREAMED, stream=True)
            bare = Bare(
                folder,
                record(live.port, live.key, json.dumps(whole).encode()),
                record(live.port, live.key, json.dumps(streamed).encode()),
            )
            non_streaming = compare("non-streaming", bare, live, whole, count, rounds)
            streaming = compare("streaming", bare, live, streamed, max(5, count // 8), rounds)
            measure_latency(live, 100 if quick else 1000)
            for number in range(8):
                pace = ("--ttft-ms", "50", "--itl-ms", "33.3")
                live.start_worker(*pace, "--model", "mistral-7b", "--gpu", "H100", name=f"slow-{number}")
            measure_live_streams(live, 4 if quick else 10)
        finally:
            if bare is not None:
                bare.process.kill()
                bare.process.wait()
            live.stop(9)
    print(f"non-streaming ratio: {non_streaming:.2f}")
    print(f"streaming ratio: {streaming:.2f}")


def _unchunk(body: bytes) -> bytes:
    """Return what an HTTP chunked body carries."""
    whole, rest = b"", body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        whole, rest = whole + rest[:length], rest[length + 2 :]
        if not length:
            break
    return whole


if __name__ == "__main__":
    main()
