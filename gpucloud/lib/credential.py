"""The row behind a bearer secret, shared by API keys and worker tokens.

Abstract: each app has its own table, services and rules. No secret is stored: the row holds the
public prefix that finds it, the last four characters to show, and a digest (see `secret`).
"""

from __future__ import annotations

from datetime import datetime

from django.core.validators import RegexValidator
from django.db import models
from django.utils import timezone

from gpucloud.lib.secret import PREFIX_CHARS, digest_secret, mask, prefix_of

validate_label = RegexValidator(
    r"\A[^\x00-\x1f\x7f]+\Z", "A name needs at least one character, and no line breaks or control characters."
)


class Credential(models.Model):
    """What is known of a secret that was handed out once."""

    name = models.CharField(max_length=100, validators=[validate_label])
    prefix = models.CharField(max_length=PREFIX_CHARS, unique=True, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    last4 = models.CharField(max_length=4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        abstract = True
        ordering = ("-created_at", "-pk")

    def __str__(self) -> str:
        return f"{self.name} ({self.masked})"

    @property
    def masked(self) -> str:
        """How the secret is shown: its public prefix and its last four characters."""
        return mask(self.prefix, self.last4)

    def describe(self, secret: str, pepper: bytes) -> None:
        """Fill in all that is stored of `secret`."""
        self.prefix = prefix_of(secret)
        self.digest = digest_secret(secret, pepper).hex()
        self.last4 = secret[-4:]

    def is_live(self, now: datetime) -> bool:
        """Tell whether the secret itself may still be used; its owner is another question."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)
