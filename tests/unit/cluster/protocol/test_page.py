"""The public page says what the code does: messages, fields, limits, tables and bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from cluster.domain import Generation, GpuInfo, GpuReading, Message, ModelOffer
from cluster.protocol import codec, messages, session
from cluster.protocol.messages import Chunk, CloseCode, FromGateway, FromWorker, Load
from cluster.protocol.session import FROM_GATEWAY, FROM_WORKER, GatewaySession, State, WorkerSession
from cluster.worker import agent, link

PAGE = (Path(__file__).parents[4] / "templates/docs/worker-protocol.md").read_text()
KINDS = sorted({*get_args(FromWorker), *get_args(FromGateway)}, key=lambda kind: kind.__name__)
STRUCTS = [*KINDS, Chunk, Load, Generation, Message, ModelOffer, GpuInfo, GpuReading]


def tag_of(kind: Any) -> str:
    return str(kind.__struct_config__.tag)


def blocks(language: str) -> list[tuple[str, str]]:
    """Return the page's code blocks in this language, each with the line above it."""
    return re.findall(rf"^([^\n]*)\n\n```{language}\n(.*?)\n```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS, ids=tag_of)
def test_every_message_has_its_section(kind: Any) -> None:
    headings = " ".join(re.findall(r"^### (.*)$", PAGE, re.MULTILINE))

    assert re.search(rf"\b{tag_of(kind)}\b", headings)
    assert f'`"{tag_of(kind)}"`' in PAGE


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_field_is_described(struct: Any) -> None:
    missing = [field for field in struct.__struct_fields__ if f"`{field}`" not in PAGE]

    assert missing == []


@pytest.mark.parametrize("code", CloseCode, ids=lambda code: code.name)
def test_every_close_code_is_explained(code: CloseCode) -> None:
    row = re.search(rf"^\| {code:d} \|.*\| (\w+)[^|]*\|$", PAGE, re.MULTILINE)

    assert row is not None
    assert (row[1] == "no") == (code in agent.REFUSALS)


def test_the_table_of_states_is_the_one_in_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (worker|gateway) \| `(\w+)` \|$", PAGE, re.MULTILINE)
    tables = {"worker": FROM_WORKER, "gateway": FROM_GATEWAY}

    assert len(rows) == len(set(rows))
    assert set(rows) == {
        (str(state), tag_of(kind), speaker, str(after))
        for speaker, table in tables.items()
        for (state, kind), after in table.items()
    }


@pytest.mark.parametrize(
    "limit",
    [
        f"{codec.MAX_FRAME_BYTES:,} bytes",
        f"{codec.MAX_GATEWAY_FRAME_BYTES:,} bytes",
        f"larger than {codec.BATCH_BYTES:,}",
        f"{codec.MAX_ITEMS:,} |",
        f"{codec.MAX_TOKEN_CHARS:,} characters",
        f"{session.MAX_FRAMES_PER_S:,.0f} a second",
        f"burst of {session.MAX_FRAMES_PER_S * session.FRAME_BURST_S:,.0f}",
        f"{session.MAX_HEARTBEATS_PER_S:.0f} a second",
        f"version of the protocol: {messages.VERSION}",
        f"begins at {agent.Backoff.BASE_S:g} s",
        f"ends at {agent.Backoff.CAP_S:g} s",
        f"held for {agent.STABLE_S:g} s",
        f"up to {link.MAX_MESSAGE_CHARS:,} characters",
    ],
)
def test_every_limit_is_the_one_in_the_code(limit: str) -> None:
    assert limit in PAGE


def test_the_example_is_a_legal_exchange_from_the_first_frame_to_the_last() -> None:
    gateway, worker = GatewaySession(now=0.0), WorkerSession()
    exchange = blocks("json")

    assert len(exchange) >= 7
    for heading, text in exchange:
        frame = msgspec.msgpack.encode(json.loads(text))
        if heading.startswith("Worker to gateway"):
            assert worker.send(gateway.receive(frame, 0.0), 0.0)
        else:
            assert heading.startswith("Gateway to worker")
            assert gateway.send(worker.receive(frame, 0.0))
    assert gateway.state is worker.state is State.CLOSED


def test_the_bytes_of_the_example_are_those_of_its_frame() -> None:
    ((_, dump),) = blocks("hex")
    ((_, text),) = [block for block in blocks("json") if "in one frame" in block[0]]

    (frame,) = codec.encode_frames(codec.decode_from_worker(msgspec.msgpack.encode(json.loads(text))))

    assert bytes.fromhex(dump) == frame
