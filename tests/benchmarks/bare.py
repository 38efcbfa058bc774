"""The baseline of the gateway benchmark: uvicorn and nothing else, answering recorded bytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import uvicorn


def main(folder: str, port: str) -> None:
    """Answer every POST with the recorded body, or the recorded events one send each."""
    whole = (Path(folder) / "whole").read_bytes()
    events = [event.encode() for event in json.loads((Path(folder) / "events").read_text())]
    length = str(len(whole)).encode()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if b'"stream": true' in body:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
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
