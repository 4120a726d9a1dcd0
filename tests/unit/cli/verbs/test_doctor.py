"""What `weft doctor` makes of what the server tells it."""

from __future__ import annotations

import pytest

from weft.cli.verbs.doctor import Finding, judge_programs, judge_servers, judge_trouble, judge_volume
from weft.objects.errors import StoreUnavailable, Unavailable


@pytest.mark.parametrize(
    ("home", "copies", "fact"),
    [
        ("u-n1", ["n2"], "its data is on n1; n2 has an unexplained copy"),
        (
            None,
            ["n2", "n3"],
            "n2, n3 hold unexplained copies of its data; weft can't tell which one is right",
        ),
        (
            "u-n4",
            ["n2", "n3"],
            "n2, n3 hold unexplained copies of its data; weft can't tell which one is right",
        ),
        ("u-gone", ["n2"], "its data is on gone; n2 has an unexplained copy"),
    ],
)
def test_doctor_says_which_data_is_used_and_which_is_not(home: str | None, copies: list[str], fact: str) -> None:
    node = home and home.removeprefix("u-")
    volume = {"name": "data", "uid": "v", "status": {"node": node, "node_uid": home, "copies": copies}}
    found = judge_volume(volume, {"u-n1": ["v"], "u-n2": ["v"], "u-n3": ["v"], "u-n4": []})
    assert found is not None and found.fact == fact
    assert judge_volume({**volume, "status": {"node": node, "node_uid": home}}, {}) is None


def test_a_lacking_qemu_comes_from_where_it_is_new_enough() -> None:
    assert judge_programs(set()) is None
    no_nft, nothing = judge_programs({"nft"}), judge_programs({"qemu-img", "qemu-system-x86_64", "nft", "ip"})
    assert no_nft is not None and no_nft.remedy == "apt-get install nftables (in a clone: make install)"
    assert (
        nothing is not None
        and nothing.fact == "missing: qemu-system-x86_64, qemu-img, ip, nft (needed where guests run)"
    )
    qemu = "apt-get install --no-install-recommends -t bookworm-backports qemu-system-x86 qemu-utils seabios"
    assert nothing.remedy == f"{qemu} && apt-get install iproute2 nftables (in a clone: make install)"


def test_a_server_whose_store_has_no_majority_is_not_called_dead() -> None:
    silent = judge_trouble(Unavailable("no server answers at https://s1"))
    assert silent.remedy in ("make up restarts what has died", "is weft server running there?")
    assert judge_trouble(StoreUnavailable("etcd has no leader", hint="start the others")).remedy == "start the others"


def server(name: str, member: str = "", **status: object) -> dict[str, object]:
    return {
        "name": name,
        "status": {"phase": "Ready", "address": f"https://{name}", **status},
        "marks": {"member": member},
    }


def judge(*servers: dict[str, object]) -> list[Finding]:
    return [finding for finding in judge_servers(servers) if finding.state != "ok"]


def test_doctor_says_what_is_wrong_with_servers() -> None:
    assert not judge(server("s1"))
    three = [server(name, f"{name}:2379", release="0.1.0") for name in ("s1", "s2", "s3")]
    assert [finding.subject for finding in judge_servers(three)] == ["server s1", "server s2", "server s3"]
    assert not judge(*three)
    dead = server("s3", "s3:2379", phase="NotReady", message="its member of the store at s3:2379 has no vote yet")
    [found] = judge(*three[:2], dead)
    assert found.state == "broken" and found.fact == "NotReady: its member of the store at s3:2379 has no vote yet"
    assert found.remedy == "start it if it doesn't run, or give it up: weft server delete s3"
    [even] = judge(*three[:2])
    assert even.fact.startswith("2 servers keep a member of the store")
    [early] = judge(*three[:2], server("s3", "s3:2379", release="0.1.0", clock_ahead=-3600))
    assert early.fact == "its clock is 60m behind the leading server's"
    [newer] = judge(*three[:2], server("s3", "s3:2379", release="0.2.0"))
    assert newer.fact == "run different releases: s1 0.1.0, s2 0.1.0, s3 0.2.0"
    for percent, state in ((69, []), (70, ["note"])):
        assert [finding.state for finding in judge(server("s1", store={"used": percent, "quota": 100}))] == state
    [differ] = judge(
        *three[:2], server("s3", "s3:2379", store={"quota": 1 << 30}), server("s4", store={"quota": 2 << 30})
    )
    assert differ.fact == "the servers' quotas differ: 1.0 GiB, 2.0 GiB; the smallest counts for all"
    [full] = judge(server("s1", store={"size": 100, "quota": 100, "problem": "it takes no writes"}))
    assert full.state == "broken" and full.fact == "server s1: it takes no writes"


def test_doctor_names_addresses_at_which_nobody_else_reaches_a_server() -> None:
    good = server("s1", address="https://10.0.0.1:8443", gateway="10.0.0.1:8444", functions="10.0.0.1:8445")
    for at, fact in (
        ("127.0.0.1:8445", "others don't reach 127.0.0.1:8445"),
        ("10.0.0.1:8445", "names 10.0.0.1:8445 for --functions, as server s1 does"),
    ):
        wrong = server("s2", address="https://10.0.0.2:8443", gateway="10.0.0.2:8444", functions=at)
        [found] = judge(good, wrong)
        assert (found.subject, found.state, found.fact) == ("server s2", "broken", fact)
        assert found.remedy == "start it with --functions and an address of its machine that the others reach"
    here = [server(f"s{n}", address=f"https://127.0.0.1:{n}", functions=f"127.0.0.1:1{n}") for n in (1, 2)]
    assert not judge(*here)  # all on one machine
