"""An engine for each test, checked for contradictions when the test is over."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.cluster.engine.rig import Rig


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    rig.stop()
