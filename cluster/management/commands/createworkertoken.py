"""`manage.py createworkertoken`: lets workers in. The token alone goes to stdout."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from cluster.services import create_worker_token


class Command(BaseCommand):
    """Create a worker token and print it."""

    help = "Create a worker token and print it, alone, on stdout. It cannot be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("--name", default="worker", help="what the token is called in lists (default: worker)")
        parser.add_argument(
            "--model",
            action="append",
            default=[],
            metavar="GLOB",
            help="models its workers may serve, such as 'llama-*'; may be repeated (default: any)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Create the token."""
        try:
            token, secret = create_worker_token(name=options["name"], models=options["model"])
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from None
        self.stderr.write(f"Worker token {token.name!r} for models: {', '.join(token.models)}")
        self.stdout.write(secret)
