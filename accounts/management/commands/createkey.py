"""`manage.py createkey`: gives somebody an API key. The key alone goes to stdout."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from accounts.services import DEFAULT_REQUESTS_PER_MINUTE, DEFAULT_TIER, TIERS, create_key, ensure_user


class Command(BaseCommand):
    """Create an API key and print it."""

    help = "Create an API key and print it, alone, on stdout. It cannot be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("--user", required=True, metavar="EMAIL", help="whose key it is; created if absent")
        parser.add_argument("--name", default="default", help="what the key is called in lists (default: default)")
        parser.add_argument(
            "--rpm",
            type=int,
            default=DEFAULT_REQUESTS_PER_MINUTE,
            metavar="N",
            help="requests per minute, 0 for no limit (default: %(default)s)",
        )
        for option, what in _LIMITS.items():
            parser.add_argument(option, type=int, default=0, metavar="N", help=f"{what}, 0 for no limit (default: 0)")
        parser.add_argument(
            "--model",
            action="append",
            default=[],
            metavar="GLOB",
            help="models it may use, such as 'llama-*'; may be repeated (default: any)",
        )
        parser.add_argument("--test", action="store_true", help="simulated workers only, and no budget: sk-test-…")
        parser.add_argument(
            "--tier",
            choices=TIERS,
            default=DEFAULT_TIER,
            help="queue class of its requests (default: %(default)s)",
        )
        parser.add_argument(
            "--highest-tier", choices=TIERS, help="the highest they may ask for, if that is not the same"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Create the key, and the user if need be: both or neither."""
        try:
            with transaction.atomic():
                user, created = ensure_user(email=options["user"])
                key, secret = create_key(
                    user=user,
                    name=options["name"],
                    tier=options["tier"],
                    highest_tier=options["highest_tier"],
                    requests_per_minute=options["rpm"],
                    tokens_per_minute=options["tpm"],
                    concurrent_requests=options["concurrent"],
                    max_tokens=options["max_tokens"],
                    monthly_tokens=options["monthly_tokens"],
                    models=options["model"] or ["*"],
                    test=options["test"],
                )
        except ValidationError as error:
            raise CommandError(_explain(error)) from None
        if created:
            self.stderr.write(f"Created user {user.email}, without a password.")
        limit = f"{key.requests_per_minute} requests per minute" if key.requests_per_minute else "no request limit"
        tiers = key.tier if key.tier == key.highest_tier else f"{key.tier}, up to {key.highest_tier}"
        self.stderr.write(f"Key {key.name!r} of {user.email}: tier {tiers}, {limit}.")
        self.stdout.write(secret)


def _explain(error: ValidationError) -> str:
    options = {
        "email": "--user",
        "requests_per_minute": "--rpm",
        "tokens_per_minute": "--tpm",
        "concurrent_requests": "--concurrent",
        "max_tokens": "--max-tokens",
        "monthly_tokens": "--monthly-tokens",
        "models": "--model",
        "tier": "--tier",
        "highest_tier": "--highest-tier",
        "name": "--name",
    }
    return " ".join(
        f"{options.get(field, field)}: {' '.join(messages)}" for field, messages in error.message_dict.items()
    )


_LIMITS = {
    "--tpm": "tokens per minute",
    "--concurrent": "requests at once",
    "--max-tokens": "the most that one request may generate",
    "--monthly-tokens": "billed tokens in a calendar month",
}
