"""The baseline of the gateway benchmark: uvicorn and nothing else, answering recorded headers and bytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import uvicorn


def main(folder: str, port: str) -> None:
    """Answer every POST with the recorded body, or the recorded events one send each."""
    recorded = json.loads((Path(folder) / "recorded").read_text())
    whole = recorded["whole"].encode()
    events = [event.encode() for event in recorded["events"]]
    whole_headers = [(name.encode(), value.encode()) for name, value in recorded["whole_headers"]]
    stream_headers = [(name.encode(), value.encode()) for name, value in recorded["stream_headers"]]

    async def application(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if b'"stream": true' in body:
            await send({"type": "http.response.start", "status": 200, "headers": stream_headers})
            for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.start", "status": 200, "headers": whole_headers})
        await send({"type": "http.response.body", "body": whole})

    uvicorn.run(
        application,
        port=int(port),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_level="error",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
