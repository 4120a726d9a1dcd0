"""`weft node power` against real BMCs: Redfish over TLS, and IPMI; and what people read when it goes wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scenario.bmc_lab import MACHINE, PASSWORD, USER, Bmc, run_ipmi, run_redfish
from tests.scenario.cli_lab import Fabric, Said, start_fabric


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with start_fabric() as made:
        yield made


@pytest.fixture(scope="module")
def redfish(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bmc]:
    with run_redfish(tmp_path_factory.mktemp("redfish")) as made:
        yield made


def keep_secret(fabric: Fabric, name: str, **values: str) -> None:
    given = [word for key, value in values.items() for word in ("--value", f"{key}={value}")]
    fabric.weft("secret", "delete", name, "--yes")
    said = fabric.weft("secret", "create", name, *given)
    assert said.code == 0, said.err


def read_power(fabric: Fabric, node: str) -> dict[str, object]:
    said = fabric.weft("get", f"node/{node}", "-o", "json")
    return dict(json.loads(said.out)["marks"]["power_reading"])


def test_a_machine_is_switched_over_redfish_and_each_order_ends_when_the_bmc_says_so(
    fabric: Fabric, redfish: Bmc
) -> None:
    keep_secret(fabric, "bmc", user=USER, password=PASSWORD, fingerprint=redfish.fingerprint)
    url = f"redfish://{redfish.host}:{redfish.port}"
    assert fabric.weft("node", "set", "n1", "--power", url, "--power-secret", "default/bmc").code == 0
    said = fabric.weft("node", "power", "n1")
    assert said.code == 0 and said.out.startswith("node/n1  power is on after"), said.err
    for order, state in (("off", "off"), ("off", "off"), ("on", "on"), ("cycle", "on")):
        said = fabric.weft("node", "power", "n1", order, "--timeout", "60s")
        assert said.code == 0 and f"power is {state} after" in said.out, said.err
    assert read_power(fabric, "n1")["off_at"]
    counts: dict[str, int] = {}
    for _ in range(100):  # an event is there a moment later
        said = fabric.weft("events", "node/n1", "-o", "json")
        counts = {one["reason"]: one["count"] for one in json.loads(said.out)["items"]}
        if counts.get("PoweredOn") == 2:
            break
    assert (counts["PoweredOff"], counts["PoweredOn"]) == (2, 2)


def test_a_machine_is_switched_over_ipmi(fabric: Fabric, tmp_path: Path) -> None:
    with run_ipmi(tmp_path / "ipmi") as bmc:
        keep_secret(fabric, "old", user=USER, password=PASSWORD)
        url = f"ipmi://{bmc.host}:{bmc.port}"
        assert fabric.weft("node", "set", "n2", "--power", url, "--power-secret", "default/old").code == 0
        for order, state in ((), "on"), (("off",), "off"), (("cycle",), "on"):
            said = fabric.weft("node", "power", "n2", *order, "--timeout", "60s")
            assert said.code == 0 and f"power is {state} after" in said.out, said.err
        keep_secret(fabric, "old", user=USER, password="wrong")
        said = fabric.weft("node", "power", "n2", "--timeout", "60s")
        assert said.code == 1 and "refuses the user or the password" in said.err
        assert read_power(fabric, "n2")["state"] == "unknown"
    assert "wrong" not in fabric.logs() and PASSWORD not in fabric.logs()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"user": USER, "password": "wrong", "fingerprint": "own"}, "refuses the user or the password"),
        ({"user": USER, "password": PASSWORD}, "isn't trusted; if the BMC itself shows the fingerprint"),
        (
            {"user": USER, "password": PASSWORD, "fingerprint": "00" * 32},
            "has another certificate than its secret says",
        ),
        (
            {"user": USER, "password": "two\nlines", "fingerprint": "own"},
            "password in secret default/bmc is not one line",
        ),
    ],
)
def test_a_bmc_that_refuses_or_is_not_trusted_says_why_and_no_secret_is_shown(
    fabric: Fabric, redfish: Bmc, values: dict[str, str], words: str
) -> None:
    keep_secret(
        fabric, "bmc", **{key: redfish.fingerprint if value == "own" else value for key, value in values.items()}
    )
    url = f"redfish://{redfish.host}:{redfish.port}/redfish/v1/Systems/{MACHINE}"
    assert fabric.weft("node", "set", "n1", "--power", url, "--power-secret", "default/bmc").code == 0
    said = fabric.weft("node", "power", "n1", "--timeout", "30s")
    assert said.code == 1 and words in said.err, said.err
    assert PASSWORD not in said.err + fabric.logs()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("node", "set", "n2", "--power", "redfish://"), "this isn't the address of a BMC"),
        (("node", "set", "n2", "--power", "redfish://root:pw@bmc"), "this isn't the address of a BMC"),
        (("node", "set", "n2", "--power", "ipmi://bmc:0"), "this isn't the address of a BMC"),
        (("node", "set", "n2", "--power", "ipmi://-H"), "this isn't the address of a BMC"),
        (("node", "set", "n2", "--power", "ipmi://bmc/redfish/v1/Systems/1"), "this isn't the address of a BMC"),
        (("node", "set", "n2", "--power", "http://bmc"), "this isn't the address of a BMC"),
        (("node", "set", "n2", "--power-secret", "bmc"), "write PROJECT/NAME"),
        (("node", "power", "n2", "on", "--force"), "--force has no effect on on"),
        (("node", "power", "off"), "give nodes"),
        (("node", "power"), "give nodes"),
    ],
)
def test_what_is_not_an_address_or_an_order_is_refused(fabric: Fabric, argv: tuple[str, ...], words: str) -> None:
    if argv[1] == "set" and "--power" in argv:
        argv = (*argv, "--power-secret", "default/bmc")
    elif argv[1] == "set":
        argv = (*argv, "--power", "redfish://bmc")
    said = fabric.weft(*argv)
    assert said.code == 2 and words in said.err and "root:pw" not in said.err, said.err


def test_a_secret_that_is_not_there_or_has_other_keys_is_refused_at_once_and_one_that_goes_is_named(
    fabric: Fabric,
) -> None:
    def point(secret: str) -> Said:
        return fabric.weft("node", "set", "n2", "--power", "redfish://127.0.0.1:9", "--power-secret", secret)

    keep_secret(fabric, "good", user=USER, password=PASSWORD)
    keep_secret(fabric, "registry", username=USER, password=PASSWORD)
    for secret, code, words in (
        ("default/godo", 3, 'secret "godo" not found in project default'),
        ("nowhere/good", 3, 'secret "good" not found in project nowhere'),
        ("default/registry", 2, "secret default/registry has no user"),
    ):
        said = point(secret)
        assert said.code == code and "--power-secret: " in said.err and words in said.err, said.err
        assert json.loads(fabric.weft("get", "node/n2", "-o", "json").out)["spec"].get("power_secret", "") != secret
    assert "did you mean good?" in point("default/godo").err
    assert "weft secret set registry -p default --value user=USER --password-stdin" in point("default/registry").err
    assert point("default/good").code == 0
    assert fabric.weft("secret", "delete", "good", "--yes").code == 0
    assert (
        fabric.weft("node", "set", "n2", "--autonomy", "5m").code == 0
    )  # what is named already is not asked for again
    said = fabric.weft("node", "power", "n2", "--timeout", "30s")
    assert said.code == 1 and "secret default/good does not exist" in said.err, said.err


def test_a_node_without_a_bmc_or_with_running_workloads_is_not_switched(fabric: Fabric, redfish: Bmc) -> None:
    assert fabric.weft("node", "set", "n2", "--power", "", "--power-secret", "").code == 0
    said = fabric.weft("node", "power", "n2", "off")
    assert said.code == 5 and "node/n2 has no BMC" in said.err, said.err
    keep_secret(fabric, "bmc", user=USER, password=PASSWORD, fingerprint=redfish.fingerprint)
    url = f"redfish://{redfish.host}:{redfish.port}"
    assert fabric.weft("node", "set", "n2", "--power", url, "--power-secret", "default/bmc").code == 0
    made = fabric.weft("vm", "create", "web", "--image", "tiny", "--node", "n2", "--timeout", "30s")
    assert made.code == 0, made.err
    said = fabric.weft("node", "power", "n2", "off")
    assert said.code == 5 and "has 1 workload" in said.err and "drain n2 first" in said.err, said.err
    assert fabric.weft("node", "power", "n2", "cycle", "--force", "--timeout", "60s").code == 0
