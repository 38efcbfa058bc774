"""Who did what to which row, and what changed: Django's `LogEntry`, which the admin shows as history.

Services call `record` in the transaction of the change, so that one is never without the other.
Entries say fields and values; secrets, digests and passwords never get here. What a command does has
nobody in the database behind it: that is a line in the log only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from django.contrib.admin.models import ADDITION, CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model

__all__ = ["ADDITION", "CHANGE", "COMMAND", "Actor", "Changes", "find_changes", "record"]

logger = logging.getLogger("gpucloud.audit")

Changes = Mapping[str, tuple[Any, Any]]
"""Before and after, by the name of the field."""


class Actor(msgspec.Struct, frozen=True):
    """Who acts: a user's id, opaque to all but accounts; None for whoever holds the command line."""

    user_id: int | None
    label: str


COMMAND = Actor(None, "command line")


def find_changes(before: Model, after: Model, fields: tuple[str, ...]) -> Changes:
    """Return what differs between two states of a row."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in fields}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def record(*, actor: Actor, row: Model, did: str, changes: Changes | None = None, action: int = CHANGE) -> None:
    """Put on record that `actor` did something to `row`, in words: "Revoked.", "Changed: name a → b."."""
    if changes:
        did += " " + "; ".join(f"{name}: {_show(old)} → {_show(new)}" for name, (old, new) in changes.items())
    logger.info("audit actor=%r %s=%s did=%r", actor.user_id or actor.label, row._meta.label_lower, row.pk, did)
    if actor.user_id is not None:
        LogEntry.objects.create(
            user_id=actor.user_id,
            content_type_id=ContentType.objects.get_for_model(row).pk,
            object_id=str(row.pk),
            object_repr=str(row)[:200],
            action_flag=action,
            change_message=did,
        )


def _show(value: Any) -> str:
    return "none" if value is None else str(value)
