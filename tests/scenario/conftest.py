"""What holds for every scenario: a password costs nothing; what it costs people is shown in tests/unit/trust."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import argon2
import pytest
from tests.shelf import tmp_path_factory as tmp_path_factory

from weft.trust import passwords


@pytest.fixture(scope="module", autouse=True)
def cheap_passwords() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_hasher", argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        yield
    passwords._dummy.cache_clear()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Any]:
    """Two API servers over one store, which know of each other."""
    # Most scenarios need none of what this imports.
    lab = importlib.import_module("tests.scenario.two_servers_lab").TwoServers(tmp_path)
    lab.announce()
    yield lab
    lab.close()
