"""The ledger's tables: one row per accepted request, and the sums that charts and bills read.

Written only by the ledger's writer, in plain SQL (`ledger_store`); read through `selectors`.
Rows are facts: nothing edits or deletes them but retention, and that never touches the sums.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models

from cluster.domain import Outcome

OPEN = "open"


class Request(models.Model):
    """One accepted request, from its admission to its one terminal state."""

    class State(models.TextChoices):
        OPEN = OPEN
        COMPLETED = Outcome.COMPLETED.value
        FAILED = Outcome.FAILED.value
        CANCELLED = Outcome.CANCELLED.value
        EXPIRED = Outcome.EXPIRED.value
        LOST = Outcome.LOST.value

    class Source(models.TextChoices):
        API = "api", "API"
        PLAYGROUND = "playground"

    id = models.CharField(primary_key=True, max_length=64)
    key = models.ForeignKey("accounts.ApiKey", on_delete=models.PROTECT, null=True, db_index=False, related_name="+")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, db_index=False, related_name="requests"
    )
    model = models.CharField(max_length=128)
    source = models.CharField(max_length=16, choices=Source)
    stream = models.BooleanField()
    tier = models.CharField(max_length=16)
    node = models.CharField(max_length=64)
    """The node whose gateway holds the client's connection."""
    state = models.CharField(max_length=16, choices=State)
    finish_reason = models.CharField(max_length=32, null=True)  # noqa: DJ001 — null: did not finish
    error_code = models.CharField(max_length=64, null=True)  # noqa: DJ001 — null: no error
    prompt_tokens = models.PositiveIntegerField()
    generated_tokens = models.PositiveIntegerField(default=0)
    """Computed by workers, delivered or not."""
    delivered_tokens = models.PositiveIntegerField(default=0)
    """Handed to the client's socket."""
    completion_tokens = models.PositiveIntegerField(default=0)
    """Billed: the delivered ones, and 0 for a lost request."""
    attempts = models.PositiveSmallIntegerField(default=0)
    worker_id = models.CharField(max_length=64, default="")
    worker_name = models.CharField(max_length=64, default="")
    queue_ms = models.FloatField(default=0.0)
    ttft_ms = models.FloatField(null=True)
    total_ms = models.FloatField(default=0.0)
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    timeline = models.TextField(null=True)  # noqa: DJ001 — null: a plain story, told by the columns
    """What befell it on the way; see `timeline`."""

    class Meta:
        db_table = "inference_request"
        ordering = ("-created_at",)
        indexes = [
            models.Index(fields=["user", "created_at"], name="request_user_time"),
            models.Index(fields=["created_at"], name="request_time"),
            models.Index(fields=["node"], condition=models.Q(state=OPEN), name="request_open"),
        ]

    def __str__(self) -> str:
        return self.id


class Sum(models.Model):
    """What a sum is over: one hour (of admission), key, model and node."""

    hour = models.DateTimeField()
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, db_index=False, related_name="+")
    key_id = models.BigIntegerField()
    """The API key, or 0 for none: SQL holds two NULLs to be different, so they would never add up."""
    model = models.CharField(max_length=128)
    node = models.CharField(max_length=64)

    class Meta:
        abstract = True


class UsageRollup(Sum):
    """Ended requests and their tokens."""

    requests = models.PositiveBigIntegerField()
    completed = models.PositiveBigIntegerField()
    failed = models.PositiveBigIntegerField()
    cancelled = models.PositiveBigIntegerField()
    expired = models.PositiveBigIntegerField()
    lost = models.PositiveBigIntegerField()
    prompt_tokens = models.PositiveBigIntegerField()
    """Without those of requests that nobody served, for which nothing is billed (`Settlement.served`)."""
    completion_tokens = models.PositiveBigIntegerField()
    generated_tokens = models.PositiveBigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["hour", "user", "key_id", "model", "node"], name="usage_once"),
        ]
        indexes = [models.Index(fields=["user", "hour"], name="usage_user_hour")]

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H}:00 {self.model}"


class LatencyHistogram(Sum):
    """How long completed requests took. `bars` is the JSON of an `histograms.Bars`.

    One row with all bars, because a batch of thirty requests meets some fifty of them: measured,
    a row for each bar cost as much as the requests' own rows.
    """

    bars = models.TextField()

    class Meta:
        verbose_name = "latency histogram"
        constraints = [
            models.UniqueConstraint(fields=["hour", "user", "key_id", "model", "node"], name="latency_once"),
        ]

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H}:00 {self.model}"


class KeyTotal(models.Model):
    """What a key has used since its first day, as counted by one node: what rows and sums must add up to."""

    key_id = models.BigIntegerField()
    """The API key, or 0 for none."""
    node = models.CharField(max_length=64)
    requests = models.PositiveBigIntegerField()
    """Ended ones."""
    prompt_tokens = models.PositiveBigIntegerField()
    """Billed ones, as in the sums."""
    completion_tokens = models.PositiveBigIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["key_id", "node"], name="key_total_once")]

    def __str__(self) -> str:
        return f"key {self.key_id} on {self.node}"


class LedgerCounter(models.Model):
    """What a node's writer has counted since its first day, independent of rows and sums."""

    node = models.CharField(primary_key=True, max_length=64)
    admitted = models.PositiveBigIntegerField()
    settled = models.PositiveBigIntegerField()
    retained_from = models.DateTimeField(null=True)
    """Retention has deleted, or is deleting, ended rows admitted before this hour."""
    live_since = models.DateTimeField(null=True)
    """The admission of the oldest request that the node's gateway holds; older open rows are nobody's.

    When none was held, the moment of the count."""

    def __str__(self) -> str:
        return self.node
