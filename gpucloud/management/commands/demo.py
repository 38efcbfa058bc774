"""`manage.py demo`, which is `make run`: everything from nothing, and how to use it."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from accounts.demo import ensure_demo_access
from cluster.simulation.fleet import DEFAULT_FLEET
from gpucloud.instance import running_url
from gpucloud.lib.children import end_with_parent

READY_TIMEOUT_S = 60.0


class Command(BaseCommand):
    help = "Migrate, make a demo login and key, and serve with a simulated fleet."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=int(os.environ.get("PORT") or 8000))

    def handle(self, *args: Any, host: str, port: int, **options: Any) -> None:
        if os.environ.get("GPUCLOUD_END_WITH_PARENT"):
            end_with_parent()
        call_command("migrate", verbosity=0)
        access = _prepare(settings.DATA_DIR / "demo.json")
        if running := running_url():
            _print_access(running, access)
            raise CommandError(f"already running at {running}: nothing was started.")
        announcer = threading.Thread(target=_announce, args=(f"http://{host}:{port}", access), daemon=True)
        announcer.start()
        call_command("serve", host=host, port=port, simulate=len(DEFAULT_FLEET))


def _prepare(path: Path) -> dict[str, str]:
    """Return the demo's login and key: those of the last run where they still work, else new ones."""
    try:
        remembered = json.loads(path.read_text())
    except (OSError, ValueError):
        remembered = {}
    access = ensure_demo_access(
        email=settings.DEMO_EMAIL, password=remembered.get("password", ""), secret=remembered.get("api_key", "")
    )
    kept = {"login": access.email, "password": access.password, "api_key": access.secret}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(kept, file, indent=2)
    return kept


def _announce(url: str, access: dict[str, str]) -> None:
    """Print how to use the server once it is ready: one fact per line, plain, for people and scripts."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=2):
                break
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    else:
        return
    _print_access(url, access)


def _print_access(url: str, access: dict[str, str]) -> None:
    body = json.dumps({"model": "llama-3-8b", "messages": [{"role": "user", "content": "Hello"}]})
    print(f"url: {url}")
    print(f"login: {access['login']}")
    print(f"password: {access['password']}")
    print(f"api key: {access['api_key']}")
    print(
        f"curl: curl {url}/v1/chat/completions -H 'Authorization: Bearer {access['api_key']}' "
        f"-H 'Content-Type: application/json' -d '{body}'",
        flush=True,
    )
