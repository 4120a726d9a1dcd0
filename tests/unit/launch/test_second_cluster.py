"""The second cluster of a clone: where it is, what it shares, and when there is one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from weft.client.context import Context, locate_context, write_context
from weft.contracts.clock import Clock
from weft.launch.local.down import find_second, place_second
from weft.launch.local.second import cluster
from weft.launch.local.second.cluster import CIDR, find_url, prepare_home, read_count
from weft.launch.local.topology import Taken, plan_topology
from weft.objects.errors import IllegalTransition, InUse, InvalidInput


def test_one_is_there_once_it_is_wanted_and_until_it_is_taken_away(tmp_path: Path) -> None:
    clone = str(tmp_path)
    assert (read_count("", clone), read_count("1", clone), read_count("2", clone)) == (1, 1, 2)
    (tmp_path / ".weft").mkdir()
    prepare_home(tmp_path, Path(place_second(clone)))
    assert find_second(clone) == place_second(clone)
    assert read_count("", clone) == 2  # make up heals both
    with pytest.raises(InUse, match="this clone has two clusters"):
        read_count("1", clone)
    with pytest.raises(InvalidInput, match="CLUSTERS=3"):
        read_count("3", clone)


def test_it_shares_the_cache_and_its_context_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(place_second(str(tmp_path)))
    (tmp_path / ".weft").mkdir()
    for _ in range(2):  # it repeats safely
        prepare_home(tmp_path, home)
    (tmp_path / ".weft" / "cache" / "image").write_text("x")
    assert (home / ".weft" / "cache" / "image").read_text() == "x"
    write_context(home / ".weft" / "context.json", Context(server="https://10.0.0.1:1"))
    monkeypatch.chdir(tmp_path)
    assert locate_context("west", {}).context.server == "https://10.0.0.1:1"


def test_both_have_names_networks_and_ports_of_their_own() -> None:
    first = plan_topology("/srv/weft", Taken())
    second = plan_topology(place_second("/srv/weft"), Taken(), 1)
    for part in ("id", "link_prefix", "underlay", "api_port", "run_dir", "nft_table", "cgroup", "state_dir"):
        assert getattr(first, part) != getattr(second, part), part
    assert find_url(second) == f"https://{second.gateway_address}:{second.api_port}"
    assert CIDR != "10.214.0.0/20"


def show(name: str, phase: str, epoch: str, trusted: int = 0) -> dict[str, Any]:
    """The link with cluster ``name``, which trusts this history of that one's store."""
    status = {"phase": phase, "epoch": epoch, "clock_offset_seconds": 0.0, "trusted": 0}
    return {"name": name, "actions": {"trusted": trusted}, "status": status}


@pytest.mark.parametrize(
    ("restored", "remedy"),
    [("east", "weft --context west cluster trust east"), ("west", "weft cluster trust west")],
)
@pytest.mark.parametrize("known", [True, False])
async def test_a_link_with_a_cluster_that_was_restored_is_waited_for_by_nobody_and_its_remedy_named(
    restored: str, remedy: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``known``: the other cluster has asked it since; until then it shows what it was told before."""
    first, second = plan_topology("/srv/weft", Taken()), plan_topology(place_second("/srv/weft"), Taken(), 1)
    found = {name: show(name, "Linked", f"{name} 1") for name in ("east", "west")}
    if known:
        found = {name: show(name, "Suspect" if name == restored else "Refused", f"{name} 1") for name in found}
    epochs = {name: f"{name} {2 if name == restored else 1}" for name in found}
    monkeypatch.setattr(
        cluster, "_inspect", lambda topology, name: (found[name], epochs["east" if topology is first else "west"])
    )

    async def sleep(_: float) -> None:
        assert found[restored]["actions"]["trusted"] == 1, "it waits though nobody trusts it again"
        found.update({name: show(name, "Linked", epochs[name]) for name in found})

    clock = cast(Clock, SimpleNamespace(elapsed=lambda: 0.0, sleep=sleep))
    with pytest.raises(IllegalTransition, match=f"since the store of {restored} was restored") as refused:
        await cluster._until_linked(first, second, clock)
    assert str(refused.value.hint).endswith(f": {remedy}")
    found = {name: show(name, "Refused" if name != restored else "Suspect", f"{name} 1", 1) for name in found}
    await cluster._until_linked(first, second, clock)  # people trust it, which the status doesn't say yet
