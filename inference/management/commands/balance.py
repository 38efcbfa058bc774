"""`manage.py balance`: does the ledger add up? Exits 1 if it does not."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, DatabaseError
from django.utils import timezone

from inference.balance import Check, list_checks


class Command(BaseCommand):
    help = "Compare the ledger's rows, sums, histograms and counters. Exits 1 if they differ."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON object instead of lines.")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="Alias of the database to look at.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            checks = list_checks(now=timezone.now(), using=options["database"])
        except DatabaseError as error:
            raise CommandError(f"The ledger cannot be read: {error}. Is the database up and migrated?") from error
        balance = sum(check.difference for check in checks)
        if options["json"]:
            self.stdout.write(json.dumps(_as_json(balance, checks)))
        else:
            for check in checks:
                sign = "=" if check.difference == 0 else "≠"
                self.stdout.write(f"{check.name}: {check.left} {sign} {check.right} ({check.sources})")
            self.stdout.write(f"balance: {balance}")
        if balance:
            sys.exit(1)


def _as_json(balance: int, checks: list[Check]) -> dict[str, Any]:
    return {
        "balance": balance,
        "checks": [
            {"name": check.name, "left": check.left, "right": check.right, "difference": check.difference}
            for check in checks
        ],
    }
