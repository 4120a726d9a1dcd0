"""The bridge driver keeps what every network driver promises."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from network_lab import Lab, Node
from tests.conformance.network import NetworkPromises


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab(nodes=1)
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
async def driver(lab: Lab) -> AsyncIterator[Node]:
    node = lab.nodes[0]
    yield node
    state = await node.state()
    await node.ensure_forwards([])
    for port_id in state.ports:
        await node.unplug(port_id)
    for segment_id in state.segments:
        await node.remove_segment(segment_id)
    node.restart()


@pytest.fixture
def reborn(driver: Node) -> Callable[[], Node]:
    def restart() -> Node:
        driver.restart()
        return driver

    return restart


@pytest.mark.host
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")
class TestBridge(NetworkPromises):
    pass
