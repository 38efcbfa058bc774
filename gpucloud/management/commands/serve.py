"""`manage.py serve`: one node, ready for production, with a drain of its own."""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser
from itertools import cycle, islice
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from cluster.simulation.fleet import DEFAULT_FLEET, FleetWorker
from gpucloud.checks import check_public_url, is_public, list_weak_secrets
from gpucloud.instance import AlreadyRunning, lock_for_database
from gpucloud.lib.children import Children

log = logging.getLogger(__name__)


class Command(BaseCommand):
    help = "Run a gpucloud node: gateway, scheduler, dashboard."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
        parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
        parser.add_argument(
            "--simulate", type=int, default=0, metavar="N", help="also start N simulated workers of the default fleet"
        )

    def handle(self, *args: Any, host: str, port: int, simulate: int, **options: Any) -> None:
        if is_public(host) and not settings.DEBUG:
            refuse_weak_secrets(host)
        refuse_pending_migrations()
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        lock = lock_for_database()
        try:
            if lock is not None:
                lock.acquire(url)
        except AlreadyRunning as error:
            raise CommandError(f"{error}. One embedded server per database: stop that one first.") from None

        # Imported here: building the application must not be the price of an error message.
        from gpucloud.asgi import application
        from gpucloud.server import open_socket, run

        try:
            listener = open_socket(host, port)
        except OSError as error:
            raise CommandError(f"Cannot listen on {host}:{port}: {error.strerror}. Try another --port.") from None
        log.info("listening on %s", url)
        fleet = Children()
        try:
            for worker in islice(cycle(DEFAULT_FLEET), simulate):
                fleet.spawn(worker_arguments(worker, url), environment={"GPUCLOUD_WORKER_TOKEN": settings.WORKER_TOKEN})
            run(
                application,
                listener,
                drain_s=settings.DRAIN_S,
                header_timeout_s=settings.HEADER_TIMEOUT_S,
                max_body_bytes=settings.MAX_BODY_BYTES,
            )
        finally:
            fleet.stop(timeout_s=5.0)


def refuse_weak_secrets(host: str) -> None:
    """Raise `CommandError` if the secrets are not fit for a server that others can reach."""
    if weak := list_weak_secrets():
        why = f"GPUCLOUD_PUBLIC_URL is {settings.PUBLIC_URL}" if settings.PUBLIC_URL else f"--host {host} is public"
        sentences = "".join([f"\n- {sentence}" for sentence in weak])
        raise CommandError(f"Others can reach this server ({why}), so its secrets must be fit for that:{sentences}")
    for warning in check_public_url():
        log.warning("%s", warning.msg)


def refuse_pending_migrations() -> None:
    """Raise `CommandError` if the database is not what the code expects."""
    executor = MigrationExecutor(connection)
    if pending := executor.migration_plan(executor.loader.graph.leaf_nodes()):
        names = ", ".join(f"{migration.app_label}.{migration.name}" for migration, _ in pending[:5])
        raise CommandError(
            f"{len(pending)} migrations are pending ({names}{', …' if len(pending) > 5 else ''}). "
            "Run `manage.py migrate` first."
        )
    connection.close()


def worker_arguments(worker: FleetWorker, url: str) -> list[str]:
    """Return the command line of one worker of the fleet. Its token goes by environment."""
    arguments = [sys.executable, "-m", "cluster.worker", "--gateway", url, "--exit-with-parent"]
    arguments += ["--name", worker.name, "--gpu", worker.gpu, "--gpus", str(worker.gpus)]
    if worker.tp is not None:
        arguments += ["--tp", str(worker.tp)]
    if worker.dtype is not None:
        arguments += ["--dtype", worker.dtype]
    return [*arguments, "--model", *worker.models]
