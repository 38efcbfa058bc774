"""One embedded server per database: an exclusive lock beside the SQLite file.

The kernel frees the lock when its holder dies, however it dies; the text in the file only says
whom to ask. On Postgres nothing is locked here: there many nodes are the point.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from django.conf import settings


class AlreadyRunning(Exception):
    """Another server holds this database."""


class InstanceLock:
    """Holds the lock for the life of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")

    def acquire(self, url: str) -> None:
        """Take the lock, or raise `AlreadyRunning` naming the pid and URL of the holder."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"already running: {_describe(self._file.read())}") from None
        self._file.seek(0)
        self._file.truncate()
        json.dump({"pid": os.getpid(), "url": url}, self._file)
        self._file.flush()


def lock_for_database() -> InstanceLock | None:
    """Return the lock that belongs to the configured database; None where none is needed."""
    database = settings.DATABASES["default"]
    if not str(database["ENGINE"]).endswith("sqlite3"):
        return None
    path = Path(f"{database['NAME']}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    return InstanceLock(path)


def running_url() -> str | None:
    """Return the URL of the server that holds the database's lock, if one does."""
    lock = lock_for_database()
    if lock is None:
        return None
    try:
        fcntl.flock(lock._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return str(json.loads(lock._file.read())["url"])
        except (ValueError, KeyError):
            return None
    return None


def _describe(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"pid {holder['pid']} at {holder['url']}"
    except (ValueError, KeyError):
        return "another server"
