"""The page of settings tells of every variable that is read, with its default, and of no other."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest

from gpucloud.env import BASE_DIR, SECRET_NAMES

PAGE = (BASE_DIR / "templates" / "docs" / "settings.md").read_text()
ROWS = {name: default.strip() for name, default in re.findall(r"^\| `([A-Z_]+)` \|([^|]*)\|", PAGE, flags=re.MULTILINE)}


def reads() -> dict[str, Any]:
    """Return each variable that the settings read, with its default where that is a constant."""
    found: dict[str, Any] = dict.fromkeys(SECRET_NAMES)
    for file in ("settings.py", "env.py"):
        for node in ast.walk(ast.parse((BASE_DIR / "gpucloud" / file).read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.startswith("env_")):
                continue
            name = node.args[0]
            if isinstance(name, ast.Constant):
                try:
                    default = eval(compile(ast.Expression(node.args[-1]), file, "eval"), {}) if node.args[1:] else None
                except NameError:
                    default = None
                found[str(name.value)] = default
    return found


def test_every_variable_is_on_the_page_and_the_reverse() -> None:
    # The folder is read by a function of its own, and the environment names the database.
    assert set(ROWS) == set(reads()) | {"GPUCLOUD_DATA_DIR", "DATABASE_URL"}
    assert len(ROWS) > 60


@pytest.mark.parametrize(("name", "default"), [(n, d) for n, d in reads().items() if isinstance(d, bool | int | float)])
def test_the_page_tells_the_default_that_holds(name: str, default: float) -> None:
    assert float(ROWS[name]) == float(default)


@pytest.mark.parametrize(("name", "default"), [(n, d) for n, d in reads().items() if isinstance(d, str) and d])
def test_the_page_tells_the_words_that_hold(name: str, default: str) -> None:
    assert default in ROWS[name]
