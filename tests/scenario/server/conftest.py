"""The store that servers of a test share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import PROGRAM, EtcdServer


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """A real etcd of the test's own."""
    if PROGRAM is None:
        pytest.skip("etcd is not installed (apt-get install etcd-server)")
    with EtcdServer(tmp_path / "etcd") as server:
        yield server
