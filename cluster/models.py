"""The rows of this app: worker tokens and the workers ever seen.

A worker's row says that it was here, and what operators want of it; what it does now is in the
snapshot. Rows are written by `services` and read by `selectors`.
"""

from __future__ import annotations

from django.db.models import (
    PROTECT,
    BooleanField,
    CharField,
    DateTimeField,
    ForeignKey,
    Index,
    JSONField,
    Model,
    PositiveIntegerField,
    Q,
)

from cluster.domain import Intent
from gpucloud.lib.credential import Credential
from gpucloud.lib.globs import any_model, validate_globs


class WorkerToken(Credential):
    """What a worker shows to be let in."""

    models = JSONField(
        default=any_model, validators=[validate_globs], help_text='Globs of the model ids it may serve: ["llama-*"].'
    )


class Worker(Model):
    """A worker that has joined at least once: as it last described itself, and what is wanted of it."""

    id = CharField(primary_key=True, max_length=64)
    name = CharField(max_length=64)
    instance = CharField(max_length=64)
    token = ForeignKey(WorkerToken, null=True, blank=True, on_delete=PROTECT, related_name="workers")
    gpu = CharField("GPU", max_length=64)
    gpus = PositiveIntegerField("GPUs")
    models = JSONField(default=list)
    capacity = PositiveIntegerField()
    simulated = BooleanField(default=False)
    first_seen_at = DateTimeField()
    last_seen_at = DateTimeField(db_index=True)
    link = CharField(max_length=64, default="", db_default="")
    """The link it last joined over."""
    intent = CharField(
        max_length=16,
        choices=[(intent.value, intent.value) for intent in Intent],
        default=Intent.NONE.value,
        db_default=Intent.NONE.value,
    )
    """What operators want. It outlives the link: a worker that dials again meets the same wish."""
    evict_link = CharField(max_length=64, default="", db_default="")
    """The link that operators want closed. It names one link, so a later one is left alone."""

    class Meta:
        ordering = ("-last_seen_at",)
        indexes = [Index(fields=["intent"], condition=~Q(intent=Intent.NONE.value), name="worker_wanted")]

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"
