"""The house stays as it was drawn: layers, sizes, folders, migrations, style."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CODE = ("gpucloud", "accounts", "inference", "cluster", "tests")
TOP_LEVEL = {"gpucloud", "accounts", "inference", "cluster", "templates", "static", "tests"}


def run(*command: str) -> None:
    """Run a tool in the root and fail with what it says."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def tracked(*suffixes: str) -> list[Path]:
    """Return the files git knows of or would add, with one of the suffixes."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if name.endswith(suffixes) and (ROOT / name).exists()]


def test_ruff_finds_nothing():
    run(str(BIN / "ruff"), "check", ".")


def test_the_code_is_formatted():
    run(str(BIN / "ruff"), "format", "--check", ".")


def test_imports_keep_to_the_layers():
    run(str(BIN / "lint-imports"))


def test_types_are_right():
    run(str(BIN / "mypy"), "gpucloud", "accounts", "inference", "cluster")


def test_templates_are_formatted():
    templates = [str(path) for path in tracked(".html")]
    run(str(BIN / "djade"), "--target-version", "5.2", "--check", *templates)


def test_no_migration_is_missing():
    run(sys.executable, "manage.py", "makemigrations", "--check", "--dry-run")


def test_no_file_is_longer_than_500_lines():
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in tracked(".py")}

    assert {path: lines for path, lines in lengths.items() if lines > 500 and "migrations" not in path.parts} == {}


def test_the_top_level_is_the_house_and_nothing_else():
    folders = {path.relative_to(ROOT).parts[0] for path in tracked("") if len(path.relative_to(ROOT).parts) > 1}

    assert {folder for folder in folders if not folder.startswith(".")} == TOP_LEVEL


def test_every_module_says_what_it_is():
    silent = [
        str(path.relative_to(ROOT))
        for path in tracked(".py")
        if path.name not in ("__init__.py", "apps.py")
        and not path.name.startswith("test_")
        and "migrations" not in path.parts
        and not path.read_text().removeprefix("#!/usr/bin/env python\n").startswith(('"""', 'r"""'))
    ]

    assert silent == []


def test_the_lock_file_names_no_registry():
    lock = (ROOT / "requirements.lock").read_text()

    assert "://" not in lock
    assert "--hash=sha256:" in lock


@pytest.mark.parametrize("name", ["runworker", "createworkertoken"])
def test_worker_commands_are_ours_and_not_those_of_channels(name):
    from django.core.management import get_commands

    assert get_commands()[name] == "cluster"
