"""Fixtures for every test: the cast. What only some tests need lives beside them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from accounts.models import User
from tests.factories import make_user
from tests.live import LiveServer, live_server

pytest_plugins = ["tests.browser"]


@pytest.fixture
def alice(db: None) -> User:
    """An app developer."""
    return make_user("alice")


@pytest.fixture
def bob(db: None) -> User:
    """Another app developer, who must not see what is Alice's."""
    return make_user("bob")


@pytest.fixture
def charlie(db: None) -> User:
    """A platform operator: staff, with every permission."""
    return User.objects.create_superuser("charlie@example.com", "correct horse battery staple")


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A real server with two fast workers, shared by tests that leave it as they found it."""
    with live_server(tmp_path_factory.mktemp("live"), GPUCLOUD_NO_WORKER_GRACE_S="1") as server:
        server.start_worker("--speed", "0", "--model", "llama-3-8b", "mistral-7b", name="fast")
        server.start_worker("--speed", "0", "--gpu", "A6000", "--model", "mistral-7b", name="second")
        yield server
