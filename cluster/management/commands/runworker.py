"""`manage.py runworker`: the worker's own command line, for a checkout that has Django anyway."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cluster.worker import cli


class Command(BaseCommand):
    help = "Run workers that dial a gateway; the same as python -m cluster.worker."
    # A worker uses neither the database nor the settings that the checks are about.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        cli.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            code = cli.run(argparse.Namespace(**options))
        except cli.UsageError as error:
            raise CommandError(str(error), returncode=2) from error
        if code:
            sys.exit(code)
