"""What is said of new disks that no pool can hold."""

from __future__ import annotations

from typing import Any

import pytest

from weft.cli.preview.pools import warn_of_pools
from weft.cli.session import Session
from weft.contracts.clock import SystemClock

GIB = 1 << 30


class Pools:
    def list(self, kind: str) -> Any:
        assert kind == "pool"
        items = [
            {"marks": {"pool": pool}, "status": {"nodes": nodes, "bound": bound * GIB}}
            for pool, nodes, bound in (("local", 1, 80), ("local", 1, 100), ("local", 0, 9000), ("san", 2, 500))
        ]
        return type("Listing", (), {"items": items})


@pytest.mark.parametrize(
    ("kind", "spec", "said", "code"),
    [
        ("volume", {"size": 1 << 50}, "1.0 PiB is more than any storage pool local may promise: 100.0 GiB at most", 6),
        ("volume", {"size": 501 * GIB, "pool": "san"}, "than any storage pool san may promise: 500.0 GiB at most", 6),
        ("volume", {"size": 100 * GIB, "pool": "local"}, "", 0),
        ("volume", {"size": GIB, "pool": "nope"}, "no node offers pool nope now", 0),
        ("vm", {"disk": 1 << 50}, "", 0),
        ("vm", {"pool": "nope"}, "pools that are offered: local, san", 0),
        ("container", {}, "", 0),
    ],
)
def test_a_new_disk_that_no_pool_can_hold_is_named_with_what_pools_may_promise(
    kind: str, spec: dict[str, Any], said: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(SystemClock, {})
    session.client = Pools()  # type: ignore[assignment]
    assert warn_of_pools(session, [{"kind": kind, "name": "v2", "spec": spec}]) == code
    told = capsys.readouterr().err
    assert told == "" if not said else said in told
