"""The API server of a test, as a process, and the store that servers of one share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import PROGRAM, EtcdServer
from tests.scenario.server.test_api_process import ApiProcess


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiProcess]:
    """Not started yet; it has a store of its own."""
    with ApiProcess(tmp_path / "state") as api:
        yield api


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """A real etcd of the test's own."""
    if PROGRAM is None:
        pytest.skip("etcd is not installed (apt-get install etcd-server)")
    with EtcdServer(tmp_path / "etcd") as server:
        yield server
