"""Reads the environment: typed, with a clear error for a value that cannot be meant.

Only this file touches `os.environ` for settings. Each reader takes the variable's name and a
default; an empty variable counts as absent.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from pathlib import Path
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent


def env_str(name: str, default: str = "") -> str:
    """Return the variable as text."""
    return os.environ.get(name) or default


def env_bool(name: str, default: bool = False) -> bool:
    """Return the variable as a switch: 1/0, true/false, yes/no, on/off."""
    match os.environ.get(name, "").strip().lower():
        case "":
            return default
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
        case other:
            raise ImproperlyConfigured(f"{name}={other!r}: expected 1 or 0.")


def env_float(name: str, default: float, *, minimum: float = 0.0) -> float:
    """Return the variable as a number of at least `minimum`."""
    raw = os.environ.get(name, "").strip()
    if not raw:
        return default
    try:
        value = float(raw)
    except ValueError:
        raise ImproperlyConfigured(f"{name}={raw!r}: expected a number.") from None
    if not minimum <= value < float("inf"):
        raise ImproperlyConfigured(f"{name}={raw!r}: expected a number of at least {minimum:g}.")
    return value


def env_int(name: str, default: int, *, minimum: int = 0) -> int:
    """Return the variable as a whole number of at least `minimum`."""
    value = env_float(name, default, minimum=minimum)
    if value != int(value):
        raise ImproperlyConfigured(f"{name}={value!r}: expected a whole number.")
    return int(value)


def env_list(name: str, default: str = "") -> list[str]:
    """Return the variable's comma-separated parts."""
    return [part.strip() for part in env_str(name, default).split(",") if part.strip()]


def data_dir() -> Path:
    """Return the folder for this checkout's state, made on first use, readable by its owner only."""
    path = Path(env_str("GPUCLOUD_DATA_DIR", str(BASE_DIR / ".gpucloud")))
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def env_secret(name: str) -> str:
    """Return the variable, else this checkout's own secret of that name, made once.

    Commands that start together agree on it: the file is read and completed under a lock.
    """
    if value := os.environ.get(name):
        return value
    path = data_dir() / "secrets.json"
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read()
        try:
            kept = {str(key): str(value) for key, value in json.loads(text or "{}").items()}
        except (ValueError, AttributeError):
            raise ImproperlyConfigured(f"{path} is not a JSON object: set {name}, or remove the file.") from None
        if not kept.get(name):
            kept |= {key: secrets.token_urlsafe(48) for key in SECRET_NAMES if not kept.get(key)}
            file.seek(0)
            file.truncate()
            json.dump(kept, file, indent=2)
        return kept[name]


def database_config(url: str) -> dict[str, object]:
    """Return Django's settings for `DATABASE_URL`; empty means SQLite in the data folder."""
    parts = urlsplit(url)
    match parts.scheme:
        case "" | "sqlite":
            name = unquote(parts.path) if url else str(data_dir() / "db.sqlite3")
            return {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": name,
                "CONN_MAX_AGE": 0,
                "OPTIONS": {
                    # IMMEDIATE: a transaction that reads first and writes later would otherwise
                    # fail with "database is locked" instead of waiting its turn.
                    "transaction_mode": "IMMEDIATE",
                    "timeout": 5,
                    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
                },
            }
        case "postgres" | "postgresql":
            return {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": unquote(parts.path.lstrip("/")),
                "USER": unquote(parts.username or ""),
                "PASSWORD": unquote(parts.password or ""),
                "HOST": unquote(parts.hostname or ""),
                "PORT": parts.port or "",
                "CONN_MAX_AGE": 0,
                "OPTIONS": {"pool": {"min_size": 1, "max_size": 10, "timeout": 5}},
            }
        case other:
            raise ImproperlyConfigured(f"DATABASE_URL: {other!r} is not sqlite or postgres.")


SECRET_NAMES = ("GPUCLOUD_SECRET_KEY", "GPUCLOUD_KEY_PEPPER", "GPUCLOUD_JWT_KEY", "GPUCLOUD_WORKER_TOKEN")
