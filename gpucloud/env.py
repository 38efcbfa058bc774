"""Reads the environment: typed, with a clear error for a value that cannot be meant.

Only this file touches `os.environ` for settings. Each reader takes the variable's name and a
default; an empty variable counts as absent.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
import secrets
from collections.abc import Sequence
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


def env_choice(name: str, choices: Sequence[str], default: str) -> str:
    """Return the variable as one of a few words."""
    value = env_str(name, default).strip().lower()
    if value not in choices:
        raise ImproperlyConfigured(f"{name}={value!r}: expected {', '.join(choices[:-1])} or {choices[-1]}.")
    return value


def env_list(name: str, default: str = "") -> list[str]:
    """Return the variable's comma-separated parts."""
    return [part.strip() for part in env_str(name, default).split(",") if part.strip()]


def env_url(name: str) -> str:
    """Return the variable as `http(s)://host[:port]`, in lower case and without a slash at the end."""
    raw = env_str(name).strip()
    return _origin(name, raw.rstrip("/")) if raw else ""


def env_origins(name: str) -> list[str]:
    """Return the variable's comma-separated origins, as browsers spell them."""
    return [_origin(name, part) for part in env_list(name)]


def env_networks(name: str) -> list[str]:
    """Return the variable's comma-separated addresses and networks, each as a network."""
    try:
        return [str(ipaddress.ip_network(part)) for part in env_list(name)]
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}: {error}; expected addresses or networks: 10.0.0.0/8,::1.") from None


def env_rates(name: str, default: str) -> list[str]:
    """Return the variable's comma-separated rates, such as `10/m,100/h`; `off` means none."""
    rates = env_list(name, default)
    if rates == ["off"]:
        return []
    for rate in rates:
        if not re.fullmatch(r"[1-9][0-9]{0,8}/[smhd]", rate):
            raise ImproperlyConfigured(f"{name}={rate!r}: expected rates such as 10/m (s, m, h or d), or off.")
    return rates


def host_of(url: str) -> str:
    """Return the host of a URL as `ALLOWED_HOSTS` has it: IPv6 in brackets, no port."""
    host = urlsplit(url).hostname or ""
    return f"[{host}]" if ":" in host else host


def data_dir() -> Path:
    """Return the folder for this checkout's state, made on first use, readable by its owner only."""
    path = Path(env_str("GPUCLOUD_DATA_DIR", str(BASE_DIR / ".gpucloud")))
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def is_from_environment(name: str) -> bool:
    """Tell whether a secret was set by somebody, and not made by this checkout."""
    return bool(os.environ.get(name))


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


def _origin(name: str, text: str) -> str:
    parts = urlsplit(text.lower())
    try:
        whole = f"{parts.scheme}://{parts.netloc}" == text.lower() and bool(parts.hostname)
        port = parts.port
    except ValueError:
        whole, port = False, None
    if not whole or parts.scheme not in ("http", "https") or "@" in parts.netloc or "*" in parts.netloc:
        raise ImproperlyConfigured(f"{name}={text!r}: expected http(s)://host[:port], without a path.")
    # Browsers leave the usual port out, so an origin with it would never match.
    usual = {"http": 80, "https": 443}[parts.scheme]
    return text.lower().removesuffix(f":{usual}") if port == usual else text.lower()


SECRET_NAMES = ("GPUCLOUD_SECRET_KEY", "GPUCLOUD_KEY_PEPPER", "GPUCLOUD_JWT_KEY", "GPUCLOUD_WORKER_TOKEN")
