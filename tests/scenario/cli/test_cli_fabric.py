"""The command against a real server and agents whose guests only pretend: what a person types, sees and gets back."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tarfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.scenario.cli_lab import Fabric, Said, start_fabric

TINY = ["--image", "tiny", "--cpu", "0.1", "--memory", "64M"]


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with start_fabric() as made:
        yield made


def listed(fabric: Fabric, *argv: str) -> list[dict[str, Any]]:
    said = fabric.weft(*argv, "-o", "json")
    assert said.code == 0, said.err
    items: list[dict[str, Any]] = json.loads(said.out)["items"]
    return items


def make(fabric: Fabric, name: str, *more: str) -> None:
    said = fabric.weft("vm", "create", name, *TINY, *more)
    assert said.code == 0, said.err


def test_a_vm_is_created_listed_described_and_deleted(fabric: Fabric) -> None:
    said = fabric.weft("vm", "create", "first", *TINY, "--label", "tier=db", "--publish", "18080:80")
    assert said.code == 0, said.err
    assert said.out.startswith("vm/first  Running on n")
    assert "vm/first  placed on n" in said.err

    (item,) = listed(fabric, "get", "vm", "-l", "tier=db")
    assert item["spec"]["publish"] == ["18080:80"]
    assert item["spec"]["memory"] == 64 * 2**20
    assert fabric.weft("vm", "list", "-l", "tier=db", "-o", "name").out == "vm/first\n"
    assert listed(fabric, "vm", "list", "-l", "tier=web") == []
    assert fabric.weft("vm", "list", "--field", "phase=Running", "-o", "name").out == "vm/first\n"

    while "Running" not in fabric.weft("vm", "events", "first").out:
        pass  # an event may come a moment after what it tells of, and descriptions end with events
    same = [fabric.weft(*line.split()).out for line in ("describe vm first", "vm describe first", "describe vm/first")]
    ageless = [[word for word in text.split() if not re.fullmatch(r"\d+[sm]", word)] for text in same]
    assert ageless[0] == ageless[1] == ageless[2]
    assert "64 MiB" in same[0]
    assert json.loads(fabric.weft("vm", "get", "first", "-o", "json").out)["name"] == "first"

    assert fabric.weft("vm", "delete", "first").code == 2
    gone = fabric.weft("vm", "delete", "first", "--yes")
    assert (gone.code, gone.out.split(" after")[0]) == (0, "vm/first  deleted")
    missing = fabric.weft("vm", "describe", "first")
    assert (missing.code, missing.err.splitlines()[0]) == (3, 'error: VM "first" not found')


def test_every_verb_of_the_life_of_a_vm_waits_until_it_is_so(fabric: Fabric) -> None:
    make(fabric, "life")
    for line, ending in (
        ("vm stop life", "Stopped"),
        ("start vm/life", "Running"),
        ("vm restart vm/life", "Running"),
        ("suspend vm life", "Suspended"),
        ("vm resume life --wait", "Running"),
    ):
        said = fabric.weft(*line.split())
        assert said.code == 0, said.err
        assert said.out.startswith(f"vm/life  {ending} on n"), line
    illegal = fabric.weft("vm", "release", "life")
    assert illegal.code == 5
    assert "possible now:" in illegal.err
    detached = fabric.weft("vm", "stop", "life", "--detach")
    operation = detached.out.removeprefix("vm/life  stop requested; operation ").strip()
    assert re.fullmatch(r"vm/life@\d+", operation)
    assert fabric.weft("operation", "attach", operation, "--timeout", "20s").code == 0
    assert fabric.weft("vm", "list", "--field", "name=life", "-c", "phase", "--no-header").out == "Stopped\n"
    assert fabric.weft("vm", "delete", "life", "--yes").code == 0


def test_a_detached_command_says_what_can_be_attached_to_in_its_project_too(fabric: Fabric) -> None:
    assert fabric.weft("project", "create", "far").code == 0
    volume = ("volume", "create", "v", "--size", "1G")
    for where in ((), ("-p", "far")):
        said = fabric.weft(*volume, *where, "--detach")
        assert said.out == " ".join(("volume/v  created; operation volume/v@1", *where)) + "\n"
        attached = fabric.weft("operation", "attach", "volume/v@1", *where, "--timeout", "20s")
        assert attached.out.startswith("volume/v  Available after"), attached.err
    later = fabric.weft("operation", "show", "volume/v@99")
    assert later.code == 3 and "operation volume/v@99 not found: the newest is volume/v@1" in later.err
    job = fabric.weft("job", "run", "j", "--image", "registry.example.org/x:1", "-p", "far", "--detach")
    assert job.out == "job/j  created; watch: weft operation attach job/j@1 -p far\n"
    late = fabric.weft(*job.out.partition("watch: weft ")[2].split(), "--timeout", "10ms")
    assert (late.code, late.err.splitlines()[-1]) == (7, "weft wait job/j -p far   weft describe job/j -p far")
    assert (
        fabric.weft("job", "cancel", "j", "-p", "far", "--detach").out == "job/j  cancelled\n"
    )  # its operation has failed
    assert fabric.weft("job", "delete", "j", "-p", "far", "--yes").code == 0
    for where in ((), ("-p", "far")):
        assert fabric.weft("volume", "delete", "v", *where, "--yes").code == 0
    assert fabric.weft("network", "delete", "default", "-p", "far", "--yes").code == 0
    assert fabric.weft("project", "delete", "far", "--yes").code == 0


def test_a_condition_that_was_waited_for_is_named_when_it_holds(fabric: Fabric) -> None:
    make(fabric, "cond")
    said = fabric.weft("wait", "vm/cond", "--for", "condition=placed")
    assert re.fullmatch(r"vm/cond  Placed on n\d after 0\.\d s\n", said.out), said
    late = fabric.weft("wait", "node/n1", "--for=condition=Ready=False", "--timeout", "10ms")
    assert "error: node/n1 was not Ready=False within 0.01 s" in late.err
    assert fabric.weft("vm", "delete", "cond", "--yes").code == 0


def test_a_vm_that_is_held_is_placed_when_it_is_released(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "held", *TINY, "--hold").out.startswith("vm/held  Hold")
    late = fabric.weft("wait", "vm/held", "--for=phase=Running", "--timeout", "200ms")
    assert late.code == 7
    assert "the work goes on" in late.err
    assert fabric.weft("vm", "create", "vast", *TINY, "--memory", "900G").code == 6
    late = fabric.weft("wait", "vm/vast", "--for=phase=Running", "--timeout", "200ms")
    assert late.code == 7 and "within 0.2 s (insufficientResources: needs 900.0 GiB memory" in late.err, late.err
    assert fabric.weft("vm", "delete", "vast", "--yes").code == 0
    assert fabric.weft("vm", "release", "held").out.startswith("vm/held  Running on n")
    assert fabric.weft("vm", "delete", "held", "--yes").code == 0


def test_a_verb_whose_waiting_ends_early_exits_with_the_reason_and_not_as_half_done(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "big", "--image", "tiny", "--memory", "900G", "--hold").code == 0
    assert fabric.weft("vm", "release", "big").code == 6
    assert fabric.weft("vm", "delete", "big", "--yes").code == 0
    make(fabric, "web")
    late = fabric.weft("vm", "restart", "web", "--timeout", "1ms")
    assert late.code == 7, late.err
    assert fabric.weft("vm", "stop", "none", "web").code == 8
    assert fabric.weft("vm", "delete", "web", "--yes", "--timeout", "0").code == 7
    assert fabric.weft("wait", "vm/web", "--for=delete").code == 0


def test_where_no_node_fits_it_says_what_is_missing_where_and_exits_6(fabric: Fabric) -> None:
    said = fabric.weft("vm", "create", "big", "--image", "tiny", "--cpu", "64", "--memory", "900G")
    assert said.code == 6
    lines = said.err.splitlines()
    first = lines.index("error: vm/big fits on no node: insufficientResources")
    assert lines[first + 1].split()[:4] == ["n1", "cpu", "64", "wanted,"]
    assert "nearest: " in said.err
    assert "weft wait vm/big | weft explain vm/big | weft delete vm/big" in said.err
    told = json.loads(
        fabric.weft("vm", "create", "big2", "--image", "tiny", "--cpu", "64", "-o", "json").err.splitlines()[-1]
    )
    assert told["code"] == "insufficientResources"
    assert told["details"]["nearest"]
    assert [item["status"]["phase"] for item in listed(fabric, "vm", "get", "big", "big2")] == ["Pending", "Pending"]
    why = fabric.weft("explain", "vm", "big")
    assert why.code == 0
    assert "refused" in why.out
    assert fabric.weft("vm", "delete", "big", "big2", "--yes").code == 0


def test_a_dry_run_of_something_new_says_whether_and_where_it_would_be_placed(fabric: Fabric) -> None:
    said = fabric.weft("vm", "create", "dry", *TINY, "--dry-run")
    assert said.code == 0 and re.fullmatch(r"vm/dry  would be created, and placed on n[12] by least_loaded\n", said.out)
    big = fabric.weft("vm", "create", "dry", "--image", "tiny", "--memory", "900G", "--dry-run=server")
    assert big.code == 6, big.err
    assert big.out.startswith(
        "vm/dry  would be created, and stay Pending\nvm/dry fits on no node now: insufficientResources"
    )
    assert "least change: " in big.out
    whole = fabric.weft("vm", "create", "dry", "--image", "tiny", "--memory", "900G", "--dry-run", "-o", "json")
    assert (whole.code, json.loads(whole.out)["name"]) == (6, "dry")
    held = fabric.weft("vm", "create", "dry", "--image", "tiny", "--memory", "900G", "--hold", "--dry-run")
    assert (held.code, held.out) == (0, "vm/dry  would be created\n")
    task = fabric.weft("run", "dry", "tiny", "--dry-run")
    assert task.code == 2 and "image tiny is a disk for VMs" in task.err
    here = fabric.weft("--context", "/no/context", "vm", "create", "dry", "--image", "nosuch", "--dry-run=client")
    assert (here.code, here.out) == (0, "vm/dry  would be created; no server was contacted\n")
    assert fabric.weft("vm", "create", "--dry-run=client", "dry", "--image", "tiny", "--cpu", "x").code == 2
    assert fabric.weft("vm", "get", "dry").code == 3
    assert listed(fabric, "get", "recommendation") == []


def test_the_places_of_a_plan_are_those_that_apply_takes(fabric: Fabric, tmp_path: Path) -> None:
    """Members of groups are placed one after the other, with those before counted: two of one that keeps apart, two of one that
    stays together."""

    def make(name: str, **spec: Any) -> dict[str, Any]:
        return {"kind": "vm", "name": name, "spec": {"image": "tiny", "cpu": 0.1, "memory": "64M", **spec}}

    members = [
        *(make(f"apart-{number}", anti_affinity_groups=["apart"]) for number in (1, 2)),
        *(make(f"beside-{number}", affinity_groups=["beside"], memory="128M") for number in (1, 2, 3)),
    ]
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(members))
    plan = json.loads(fabric.weft("plan", "-f", str(file), "-o", "json").out)
    planned = {one["name"]: one["placement"]["node"] for one in plan["items"]}
    assert planned["apart-1"] != planned["apart-2"]
    assert len({planned[f"beside-{number}"] for number in (1, 2, 3)}) == 1
    dry = fabric.weft("apply", "-f", str(file), "--dry-run").out
    assert re.findall(r"vm/(\S+)  would be created, and placed on (n\d)", dry) == list(planned.items())
    done = fabric.weft("apply", "-f", str(file), "--plan", plan["id"])
    assert done.code == 0, done.err
    there = {one["name"]: one["status"]["node"] for one in listed(fabric, "vm", "list")}
    assert {name: there[name] for name in planned} == planned
    assert fabric.weft("delete", *(f"vm/{name}" for name in planned), "--yes").code == 0


def test_explain_shows_the_decision_that_was_made(fabric: Fabric) -> None:
    make(fabric, "why", "--strategy", "best_fit")
    said = fabric.weft("vm", "explain", "why")
    assert "was placed on n" in said.out
    assert "best_fit" in said.out.splitlines()[0]
    assert {line.split()[1] for line in said.out.splitlines()[2:]} <= {"chosen", "fits"}
    assert fabric.weft("vm", "delete", "why", "--yes").code == 0


def test_why_not_says_when_it_was_so_and_how_it_is_now(fabric: Fabric) -> None:
    nodes = [item["name"] for item in listed(fabric, "get", "node")]
    away = nodes[-1]
    assert fabric.weft("node", "cordon", away, "--reason", "disk swap").code == 0
    make(fabric, "why-not")
    there = fabric.weft("vm", "explain", "why-not", "--why-not", away).out.splitlines()
    assert re.fullmatch(rf"{away} couldn't take vm/why-not at \d\d:\d\d:\d\d: cordoned .*disk swap.*", there[0])
    assert there[1].startswith(f"{away} can't take vm/why-not now: cordoned")
    assert there[1].endswith(f"weft node uncordon {away}")
    assert fabric.weft("node", "uncordon", away).code == 0
    back = fabric.weft("vm", "explain", "why-not", "--why-not", away).out.splitlines()
    assert back[0] == there[0]
    assert back[1].startswith((f"{away} could take vm/why-not now", f"{away} would be chosen for vm/why-not now"))
    assert fabric.weft("vm", "delete", "why-not", "--yes").code == 0


def test_a_name_taken_and_a_port_taken_are_conflicts(fabric: Fabric) -> None:
    make(fabric, "taken", "--publish", "18081:80")
    again = fabric.weft("vm", "create", "taken", *TINY)
    assert again.code == 5
    assert "exists already" in again.err
    port = fabric.weft("vm", "create", "other", *TINY, "--publish", "18081:80")
    assert port.code == 5
    assert "portInUse" in port.err
    assert fabric.weft("vm", "get", "other").code == 3
    assert fabric.weft("vm", "delete", "taken", "--yes").code == 0


def test_what_cannot_be_is_refused_and_leaves_nothing(fabric: Fabric) -> None:
    for line in ("--image tny", "--image tiny --network nowhere", "--image tiny --strategy worst_fit"):
        said = fabric.weft("vm", "create", "never", *line.split())
        assert said.code in (2, 3), line
        assert line.split()[-1] in said.err
    assert fabric.weft("vm", "get", "never").code == 3
    huge = fabric.weft("vm", "create", "never", "--image", "tiny", "--cpu", "4000")
    assert (huge.code, "at most 255; the nodes have n2 4, n1 4" in huge.err) == (2, True), huge.err


def test_what_no_object_can_have_is_neither_listed_nor_waited_for(fabric: Fabric) -> None:
    said = fabric.weft("vm", "list", "--field", "nodee=n1")
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == ["error: 'nodee' is not a field of vms", "did you mean node?"]
    said = fabric.weft("wait", "node/n1", "--for", "phase=Reddy", "--timeout", "60s")
    assert said.code == 2
    assert said.err.splitlines()[1] == "did you mean phase=Ready?"
    assert fabric.weft("node", "list", "--field", "state=ready", "-o", "name").out == "node/n1\nnode/n2\n"


def test_a_wrong_checksum_says_so_and_the_image_is_not_kept(fabric: Fabric) -> None:
    path = str(fabric.folder / "tiny.tar")
    said = fabric.weft("image", "add", "wrong", path, "--sha256", "0" * 64)
    assert said.code == 1
    assert "sha256" in said.err and "weft describe" not in said.err
    assert said.err.endswith(
        "\ncorrect the source, the digest or the secret, and add the image again\nimage/wrong was not kept\n"
    )
    assert fabric.weft("image", "get", "wrong").code == 3
    assert fabric.weft("vm", "create", "source", "--image", "tiny").code == 0
    said = fabric.weft("image", "create", "wrong", "--from", "vm/source")  # these nodes only pretend to have disks
    assert said.err.endswith("\ncreate the image again once that is resolved\nimage/wrong was not kept\n")
    assert fabric.weft("vm", "delete", "source", "--yes").code == 0
    assert fabric.weft("image", "add", "gone", "/no/such/file").code == 1
    said = fabric.weft("vm", "create", "fold", "--image", "tiny", "--iso", "/no/such/file.iso")
    assert said.code == 1 and said.err.count("error: ") == 1 and "image/file was not kept" in said.err
    assert fabric.weft("vm", "get", "fold").code == 3
    assert fabric.weft("image", "list", "-o", "name").out == "image/tiny\n"
    assert fabric.weft("image", "add", "tiny", path).code == 5
    assert fabric.weft("image", "get", "tiny").code == 0


MANIFEST = """\
kind: network
name: blue
spec:
  cidr: 10.20.0.0/24
---
kind: vm
name: applied
labels: {tier: web}
spec:
  image: tiny
  cpu: 0.1
  memory: 64M
  networks: [blue]
"""


def test_apply_makes_changes_and_leaves_alone_and_diff_tells_beforehand(fabric: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text(MANIFEST)
    assert fabric.weft("diff", str(path)).code == 1
    here = fabric.weft("--context", "/no/context", "apply", "--dry-run=client", str(path))
    assert here.out.splitlines() == [
        f"{what}  is valid; no server was contacted" for what in ("network/blue", "vm/applied")
    ]
    first = fabric.weft("apply", str(path))
    assert first.code == 0, first.err
    assert first.out.splitlines()[:2] == ["network/blue  created", "vm/applied  created"]
    assert first.out.splitlines()[-1].startswith(("vm/applied  Running on n", "network/blue  Ready"))
    assert fabric.weft("diff", "-f", str(path)) == (0, "", "")
    assert fabric.weft("apply", "-f", str(path)).out == "network/blue  unchanged\nvm/applied  unchanged\n"

    path.write_text(MANIFEST.replace("64M", "80M"))
    told = fabric.weft("diff", "-f", str(path))
    assert told.code == 1
    assert "spec.memory 64 MiB → 80 MiB (immediately)" in told.out
    assert "updated: spec.memory 64 MiB → 80 MiB" in fabric.weft("apply", "-f", "-", stdin=path.read_text()).out

    back = fabric.weft("get", "vm", "applied", "-o", "yaml").out
    assert yaml.safe_load(back)["status"]["phase"] == "Running"
    assert fabric.weft("apply", "-f", "-", stdin=back).out == "vm/applied  unchanged\n"
    everything = fabric.weft("get", "vm/applied", "network/blue", "-o", "json").out
    assert fabric.weft("apply", "-f", "-", stdin=everything).out.count("unchanged") == 2

    kept = fabric.weft("get", "vm/applied", "network/blue", "-o", "manifest").out
    assert [doc["kind"] for doc in yaml.safe_load_all(kept)] == ["vm", "network"]

    blocked = fabric.weft("network", "delete", "blue", "--yes")
    assert blocked.code == 5
    assert "applied" in blocked.err
    assert fabric.weft("delete", "vm/applied", "network/blue", "--yes").code in (0, 8)
    fabric.weft("network", "delete", "blue", "--yes")
    assert fabric.weft("get", "network", "blue").code == 3

    assert fabric.weft("apply", "-f", "-", stdin=kept).code == 0  # what was kept as a manifest makes them once more
    assert yaml.safe_load(fabric.weft("get", "vm", "applied", "-o", "yaml").out)["spec"]["memory"] == 83886080
    assert fabric.weft("vm", "delete", "applied", "--yes").code == 0
    fabric.weft("network", "delete", "blue", "--yes")


def test_the_queue_says_what_waits_until_when_and_why(fabric: Fabric) -> None:
    assert fabric.weft("queue").err == "the queue is empty\n"
    assert fabric.weft("project", "create", "far").code == 0
    make(fabric, "now", "--node", "n1", "--cpu", "4", "--lease", "immediate", "--duration", "1h", "--grace", "0s")
    (end,) = [one["status"]["end"] for one in listed(fabric, "lease", "list")]
    make(fabric, "next", "--node", "n1", "--cpu", "4", "--duration", "1h", "--priority", "3", "--detach")
    while not fabric.weft("queue", "-c", "held by", "--no-header").out.startswith("no node has 4 free cores"):
        pass  # until the scheduler has decided
    (item,) = listed(fabric, "queue")
    assert item.pop("held_by")["reason"] == "insufficientResources" and item.pop("waiting_seconds") >= 0
    shown = {"place": 1, "workload": "vm/next", "kind": "vm", "project": "default", "priority": 3}
    assert item == {**shown, "expected_start": end, "confidence": "high", "passed_by": ""}
    row = fabric.weft("queue", "-A", "-c", "project,place,workload,confidence", "--no-header").out.split()
    assert row == ["default", "1", "vm/next", "high"]
    assert fabric.weft("queue", "-o", "name").out == "vm/next\n"
    assert listed(fabric, "queue", "-p", "far") == []
    assert listed(fabric, "get", "recommendation") == listed(fabric, "get", "report") == []
    for name in ("vm/next", "vm/now", "project/far"):
        assert fabric.weft("delete", name, "--yes").code == 0


def test_leases_say_their_new_end_whose_they_are_and_that_they_were_refused(fabric: Fabric) -> None:
    made = fabric.weft(
        "vm",
        "create",
        "lab",
        "--image",
        "tiny",
        "--memory",
        "64M",
        "--lease",
        "immediate",
        "--duration",
        "1h",
        "--grace",
        "5s",
    )
    assert made.code == 0 and made.out.startswith("vm/lab  Running on n")
    assert re.fullmatch(r"vm/lab  lease extended: ends 20\S+ \S+ UTC, in 1h[23]\dm\n", extend(fabric, "vm/lab").out)
    shown = dict(line.split(maxsplit=1) for line in fabric.weft("lease", "describe", "vm/lab").out.splitlines())
    assert (shown["mode"], shown["state"], shown["duration"], shown["priority"]) == (
        "immediate",
        "Active",
        "1h30m",
        "0",
    )
    assert shown["end"].endswith("m") and " UTC, in 1h" in shown["end"] and shown["phase"] == "Running"
    assert fabric.weft("lease", "cancel", "vm/lab").out == (
        "vm/lab  lease cancelled: it shuts down within 5s, and keeps its disks\n"
    )
    assert fabric.weft("wait", "vm/lab", "--for=phase=Stopped").code == 0
    ended = fabric.weft("vm", "suspend", "lab")
    assert ended.code == 5 and "possible now: delete" in ended.err and "start" not in ended.err

    assert fabric.weft("reservation", "create", "class", "--cpu", "1", "--memory", "128M", "--duration", "1h").code == 0
    inside = fabric.weft("vm", "create", "guest", *TINY, "--cpu", "0.5", "--reservation", "class")
    assert inside.code == 0 and inside.out.startswith("vm/guest  Running on n")
    alone = extend(fabric, "vm/guest")
    assert alone.code == 5 and "vm/guest is in reservation/class" in alone.err
    assert "weft reservation extend class --by" in alone.err

    refused = fabric.weft("reservation", "create", "large", "--cpu", "99", "--memory", "128M", "--duration", "1h")
    assert refused.code == 6 and "no node has 99 free cores and 128 MiB from 20" in refused.err
    assert "; most free: " in refused.err
    assert [(one["state"], one["phase"]) for one in listed(fabric, "operation", "list")] == [("failed", "Rejected")]
    assert fabric.weft("reservation", "create", "large", "--cpu", "1", "--memory", "128M", "--duration", "1h").code == 0
    assert listed(fabric, "operation", "list") == []
    for name in ("vm/guest", "vm/lab", "reservation/class", "reservation/large"):
        assert fabric.weft("delete", name, "--yes").code == 0, name


def extend(fabric: Fabric, name: str) -> Said:
    return fabric.weft("lease", "extend", name, "--by", "30m")


def test_the_report_on_fairness_says_what_each_project_has(fabric: Fabric) -> None:
    assert fabric.weft("project", "create", "heavy").code == 0
    assert fabric.weft("project", "set", "heavy", "--weight", "3").code == 0
    make(fabric, "has", "--cpu", "2")
    shares = {one.pop("project"): one for one in listed(fabric, "fairness")}
    used = {"cpu": 2.0, "memory": 64 * 2**20, "gpus": 0.0}
    shown = {"weight": 1.0, "dominant_resource": "cpu", "dominant_share": 0.25, "entitled_share": 1.0}
    assert shares["default"] == {**shown, "pending": 0, "used": used}
    assert (shares["heavy"]["entitled_share"], shares["heavy"]["dominant_resource"]) == (0.75, "")
    row = next(r for r in fabric.weft("fairness").out.splitlines() if r.startswith("default"))
    assert row.split() == "default 1 25.0% 100.0% cpu 0 2 64 MiB 0".split()
    low = fabric.weft("project", "set", "heavy", "--weight", "0")
    assert low.code == 2 and "--weight: expected a number >= 0.01" in low.err
    for name in ("vm/has", "project/heavy"):
        assert fabric.weft("delete", name, "--yes").code == 0


def test_the_scheduler_answers_what_would_be(fabric: Fabric) -> None:
    make(fabric, "asked")
    said = fabric.weft("recommend", "vm/asked")
    assert said.code == 0, said.err
    assert "vm/asked is on n" in said.out and "least_loaded" in said.out
    assert fabric.weft("vm", "recommend", "--image", "tiny", "--cpu", "0.5").out.startswith(
        "such a VM would be placed on n"
    )
    data = json.loads(fabric.weft("vm", "recommend", "asked", "--cpu", "0.5", "-o", "json").out)
    assert data["spec"]["changes"] == {"cpu": "0.5"} and data["status"]["best"]

    over = fabric.weft("explain", "vm/asked", "--what-if", "memory=900G")
    assert over.code == 6
    assert "vm/asked with memory=900G fits on no node now: insufficientResources" in over.out
    least = next(line for line in over.out.splitlines() if line.startswith("least change: "))
    flag = least.split("--memory ")[1]
    assert fabric.weft("vm", "explain", "asked", "--what-if", f"memory={flag}").code == 0
    assert "did you mean memory?" in fabric.weft("explain", "vm/asked", "--what-if", "memry=1G").err
    assert fabric.weft("recommend", "vm/nobody").code == 3

    report = fabric.weft("capacity")
    assert report.code == 0, report.err
    assert "LARGEST FREE" in report.out and re.search(r"\d decisions?: \d", report.out)
    data = json.loads(fabric.weft("capacity", "-o", "json").out)
    assert data["status"]["placed"] >= 1
    assert (
        listed(fabric, "get", "recommendation") == listed(fabric, "get", "report") == []
    )  # what is answered is taken away
    assert fabric.weft("vm", "delete", "asked", "--yes").code == 0


def test_one_wrong_field_refuses_all_of_a_file_at_its_place(fabric: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text(MANIFEST + "  cpuu: 2\n")
    said = fabric.weft("apply", "-f", str(path))
    assert said.code == 2
    assert f'{path}:14:3: VM "applied": spec.cpuu is not a field' in said.err
    path.write_text(MANIFEST.replace("image: tiny", "image: tny"))
    said = fabric.weft("apply", "-f", str(path))
    assert said.code in (2, 3)
    assert f"{path}:10:3: " in said.err  # only the server can know, and still it is told at its place
    assert fabric.weft("get", "network", "blue").code == 3


@pytest.mark.parametrize("suffix", ["yaml", "json", "toml", "nix"])
def test_the_examples_come_up_in_every_format(fabric: Fabric, suffix: str) -> None:
    examples = Path(__file__).resolve().parents[3] / "examples"
    missing = fabric.weft("apply", "-f", str(examples / f"three-tier.{suffix}"))
    assert missing.code == 3 and "weft image build debian-12" in missing.err
    assert fabric.weft("image", "add", "debian-12", str(fabric.folder / "tiny.tar")).code == 0
    said = fabric.weft("apply", "-f", str(examples / f"three-tier.{suffix}"))
    assert said.code == 0, said.err
    assert {item["name"] for item in listed(fabric, "get", "vm", "-l", "app=three-tier")} == {
        "shop-db",
        "shop-app",
        "shop-web",
    }
    assert fabric.weft("vm", "delete", "shop-db", "shop-app", "shop-web", "--yes").code == 0
    for kind, name in (("network", "front"), ("network", "back"), ("volume", "visits")):
        assert fabric.weft(kind, "delete", name, "--yes").code == 0
    assert fabric.weft("image", "delete", "debian-12", "--yes").code == 0
    one = fabric.weft("vm", "create", "webapp", "--config", str(examples / f"webapp.{suffix}"), "--publish", "18089:80")
    assert one.code == 0, one.err
    assert fabric.weft("vm", "delete", "webapp", "--yes").code == 0


def test_flags_win_over_the_config_file(fabric: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "vm.nix"
    path.write_text(
        '{ }: { kind = "vm"; name = "fromfile"; labels.a = "b"; spec = { image = "tiny"; cpu = 1; memory = "64M"; }; }'
    )
    assert fabric.weft("vm", "create", "flagged", "--config", str(path), "--cpu", "0.2", "--label", "c=d").code == 0
    (item,) = listed(fabric, "vm", "list", "-l", "a=b,c=d")
    assert (item["name"], item["spec"]["cpu"], item["spec"]["memory"]) == ("flagged", 0.2, 64 * 2**20)
    assert fabric.weft("vm", "delete", "flagged", "--yes").code == 0


def test_labels_volumes_and_cordons_change_what_is_there(fabric: Fabric) -> None:
    make(fabric, "box")
    assert fabric.weft("label", "vm", "box", "tier=web", "x=y").code == 0
    assert fabric.weft("vm", "label", "box", "x-").code == 0
    assert json.loads(fabric.weft("vm", "get", "box", "-o", "json").out)["labels"] == {"tier": "web"}
    assert fabric.weft("volume", "create", "data", "--size", "64M").out.startswith("volume/data  Available")
    attached = fabric.weft("volume", "attach", "data", "box")
    assert attached.out.startswith("volume/data  attached to vm/box\nvm/box  Running on n")
    assert fabric.weft("volume", "attach", "data", "box").code == 5
    assert fabric.weft("volume", "detach", "volume/data", "vm/box").code == 0
    assert fabric.weft("volume", "detach", "data", "box").code == 3
    assert fabric.weft("node", "cordon", "n2", "--reason", "disk swap").out == "node/n2  cordoned\n"
    assert listed(fabric, "node", "get", "n1", "n2")[1]["actions"]["cordon_reason"] == "disk swap"
    assert "Cordoned" in fabric.weft("node", "list").out
    assert fabric.weft("uncordon", "n2").code == 0
    assert fabric.weft("node", "guard", "n1", "n2", "--pause", "10m").code == 0
    every = fabric.weft("node", "guard", "--pause", "11m")
    assert every.err.startswith("no name is given: all 2 nodes: n1, n2\n")
    assert len(re.findall(r"node/n[12]  guard paused until 20\d\d-\d\d-\d\d \d\d:\d\d ", every.out)) == 2
    wrong = fabric.weft("node", "guard", "--pause", "soon")
    assert wrong.code == 2 and wrong.err.count("--pause") == wrong.err.count("soon") == 1, wrong.err
    shorter = fabric.weft("node", "guard", "n1", "--pause", "1m")
    assert shorter.code != 0 and "can't be shortened" in shorter.err
    assert fabric.weft("vm", "delete", "box", "--yes").code == 0
    assert fabric.weft("volume", "delete", "data", "--yes").code == 0


def test_an_object_is_found_by_its_name_alone_and_to_be_read_by_its_beginning(fabric: Fabric) -> None:
    make(fabric, "found-here")
    uid = json.loads(fabric.weft("vm", "get", "found-here", "-o", "json").out)["uid"]
    for line in ("describe found-here", "get found-he", "vm describe found", f"get vm {uid[:8]}", "explain found-h"):
        said = fabric.weft(*line.split())
        assert (said.code, "found-here" in said.out) == (0, True), (line, said.err)
    assert "'found-he' means vm/found-here" in fabric.weft("get", "found-he").err
    while "Running" not in fabric.weft("events", "found-here").out:  # they are gathered for a moment
        time.sleep(0.1)
    assert fabric.weft("wait", "found-here", "--for", "phase=Running").code == 0
    assert [item["name"] for item in listed(fabric, "ps", "-l", "!none")] == ["found-here"]

    for line in ("stop found-h", "vm stop found-h", "vm delete found-h --yes", "vm set found-h --cpu 1"):
        said = fabric.weft(*line.split())  # what changes something takes a name as it is
        assert (said.code, "did you mean vm/found-here?" in said.err) == (3, True), (line, said.err)
    assert fabric.weft("stop", "found-here").code == 0

    make(fabric, "found-there", "--label", "tier=there")
    for wish, query in (
        ("-l tier=there", "labels=tier%3Dthere"),
        ("--field name=found-there", "fields=name%3Dfound-there"),
    ):
        said = fabric.weft("vm", "list", "-o", "json", "--debug", *wish.split())
        assert [item["name"] for item in json.loads(said.out)["items"]] == ["found-there"]
        assert query in said.err, "the server is asked for those alone"
        raw = json.loads(fabric.weft("api", "GET", f"/v1/projects/default/vms?{query}").out)
        assert [item["name"] for item in raw["items"]] == ["found-there"]
    both = fabric.weft("get", "vm", "found")
    assert both.code == 3 and "vm/found-here, vm/found-there" in both.err
    assert fabric.weft("network", "create", "found-net", "--cidr", "10.33.0.0/24").code == 0
    assert fabric.weft("describe", "found-net").code == 0
    assert fabric.weft("volume", "create", "found-net", "--size", "1M").code == 0
    twice = fabric.weft("describe", "found-net")
    assert twice.code == 2 and "network/found-net" in twice.err and "volume/found-net" in twice.err
    nothing = fabric.weft("describe", "found-nowhere")
    assert nothing.code == 3 and 'no object named "found-nowhere"' in nothing.err
    assert "no such kind" in fabric.weft("describe", "vmm").err
    names = ["found-here", "found-there", "volume/found-net", "network/found-net"]
    assert fabric.weft("rm", *names, "--yes").code in (0, 8)
    fabric.weft("network", "delete", "found-net", "--yes")


def test_a_job_without_a_name_gets_one_of_its_image_and_its_command_whole(fabric: Fabric) -> None:
    image = "r.example.org/tiny"
    said = fabric.weft("run", "--image", image, "--detach", "-o", "json", "--", "echo", "hi", "--image", "x")
    assert said.code == 0, said.err
    made = json.loads(said.out)
    assert re.fullmatch(r"tiny-[a-z0-9]{4}", made["name"])
    assert (made["spec"]["task"]["image"], made["spec"]["task"]["command"]) == (image, ["echo", "hi", "--image", "x"])
    named = json.loads(fabric.weft("run", "mine", image, "--detach", "-o", "json", "--", "true").out)
    assert (named["name"], named["spec"]["task"]["image"]) == ("mine", image)
    assert fabric.weft("job", "delete", made["name"], "mine", "--yes").code == 0
    for line, meant in (
        ("run tiny echo hi", " run tiny -- echo hi"),
        ("run mine tiny echo", " run mine tiny -- echo"),
        ("run tiny date", " run tiny -- date"),
        ("run mine date", "weft image list; write an image in a registry with its registry: REGISTRY/date:TAG"),
    ):
        said = fabric.weft(*line.split())
        assert said.code in (2, 3) and said.err.splitlines()[-1].endswith(meant), (line, said.err)


def test_a_workload_is_deleted_by_its_name_alone_and_nothing_else_is(fabric: Fabric) -> None:
    make(fabric, "lone")
    assert fabric.weft("volume", "create", "lone", "--size", "1M").code == 0
    assert fabric.weft("container", "create", "twin", "--image", "registry.example.org/a:1", "--detach").code == 0
    make(fabric, "twin")
    asked = fabric.weft("rm", "lone")
    assert (asked.code, "deleting vm/lone without a terminal needs --yes" in asked.err) == (2, True), asked.err
    both = fabric.weft("rm", "twin", "--yes")
    assert (both.code, both.err.splitlines()) == (
        2,
        ["error: 'twin' could be vm/twin or container/twin", "write KIND/NAME"],
    )
    assert fabric.weft("job", "run", "lone", "registry.example.org/a:1", "--detach").code == 0
    assert "'lone' could be vm/lone or job/lone" in fabric.weft("rm", "lone", "--yes").err
    assert fabric.weft("rm", "job/lone", "--yes").code == 0
    gone = fabric.weft("rm", "lone", "--yes")
    assert (gone.code, gone.out.split(" after")[0]) == (0, "vm/lone  deleted"), gone.err
    kept = fabric.weft("rm", "lone", "--yes")
    assert (kept.code, kept.err.splitlines()) == (
        2,
        ["error: 'lone' needs its kind", "write volume/lone"],
    )
    assert fabric.weft("rm", "lone-some", "--yes").code == 3
    assert fabric.weft("rm", "volume/lone", "vm/twin", "container/twin", "--yes").code == 0


def test_of_several_objects_each_fails_alone(fabric: Fabric) -> None:
    make(fabric, "one")
    said = fabric.weft("vm", "get", "one", "two", "-o", "name")
    assert (said.code, said.out) == (8, "vm/one\n")
    assert 'VM "two" not found' in said.err
    assert fabric.weft("vm", "stop", "none", "two").code == 3
    assert fabric.weft("vm", "delete", "one", "two", "--yes").code == 8


def test_what_files_name_is_deleted_and_those_that_use_it_first(fabric: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text(MANIFEST)
    assert fabric.weft("apply", str(path)).code == 0
    assert fabric.weft("delete", "-f", str(path)).code == 2  # nobody can be asked
    assert fabric.weft("delete", "-f", str(path), "vm/applied", "--yes").code == 2
    gone = fabric.weft("delete", "-f", str(path), "--yes")
    assert gone.code == 0, gone.err
    assert [line.split(" after")[0] for line in gone.out.splitlines()] == [
        "vm/applied  deleted",
        "network/blue  deleted",
    ]
    again = fabric.weft("delete", "-f", str(path), "--yes")
    assert (again.code, again.err) == (0, "vm/applied is not there\nnetwork/blue is not there\nno object matches\n")


def test_an_editor_is_not_begun_where_there_is_no_terminal_for_it(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDITOR", raising=False)
    monkeypatch.delenv("VISUAL", raising=False)
    said = fabric.weft("edit", "node/n1")
    assert said.code == 2
    assert "weft get node/n1 -o manifest >FILE, then weft apply FILE" in said.err


def edit(fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, *argv: str) -> Any:
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\n{script}\n")
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return fabric.weft(*argv)


def test_edit_applies_what_was_saved(fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(fabric, "edited")
    said = edit(
        fabric, tmp_path, monkeypatch, "sed -i 's/restart: on-failure/restart: always/' $1", "vm", "edit", "edited"
    )
    assert said.code == 0, said.err
    assert json.loads(fabric.weft("vm", "get", "edited", "-o", "json").out)["spec"]["restart"] == "always"
    assert "not changed" in edit(fabric, tmp_path, monkeypatch, "true", "edit", "vm/edited").err
    twice = f"n=$(cat {tmp_path}/n 2>/dev/null); echo x$n >{tmp_path}/n\n"
    twice += 'if [ -z "$n" ]; then sed -i "s/restart: always/restrat: never/" $1\n'
    twice += f'else cp $1 {tmp_path}/second; sed -i "s/restrat: never/restart: never/" $1; fi'
    assert edit(fabric, tmp_path, monkeypatch, twice, "vm", "edit", "edited").code == 2  # no terminal: no second time
    (tmp_path / "n").unlink()
    person, terminal = os.openpty()
    with open(person, "rb"), open(terminal, "rb") as stdin:
        assert fabric.spawn("vm", "edit", "edited", stdin=stdin).wait(30) == 0
    assert "# error: vm/edited:" in (tmp_path / "second").read_text()
    assert json.loads(fabric.weft("vm", "get", "edited", "-o", "json").out)["spec"]["restart"] == "never"
    meanwhile = """weft vm label edited x=y >/dev/null; weft api PATCH /v1/projects/default/vms/edited -d '{"spec":{"grace":7}}'
    sed -i 's/grace: .*/grace: 9/' $1"""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("WEFT_CONTEXT", str(fabric.context))
    late = edit(fabric, tmp_path, monkeypatch, meanwhile, "vm", "edit", "edited")
    assert (late.code, "was changed meanwhile" in late.err) == (5, True)
    hopeless = edit(fabric, tmp_path, monkeypatch, "sed -i s/cpu:/cpuu:/ $1", "vm", "edit", "edited")
    assert hopeless.code == 2
    assert "is not a field" in hopeless.err
    assert fabric.weft("vm", "delete", "edited", "--yes").code == 0


def test_events_tell_what_happened(fabric: Fabric) -> None:
    make(fabric, "told")
    process = fabric.spawn("events", "-f", "-o", "json", "vm/told")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["object"]["name"] == "told"
    while json.loads(process.stdout.readline())["reason"] != "Running":
        pass  # an event may come a moment after what it tells of
    records = listed(fabric, "vm", "events", "told")
    assert {"Created", "Placed", "Running"} <= {record["reason"] for record in records}
    assert "vm/told" in fabric.weft("events").out
    of_vms = {record["object"]["kind"] for record in listed(fabric, "vm", "events")}
    assert of_vms == {"vm"}, "without a name those of the whole kind"
    assert fabric.weft("vm", "stop", "told").code == 0
    while json.loads(process.stdout.readline())["reason"] != "Stopped":
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert fabric.weft("vm", "delete", "told", "--yes").code == 0
    assert "Stopped" in {record["reason"] for record in listed(fabric, "vm", "events", "told")}, "it is gone"
    assert fabric.weft("vm", "create", "told", *TINY, "--hold").code == 0
    try:
        reasons = {record["reason"] for record in listed(fabric, "vm", "events", "told")}
        assert not reasons & {"Running", "Stopped"}, "of an earlier one of its name"
        assert not re.search("Running|Stopped", fabric.weft("vm", "describe", "told").out)
    finally:
        fabric.weft("vm", "delete", "told", "--yes")


def test_interrupting_a_wait_leaves_the_work_alone_and_says_how_to_go_on(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "slow", *TINY, "--hold").code == 0
    process = fabric.spawn("wait", "vm/slow", "--for=phase=Running")
    assert process.stderr is not None
    while "Hold" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "weft wait vm/slow" in err
    assert fabric.weft("vm", "delete", "slow", "--yes").code == 0


def test_a_vm_deleted_while_it_is_waited_for_ends_the_waiting(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "doomed", *TINY, "--hold").code == 0
    process = fabric.spawn("wait", "vm/doomed")
    assert process.stderr is not None
    assert fabric.weft("vm", "delete", "doomed", "--yes", "--detach").code == 0
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "doomed" in err
    assert fabric.weft("wait", "vm/doomed", "--for=delete", "--timeout", "20s").code == 0


def test_api_sends_a_raw_request(fabric: Fabric) -> None:
    assert json.loads(fabric.weft("api", "GET", "/v1/healthz").out)["status"] == "ok"
    body = json.dumps({"name": "raw", "spec": {"description": "x"}})
    assert json.loads(fabric.weft("api", "POST", "/v1/projects", "-d", body).out)["name"] == "raw"
    assert fabric.weft("api", "get", "projects/raw").code == 0
    assert json.loads(fabric.weft("api", "/v1/projects/raw").out)["name"] == "raw"
    assert fabric.weft("api", "/v1/projects/raw", "--jq", ".name").out == "raw\n"
    assert json.loads(fabric.weft("api", "/v1/projects/raw", "--json", "name").out) == {"name": "raw"}
    assert "project/raw\n" in fabric.weft("api", "/v1/projects", "-o", "name").out
    assert "name: raw\n" in fabric.weft("api", "/v1/projects/raw", "-o", "yaml").out
    assert fabric.weft("api", "/v1/projects", "-o", "csv").code == 2
    for words in ((), ("GET",), ("FETCH", "/v1/nodes"), ("GET", "/v1/nodes", "x")):
        assert fabric.weft("api", *words).code == 2
    stale = json.dumps({"name": "raw", "generation": 7, "spec": {"description": "y"}})
    said = fabric.weft("api", "PUT", "/v1/projects/raw", "-d", "-", stdin=stale)
    assert said.code == 5
    assert "staleRevision" in said.err
    assert fabric.weft("api", "DELETE", "/v1/projects/raw").code == 0
    assert fabric.weft("api", "GET", "/v1/nonsense").code in (2, 3)
    assert fabric.weft("api", "PUT", "/v1/projects/raw", "-d", "{").code == 2


def test_objects_of_another_project_are_seen_with_p_and_a(fabric: Fabric) -> None:
    assert fabric.weft("project", "create", "lab", "--description", "trying things").out == "project/lab  created\n"
    assert fabric.weft("volume", "create", "spare", "--size", "1M", "-p", "lab").code == 0
    assert fabric.weft("volume", "get", "spare").code == 3
    assert [item["project"] for item in listed(fabric, "-p", "lab", "volume", "list")] == ["lab"]
    assert "lab" in fabric.weft("volume", "list", "-A").out
    assert fabric.weft("volume", "delete", "spare", "--yes", "--project=lab").code == 0
    assert fabric.weft("project", "delete", "lab", "--yes").code == 0


def test_an_access_keys_secret_is_told_once_and_kept_nowhere_and_lets_nobody_in_at_the_api_servers(
    fabric: Fabric,
) -> None:
    said = fabric.weft("token", "create", "ci", "--access-key").out.split()
    key_id, secret = (line.partition("=")[2] for line in said)
    assert said == [f"AWS_ACCESS_KEY_ID={key_id}", f"AWS_SECRET_ACCESS_KEY={secret}"] and len(secret) == 40
    shown = fabric.weft("token", "get", "ci", "-o", "json").out
    spec, marks = json.loads(shown)["spec"], json.loads(shown)["marks"]
    assert (spec["use"], spec["role"], spec["project"], marks["key_id"]) == ("access-key", "invoker", "default", key_id)
    assert secret not in shown and marks["sha256"] == ""
    for words in (("--join", "--access-key"), ("--access-key", "--use", "access"), ("--role", "invoker", "--join")):
        assert fabric.weft("token", "create", *words).code != 0
    assert key_id in fabric.weft("token", "list").out
    invoker = fabric.weft("token", "create", "--role", "invoker").out.strip()
    context = json.loads(fabric.context.read_text())
    (fabric.folder / "invoker.json").write_text(json.dumps({**context, "token": invoker}))
    refused = fabric.weft("--context", str(fabric.folder / "invoker.json"), "vm", "list")
    assert refused.code != 0 and "may only invoke functions" in refused.err


def test_a_token_is_told_once_and_lets_its_bearer_in(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    said = fabric.weft("token", "create", "--role", "viewer", "--subject", "eve")
    context = json.loads(fabric.context.read_text())
    (fabric.folder / "eve.json").write_text(json.dumps({**context, "token": said.out.strip()}))
    eve = ["--context", str(fabric.folder / "eve.json")]
    assert fabric.weft(*eve, "node", "list").code == 0
    refused = fabric.weft(*eve, "volume", "create", "x", "--size", "1M")
    assert refused.code == 4
    (fabric.folder / "eve.json").write_text(json.dumps({**context, "token": "weft_no_such"}))
    assert fabric.weft(*eve, "node", "list").code == 4
    join = fabric.weft("token", "create", "--join", "--node", "n9").out.split()
    assert join[:3] == ["weft", "agent", "join"]
    assert {"--token", "--ca-sha256", "--node"} <= set(join)


def test_people_of_a_project_see_what_their_own_role_shows_of_an_object_and_of_all_that_runs(fabric: Fabric) -> None:
    make(fabric, "partly")
    assert fabric.weft("role", "create", "vms", "--rule", "vm=get,list,stop", "--rule", "node=get").code == 0
    secret = fabric.weft("token", "create", "--role", "vms", "-p", "default").out.strip()
    context = json.loads(fabric.context.read_text())
    (fabric.folder / "vms.json").write_text(json.dumps({**context, "token": secret}))
    limited = ["--context", str(fabric.folder / "vms.json")]
    described = fabric.weft(*limited, "vm", "describe", "partly")  # its usage takes a role in all projects
    assert described.code == 0 and "events can't be read" in described.out and "not shown" not in described.out
    node = fabric.weft(*limited, "node", "describe", "n1")
    assert node.code == 0 and "not shown: " in node.out
    running = fabric.weft(*limited, "ps")
    assert running.code == 0 and "vm/partly" in running.out and "it can't see jobs" in running.err
    assert fabric.weft(*limited, "vm", "stop", "partly").out.startswith("vm/partly  Stopped")
    refused = fabric.weft(*limited, "vm", "start", "partly")
    assert refused.code == 4 and "it takes vm:start (role operator)" in refused.err
    listed = fabric.weft(*limited, "vm", "list", "-A")
    assert listed.code == 0 and "partly" in listed.out
    for argv, act in (
        (["capacity"], "see the capacity of the fabric"),
        (["queue", "-A"], "see the queue of all projects"),
    ):
        asked = fabric.weft(*limited, *argv)
        assert asked.code == 4 and act in asked.err and "in all projects" in asked.err and "report;" not in asked.err


def test_exec_passes_output_and_exit_code_through(fabric: Fabric) -> None:
    make(fabric, "shell")
    for argv, ending in (
        (["vm", "exec", "shell", "--", "echo", "-n", "--", "a  b"], ("-n -- a  b\n", "", 0)),
        (["exec", "-e", "X=1", "vm/shell", "env"], ("X=1\n", "", 0)),
        (["exec", "vm", "shell", "-w", "/tmp", "--", "pwd"], ("/tmp\n", "", 0)),
        (["vm", "exec", "shell", "false"], ("", "", 1)),
        (["vm", "exec", "shell", "--", "nosuch"], ("", "fake guest: nosuch: not found\n", 127)),
    ):
        process = fabric.spawn(*argv)
        out, err = process.communicate(timeout=30)
        assert (out, err, process.returncode) == ending, argv
    process = fabric.spawn("exec", "vm/shell", "--", "cat")
    out, err = process.communicate("through the guest\n", timeout=30)
    assert (out, err, process.returncode) == ("through the guest\n", "", 0)
    assert fabric.weft("vm", "exec", "nosuch", "--", "true").code == 3
    assert fabric.weft("vm", "delete", "shell", "--yes").code == 0


def test_a_reader_that_goes_away_is_no_error(fabric: Fabric) -> None:
    env = {**os.environ, "WEFT_CONTEXT": str(fabric.context)}
    script = 'set -o pipefail; "$0" get node -o json | head -1; { sleep 1; "$0" node list; } | true'
    weft = str(Path(sys.executable).with_name("weft"))
    done = subprocess.run(["bash", "-c", script, weft], env=env, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_off_a_terminal_standard_output_is_data_alone_and_rows_are_whole(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out, err = fabric.spawn("vm", "create", "piped", *TINY, "-o", "json").communicate(timeout=60)
    assert (json.loads(out)["name"], err) == ("piped", "")
    out, err = fabric.spawn("vm", "restart", "piped").communicate(timeout=60)
    assert re.fullmatch(r"vm/piped  Running on n[12] after [\d.]+ s\n", out)
    assert not re.search("[\x1b\r]", out + err), "steps are lines of their own"
    out, err = fabric.spawn("vm", "list").communicate(timeout=60)
    (row,) = listed(fabric, "vm", "list", "--field", "name=piped")
    assert err == "" and out.split()[0] == "NAME"
    assert {"piped", "Running", row["status"]["node"], row["status"]["address"]} <= set(out.splitlines()[-1].split())
    assert fabric.weft("vm", "delete", "piped", "--yes").code == 0


def test_a_list_in_any_form_is_of_the_same_objects_and_can_be_applied_back(fabric: Fabric) -> None:
    make(fabric, "form", "--label", "app=forms")
    later = {"not_before": "2099-12-24T22:00:00+01:00", "not_after": 4101850800.12345}
    assert fabric.weft("api", "POST", "/v1/nodes/n2:drain", "-d", json.dumps(later)).code == 0
    node = fabric.weft("get", "node/n2", "-o", "yaml").out
    asked = yaml.safe_load(node)["actions"]
    assert asked["drain_not_before"] == "2099-12-24T21:00:00.000Z" and asked["drain_not_after"].endswith(":00.123Z")
    assert fabric.weft("apply", "-f", "-", stdin=node).out == "node/n2  unchanged\n"
    assert "2099" not in fabric.weft("node", "get", "n2", "-o", "manifest").out
    assert fabric.weft("node", "uncordon", "n2").code == 0

    (vm,) = listed(fabric, "vm", "list", "-l", "app=forms")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", vm["created_at"])
    assert (
        fabric.weft("vm", "list", "-l", "app=forms", "-o", "csv,noheader", "-c", "name,phase").out == "form,Running\n"
    )
    assert fabric.weft("vm", "list", "-l", "app=forms", "--jq", ".items[].name").out == "form\n"
    assert fabric.weft("vm", "get", "form", "-o", "template={name}: {spec.image}").out == "form: tiny\n"
    assert json.loads(fabric.weft("vm", "get", "form", "--json", "name,spec.cpu").out) == {
        "name": "form",
        "spec": {"cpu": 0.1},
    }
    nodes = fabric.weft("node", "list", "--sort", "-name", "-c", "name", "--no-header").out.split()
    assert nodes == ["n2", "n1"]
    assert fabric.weft("vm", "list", "-c", "nmae").code == 2
    assert fabric.weft("vm", "delete", "form", "--yes").code == 0


def test_a_list_goes_on_with_what_changes(fabric: Fabric) -> None:
    rows = fabric.spawn("node", "list", "-w", "-c", "name,labels.rack")
    lines = fabric.spawn("node", "list", "-w", "-o", "json")
    assert rows.stdout is not None and lines.stdout is not None
    assert [rows.stdout.readline().split() for _ in range(3)] == [["NAME", "LABELS.RACK"], ["n1", "–"], ["n2", "–"]]
    seen = [json.loads(lines.stdout.readline()) for _ in range(2)]
    assert {(one["type"], one["object"]["name"]) for one in seen} == {("put", "n1"), ("put", "n2")}
    assert fabric.weft("node", "label", "n2", "rack=r7").code == 0
    while rows.stdout.readline().split() != ["n2", "r7"]:
        pass
    while json.loads(lines.stdout.readline())["object"].get("labels", {}).get("rack") != "r7":
        pass
    for process in (rows, lines):
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert fabric.weft("node", "label", "n2", "rack-").code == 0


def test_what_runs_is_listed_with_its_kind_and_goes_on_with_what_changes_of_any(fabric: Fabric) -> None:
    make(fabric, "seen")
    assert "vm/seen" in fabric.weft("ps", "-c", "name,phase").out.split()
    rows = fabric.spawn("ps", "-w", "-c", "name,phase")
    assert rows.stdout is not None
    while rows.stdout.readline().split() != ["vm/seen", "Running"]:
        pass
    task = ["--image", "registry.example.org/a:1", "--detach", "--", "true"]
    assert fabric.weft("job", "run", "sums", *task).code == 0
    while not rows.stdout.readline().startswith("job/sums"):
        pass
    while not rows.stdout.readline().startswith("container/sums-0"):
        pass
    assert "job/sums" in fabric.weft("ps", "-c", "name").out.split()
    assert fabric.weft("job", "cancel", "sums").code == 0
    assert fabric.weft("vm", "stop", "seen").code == 0
    ended = {("job/sums", "Cancelled"), ("vm/seen", "Stopped")}
    while ended:
        ended.discard(tuple(rows.stdout.readline().split()))  # type: ignore[arg-type]
    rows.send_signal(signal.SIGINT)
    assert rows.wait(20) == 130
    assert "job/sums" not in fabric.weft("ps", "-c", "name").out.split()
    running, every = fabric.weft("ps", "-o", "name"), fabric.weft("ps", "-a", "-o", "name")
    assert {"job/sums", "vm/seen"} <= {*every.out.split()}
    more = {*every.out.split()} - {*running.out.split()}
    assert (running.err, every.err) == (f"not shown: {len(more)} finished (--all)\n", "")
    assert fabric.weft("job", "delete", "sums", "--yes").code == 0
    assert fabric.weft("vm", "delete", "seen", "--yes").code == 0


def test_a_node_s_workloads_of_any_kind_are_counted_under_a_word_for_all_of_them(fabric: Fabric) -> None:
    heading, *rows = fabric.weft("node", "list", "-c", "name,workloads").out.splitlines()
    assert heading.split() == ["NAME", "WORKLOADS"]
    assert {row.split()[0] for row in rows} == {"n1", "n2"}


def test_on_a_terminal_progress_is_drawn_and_taken_away_again(fabric: Fabric) -> None:
    master, slave = pty.openpty()
    process = fabric.spawn("vm", "create", "drawn", *TINY, stdout=slave, stderr=slave, stdin=slave)
    os.close(slave)
    drawn = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        drawn += piece
    assert process.wait(20) == 0
    os.close(master)
    text = drawn.decode()
    assert "\x1b[J" in text
    assert "vm/drawn  placed on n" in text
    assert text.splitlines()[-1].startswith("\r\x1b[J") or "vm/drawn  Running on n" in text.splitlines()[-1]
    assert fabric.weft("vm", "delete", "drawn", "--yes").code == 0


@pytest.mark.parametrize(("keys", "code", "last"), [("n\n", 1, "nothing was deleted"), ("\x04", 130, "interrupted")])
def test_on_a_terminal_what_goes_is_shown_and_asked_about(fabric: Fabric, keys: str, code: int, last: str) -> None:
    make(fabric, "asked-for")
    master, slave = pty.openpty()
    with os.fdopen(master, "r+b", buffering=0) as terminal:
        more: dict[str, Any] = {"start_new_session": True, "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)}
        process = fabric.spawn("vm", "delete", "asked-for", stdin=slave, stdout=slave, stderr=slave, **more)
        os.close(slave)
        shown = b""
        while b"[y/N]: " not in shown:
            shown += terminal.read(4096)
        terminal.write(keys.encode())
        with contextlib.suppress(OSError):  # what a terminal says when its last program is gone
            while piece := terminal.read(4096):
                shown += piece
    assert process.wait(20) == code
    lines = shown.decode().splitlines()
    assert re.fullmatch("  vm/asked-for  Running on n[12]; its root disk goes with it", lines[0]), shown
    assert lines[-1] == last, "on a line of its own"
    refused = fabric.weft("vm", "delete", "asked-for")
    assert refused.code == 2 and "needs --yes" in refused.err, "where nobody can be asked it doesn't hang"
    assert fabric.weft("vm", "delete", "asked-for", "--yes").code == 0


def test_doctor_and_version_know_the_server(fabric: Fabric) -> None:
    checked = fabric.weft("doctor")
    assert "server" in checked.out and "node n1" in checked.out
    assert {item["subject"] for item in listed(fabric, "doctor")} >= {"machine", "server", "node n1", "node n2"}
    version = json.loads(fabric.weft("version", "-o", "json").out)
    assert version["client"] == version["server"]
    assert json.loads(fabric.weft("context", "show", "-o", "json").out)["identity"] == "token"


def test_a_secret_is_marked_for_nodes_that_are_away(fabric: Fabric) -> None:
    def is_marked() -> bool:
        return bool(json.loads(fabric.weft("get", "secret/till", "-o", "json").out)["spec"]["offline"])

    assert fabric.weft("secret", "create", "till", "--value", "pin=x", "--offline").code == 0 and is_marked()
    assert fabric.weft("secret", "set", "till", "--value", "pin=y").code == 0 and is_marked()
    assert (
        fabric.weft("secret", "set", "till", "--no-offline").out.split() == ["secret/till", "set"] and not is_marked()
    )
    assert fabric.weft("secret", "delete", "till", "--yes").code == 0


def test_debug_tells_of_every_request_without_secrets_and_keeps_the_exit_code(fabric: Fabric) -> None:
    token = json.loads(fabric.context.read_text())["token"]
    for line in (["vm", "get", "nope"], ["--debug", "vm", "get", "nope"], ["vm", "get", "nope", "--debug"]):
        assert fabric.weft(*line).code == 3, line
    said = fabric.weft("--debug", "vm", "get", "nope").err
    assert "> GET /v1/projects/default/vms/nope" in said and "Traceback" not in said
    answered = re.findall(r"< 404 GET /v1/projects/default/vms/nope  \d+ ms  request (\S+)", said)
    assert any(f"request {id_}: the server's log has details" in said for id_ in answered)
    made = fabric.weft("--debug", "secret", "create", "hush", "--value", "password=correct-horse")
    shown = made.err + fabric.weft("secret", "delete", "hush", "--yes", "--debug").err
    assert made.code == 0, made.err
    assert "> POST /v1/projects/default/secrets" in shown
    assert "correct-horse" not in shown and token not in shown and token.rpartition("_")[2] not in shown


def test_the_server_tells_what_it_can_do_by_name(fabric: Fabric) -> None:
    told = json.loads(fabric.weft("version", "-o", "json").out)
    assert {"apply.dry-run", "kind.vm", "verb.vm.migrate", "moments.rfc3339"} <= set(told["capabilities"])
    assert f"{len(told['capabilities'])} capabilities" in fabric.weft("version").out


def test_what_goes_on_is_watched_for_as_long_as_was_said(fabric: Fabric) -> None:
    said = fabric.weft("operation", "watch", "--timeout", "0.1s")
    assert (said.code, said.err) == (0, "")


def test_what_goes_on_is_listed_attached_to_and_cancelled_as_the_objects_that_it_is_about(fabric: Fabric) -> None:
    made = fabric.weft("vm", "create", "large", "--image", "tiny", "--cpu", "64", "--detach")
    assert made.out == "vm/large  created; operation vm/large@1\n"
    assert fabric.weft("vm", "create", "waits", *TINY, "--node", "n1", "--hold").code == 0
    assert fabric.weft("vm", "release", "waits").code == 0
    (one,) = listed(fabric, "operation", "list")
    assert (one["id"], one["act"], one["state"], one["phase"]) == ("vm/large@1", "create", "running", "Pending")
    assert one["since"].startswith("20") and "cpu" in fabric.weft("operation", "show", "vm/large@1").out
    assert fabric.weft("operation", "list", "-o", "name").out == "vm/large@1\n"
    watching = fabric.spawn("operation", "watch")
    assert watching.stdout is not None and watching.stdout.readline().startswith("vm/large@1  create  Pending")
    watching.send_signal(signal.SIGINT)
    assert watching.wait(20) == 130
    assert fabric.weft("operation", "attach", "vm/large@1", "--timeout", "100ms").code == 7
    assert fabric.weft("operation", "attach", "vm/waits@2").code == 0
    assert fabric.weft("operation", "cancel", "vm/waits@2", "--yes").code == 5
    refused = fabric.weft("operation", "cancel", "vm/large@1")
    assert refused.code == 2 and "--yes" in refused.err
    assert fabric.weft("operation", "cancel", "vm/large@1", "--yes").code == 0
    assert fabric.weft("wait", "vm/large", "--for=delete", "--timeout", "20s").code == 0
    assert fabric.weft("operation", "attach", "vm/large@1").code == 0  # its object is gone: it is over
    assert [fabric.weft("operation", "show", id_).code for id_ in ("vm/large", "vm/large@1", "vm/never@1")] == [3, 3, 3]
    assert fabric.weft("operation", "show", "large").code == 2
    assert fabric.weft("node", "drain", "n2", "--detach", "--in", "1h").out.endswith(
        "attach node/n2@" + generation(fabric)
    )
    (drain,) = listed(fabric, "operation", "show", "node/n2@" + generation(fabric).strip())
    assert (drain["act"], drain["object"]) == ("drain", "node/n2")
    assert fabric.weft("operation", "attach", drain["id"]).code == 0, "nothing is on it"
    assert fabric.weft("node", "uncordon", "n2").code == 0
    assert (
        listed(fabric, "operation", "list") == []
        and fabric.weft("operation", "list").err == "no operations in progress\n"
    )
    assert fabric.weft("vm", "delete", "waits", "--yes").code == 0


def generation(fabric: Fabric) -> str:
    return fabric.weft("node", "get", "n2", "-o", "jsonpath={.generation}").out


SHOP = """\
kind: network
name: {name}
labels: {{app: {name}}}
spec: {{cidr: 10.77.0.0/24}}
---
kind: vm
name: {name}-web
labels: {{app: {name}}}
spec: {{image: tiny, cpu: 0.1, memory: 64M, networks: [{name}]}}
"""


def test_a_plan_and_a_dry_run_of_files_say_whether_and_where_what_is_new_would_be_placed(
    fabric: Fabric, tmp_path: Path
) -> None:
    path = tmp_path / "shop.yaml"
    huge = "---\nkind: vm\nname: huge\nspec: {image: tiny, memory: 900G}\n"
    path.write_text(SHOP.format(name="fits"))
    said = fabric.weft("apply", "-f", str(path), "--dry-run")
    assert said.code == 0, said.err
    assert re.search(r"^vm/fits-web  would be created, and placed on n[12] by least_loaded$", said.out, re.MULTILINE)
    assert "network/fits  would be created\n" in said.out
    path.write_text(SHOP.format(name="fits") + huge)
    said = fabric.weft("apply", "-f", str(path), "--dry-run")
    assert (said.code, "vm/huge  would be created, and stay Pending\n" in said.out) == (6, True), said.out
    assert said.err.startswith("vm/huge fits on no node now: insufficientResources: needs 900.0 GiB memory")
    told = json.loads(fabric.weft("plan", "-f", str(path), "-o", "json").out)["items"]
    assert [item.get("placement", {}).get("node") in ("n1", "n2") for item in told] == [False, True, False]
    assert told[2]["placement"]["reason"] == "insufficientResources"
    assert "vm/huge fits on no node now" in fabric.weft("plan", "-f", str(path)).out
    assert fabric.weft("get", "vm/huge").code == 3, "nothing of it was stored"


def test_a_plan_is_done_as_it_was_told_or_not_at_all(fabric: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(SHOP.format(name="plan"))
    said = fabric.weft("plan", "-f", str(path))
    assert said.code == 0 and "2 to create" in said.out
    placed = r"^\+ vm/plan-web  will be created, and placed on n[12] by least_loaded: image tiny"
    assert re.search(placed, said.out, re.MULTILINE), said.out
    id_ = fabric.weft("plan", "-f", str(path), "-o", "name").out.strip()
    assert f"plan {id_}: " in said.out, "the same as long as nothing changes"
    other = fabric.weft("apply", "-f", str(path), "--plan", "0123456789ab")
    assert other.code == 5 and "is out of date" in other.err
    assert fabric.weft("get", "network/plan").code == 3
    assert fabric.weft("apply", "-f", str(path), "--plan", id_).code == 0

    path.write_text(SHOP.format(name="plan").replace("64M", "80M"))
    told = json.loads(fabric.weft("plan", "-f", str(path), "-o", "json").out)
    assert [item["action"] for item in told["items"]] == ["keep", "update"]
    assert "memory 64 MiB → 80 MiB" in fabric.weft("plan", "-f", str(path)).out
    assert fabric.weft("vm", "set", "plan-web", "--restart-policy", "always").code == 0
    late = fabric.weft("apply", "-f", str(path), "--plan", told["id"])
    assert late.code == 5, "somebody changed it after it was looked at"
    assert json.loads(fabric.weft("vm", "get", "plan-web", "-o", "json").out)["spec"]["memory"] == 64 << 20
    assert fabric.weft("vm", "delete", "plan-web", "--yes").code == 0
    assert fabric.weft("network", "delete", "plan", "--yes").code == 0


def test_what_is_in_no_file_any_more_is_pruned_by_label_and_only_if_somebody_says_yes(
    fabric: Fabric, tmp_path: Path
) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(SHOP.format(name="prune") + "---\n" + SHOP.format(name="other").replace("10.77", "10.78"))
    assert fabric.weft("apply", "-f", str(path)).code == 0
    path.write_text(SHOP.format(name="prune").partition("---")[0])  # the network only
    prune = ["apply", "-f", str(path), "--prune"]
    assert fabric.weft(*prune).code == 2
    assert fabric.weft("apply", "-f", str(path), "-l", "app=prune").code == 2
    refused = fabric.weft(*prune, "-l", "app=prune")
    assert refused.code == 2 and "vm/prune-web" in refused.err and "--yes" in refused.err
    assert "vm/prune-web  would be deleted" in fabric.weft(*prune, "-l", "app=prune", "--dry-run").out
    planned = fabric.weft("plan", "-f", str(path), "--prune", "-l", "app=prune").out
    assert "- vm/prune-web  will be deleted: it is in no file" in planned and "1 to delete" in planned
    done = fabric.weft(*prune, "-l", "app=prune", "--yes")
    assert done.code == 0 and "vm/prune-web  deleted" in done.out
    path.write_text("kind: network\nname: third\nspec: {cidr: 10.79.0.0/24}\n")
    done = fabric.weft(*prune, "-l", "app in (prune,other)", "--yes")
    assert done.code == 0, done.err  # a VM goes before the network that it is in
    left = [one["name"] for kind in ("vm", "network") for one in listed(fabric, kind, "list")]
    assert not {"prune", "other", "other-web"} & set(left) and "third" in left
    assert fabric.weft("network", "delete", "third", "--yes").code == 0


def test_explain_says_what_would_be_asked_and_changes_nothing(fabric: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(SHOP.format(name="explained"))
    for line, call in (
        ("vm create explained --image tiny --cpu 0.1", "POST /v1/projects/default/vms {"),
        (f"apply -f {path}", "POST /v1/apply {"),
        ("node cordon n1 --reason swap", "POST /v1/nodes/n1:cordon"),
        ("node label n1 rack=r1", "PATCH /v1/nodes/n1"),
        ("network create explained --cidr 10.80.0.0/24", "POST /v1/projects/default/networks"),
        ("api DELETE /v1/nodes/n1", "DELETE /v1/nodes/n1"),
        ("node drain n1", "POST /v1/nodes/n1:drain"),
    ):
        said = fabric.weft(*line.split(), "--explain")
        assert said.code == 0, said.err
        assert call in said.out and "nothing was changed" in said.err, line
    read = fabric.weft("--explain", "node", "list", "-o", "json", "--sort", "name")
    told = json.loads(read.out)
    assert told["command"] == "weft node list" and told["arguments"]["--sort"] == "name" and told["calls"][0]["sent"]
    assert told["settings"]["server"]["value"].startswith("https://")
    for line, call in (("vm delete kept", "DELETE /v1/projects/default/vms/kept"), ("vm edit kept", "open $EDITOR")):
        make(fabric, "kept") if "delete" in line else None
        said = fabric.weft(*line.split(), "--explain")  # nobody is asked, and no terminal is needed: nothing is done
        assert (said.code, call in said.out) == (0, True), said.err
    assert json.loads(fabric.weft("vm", "get", "kept", "-o", "json", "--explain").out)["arguments"]["NAME"] == "kept"
    words = json.loads(fabric.weft("operation", "list", "-o", "json", "--explain").out)["arguments"]
    assert words["ACT"] == "list", "an argument is told by its name, not by all that it may be"
    for line in ("top nodes --watch", "node list --watch", "operation watch", "logs kept -f", "node events -f"):
        # what goes on without an end is looked at once
        with fabric.spawn(*line.split(), "--explain") as process:
            try:
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
        told = "nothing was changed; the next requests depend on the answer\n"
        assert (process.returncode, err, "calls\n  none" in out) == (0, told, False), line
    assert fabric.weft("vm", "delete", "kept", "--yes").code == 0
    missing = fabric.weft("vm", "set", "nope", "--cpu", "2", "--explain")
    assert missing.code == 3 and "GET /v1/projects/default/vms/nope" in missing.out
    assert fabric.weft("vm", "get", "explained").code == 3
    (node,) = [one for one in listed(fabric, "node", "list") if one["name"] == "n1"]
    assert not node["actions"]["cordoned"] and "rack" not in node["labels"]


PLANTED = "pl4nted-s3cret"


def test_a_support_bundle_has_what_is_needed_and_no_secret(
    fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = json.loads(fabric.context.read_text())["token"]
    monkeypatch.setenv("WEFT_TOKEN", token)
    monkeypatch.chdir(tmp_path)
    state = tmp_path / ".weft"
    state.mkdir()
    private = f"-----BEGIN PRIVATE KEY-----\n{PLANTED}\n-----END PRIVATE KEY-----\n"
    (state / "context.json").write_text(json.dumps({"server": "https://x", "token": f"weft_other_{PLANTED}"}))
    (state / "join.token").write_text(f"{PLANTED}-of-a-file\n")
    (state / "server.log").write_text(
        f"Authorization: Bearer {token}\npassword={PLANTED}\n{private}retried {PLANTED}-of-a-file\n"
        f"GET https://me:{PLANTED}@registry/x?ticket={PLANTED}\nordinary line\n"
        + "x" * 300_000
        + f"\nDB_PASSWORD: '{PLANTED}'\nthe end\n"
    )
    user_data = tmp_path / "user-data"
    user_data.write_text(f"#!/bin/sh\necho {PLANTED}\n")
    assert fabric.weft("vm", "create", "hush", *TINY, "--hold", "--user-data", str(user_data)).code == 0
    assert fabric.weft("secret", "create", "hush", "--value", f"password={PLANTED}").code == 0
    container = ["container", "create", "hush", "--image", "registry.test/x:1", "--env", f"PIN={PLANTED}", "--detach"]
    assert fabric.weft(*container, "--arg", PLANTED).code == 0
    for place in ("gateway/functions/uid/current.log", "nodes/n1/guests/g/console.log", "nodes/n1/oci/g/ctr.log"):
        (state / place).parent.mkdir(parents=True)
        (state / place).write_text(f"it printed {PLANTED}\n")
    assert fabric.weft("project", "create", "hush", "--description", f"password: {PLANTED}").code == 0
    said = fabric.weft("support", "bundle", "--file", "out.tar.gz")
    assert said.code == 0, said.err
    assert (tmp_path / "out.tar.gz").stat().st_mode & 0o777 == 0o600
    assert fabric.weft("support", "bundle", "--file", "out.tar.gz").code == 2, "what is there is not written over"
    (tmp_path / "plan.svg").write_text("mine")
    refused = fabric.weft("calendar", "--plot", "plan.svg")
    assert refused.code == 2 and "plan.svg exists already" in refused.err
    assert fabric.weft("calendar", "--plot", "plan.svg", "--force").code == 0
    assert fabric.weft("support", "bundle", "--file", "out.tar.gz", "--force").code == 0
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        files = {one.name: archive.extractfile(one).read().decode() for one in archive.getmembers()}  # type: ignore[union-attr]
    names = {name.partition("/")[2] for name in files}
    assert {
        "versions.json",
        "settings.json",
        "doctor.json",
        "events.json",
        "objects/vms.json",
        "logs/server.log",
    } <= names
    for name, text in files.items():
        assert PLANTED not in text and token not in text and token.rpartition("_")[2] not in text, name
    assert "the end" in files["weft-support/logs/server.log"] and '"hush"' in files["weft-support/objects/vms.json"]
    assert '"PIN"' in files["weft-support/objects/containers.json"], "which variables there are is told"
    for what in ("vm/hush", "secret/hush", "container/hush", "project/hush"):
        assert fabric.weft("delete", what, "--yes").code == 0


def offered(fabric: Fabric, words: str, home: Path) -> set[str]:
    """What TAB offers after ``words``."""
    env = {**os.environ, "WEFT_CONTEXT": str(fabric.context), "_WEFT_COMPLETE": "bash_complete", "HOME": str(home)}
    env |= {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("weft"))], env=env, capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
    return {line.partition(",")[2] for line in done.stdout.splitlines()}


def test_completion_knows_live_names_and_values_and_asks_only_now_and_then(fabric: Fabric, tmp_path: Path) -> None:
    for words, wanted in (
        ("weft node describe ", "n1"),
        ("weft describe node/", "node/n2"),
        ("weft vm create x --image ", "tiny"),
        ("weft vm create x --network ", "default"),
        ("weft vm migrate x --to ", "n2"),
        ("weft vm list -p ", "default"),
        ("weft vm list --field ph", "phase="),
        ("weft vm list -o js", "json"),
        ("weft --context ", ""),
    ):
        found = offered(fabric, words, tmp_path)
        assert wanted in found or not wanted, (words, found)
    kept = list((tmp_path / ".cache" / "weft" / "completion").glob("*/node"))
    assert len(kept) == 1 and kept[0].read_text().split() == ["n1", "n2"]
    kept[0].write_text("n1 n2 from-the-cache")
    assert offered(fabric, "weft node describe f", tmp_path) == {"from-the-cache"}
    os.utime(kept[0], (1, 1))
    assert "from-the-cache" not in offered(fabric, "weft node describe f", tmp_path), "what is old is asked for anew"


def test_a_quota_is_set_shown_kept_and_removed(fabric: Fabric) -> None:
    assert fabric.weft("project", "create", "lab").code == 0
    said = fabric.weft("quota", "show", "-p", "lab")
    assert (said.code, said.err) == (
        3,
        "error: project lab has no quota: nothing limits it\nweft quota set -p lab --cpu 8\n",
    )
    said = fabric.weft("quota", "set", "-p", "lab", "--cpu", "2", "--memory", "1G", "--soft-cpu", "1.5")
    assert (said.code, said.out) == (0, "quota/project  of project lab set\n"), said.err
    assert fabric.weft("image", "add", "tiny", str(fabric.folder / "tiny.tar"), "-p", "lab").code == 0
    assert (
        fabric.weft("vm", "create", "web", "-p", "lab", "--image", "tiny", "--cpu", "1.75", "--memory", "64M").code == 0
    )
    refused = fabric.weft("vm", "create", "db", "-p", "lab", "--image", "tiny", "--cpu", "1", "--memory", "64M")
    assert (refused.code, refused.out) == (4, "")
    assert refused.err == (
        "error: project lab: cpu: 1.75 of 2 cores used, 1 more requested (quotaExceeded)\nweft quota show -p lab\n"
    )
    problem = fabric.weft("vm", "create", "db", "-p", "lab", "--image", "tiny", "--cpu", "1", "-o", "json").err
    assert json.loads(problem)["code"] == "quotaExceeded"

    for _ in range(100):  # its status comes a moment after what it tells of
        quota = json.loads(fabric.weft("quota", "show", "-p", "lab", "-o", "json").out)
        if quota["status"].get("used", {}).get("cpu") == 1.75:
            break
        time.sleep(0.1)
    assert quota["spec"]["memory"] == 2**30
    assert quota["status"]["used"]["instances"] == 1
    shown = fabric.weft("quota", "describe", "-p", "lab")
    rows = [line.split() for line in shown.out.splitlines()]
    assert rows[:3] == [
        ["FIELD", "LIMIT", "USED", "FREE", "SOFT", "LIMIT"],
        ["cpu", "2", "1.75", "0.25", "1.5"],
        ["memory", "1.0", "GiB", "64", "MiB", "960", "MiB", "–"],
    ]
    assert "softLimitExceeded: project lab: cpu: 1.75 of 1.5 cores used" in shown.err
    assert "1.75 / 2" in fabric.weft("quota", "list", "-A").out

    assert fabric.weft("quota", "show", "-p", "lab", "--user", "ann").code == 3, "it limits no users"
    assert (
        fabric.weft("quota", "set", "-p", "lab", "--function-concurrency", "3", "--requests-per-second", "50").code == 0
    )
    rows = [line.split() for line in fabric.weft("quota", "show", "-p", "lab").out.splitlines()]
    assert ["function_concurrency", "3", "–", "–", "–"] in rows and ["requests_per_second", "50", "–", "–", "–"] in rows
    said = fabric.weft("quota", "set", "-p", "lab", "--user", "ann", "--requests-per-second", "5")
    assert said.code == 2 and "spec.users.ann.requests_per_second is not a field" in said.err
    said = fabric.weft("quota", "set", "-p", "lab", "--per-user", "--instances", "4", "--soft-cpu", "0.25")
    assert (said.code, said.out) == (0, "quota/project  of project lab, each user, set\n"), said.err
    for user, what in (("nobody", 'user "nobody"'), ("token:nothing", 'token "nothing"')):
        said = fabric.weft("quota", "set", "-p", "lab", "--user", user, "--cpu", "0.5")
        assert said.code == 3 and f"{what} not found" in said.err
    fabric.weft("user", "create", "ann")
    said = fabric.weft("quota", "set", "-p", "lab", "--user", "ann", "--cpu", "0.5", "--memory", "1G")
    assert (said.code, said.out) == (0, "quota/project  of project lab, user ann, set\n"), said.err
    assert fabric.weft("quota", "set", "-p", "lab", "--user", "ann", "--memory", "none").code == 0
    shown = fabric.weft("quota", "show", "-p", "lab")
    rows = [line.split() for line in shown.out.splitlines()]
    assert rows[0] == ["USER", "FIELD", "LIMIT", "USED", "FREE", "SOFT", "LIMIT"]
    assert rows[1] == ["cpu", "2", "1.75", "0.25", "1.5"]
    assert ["ann", "cpu", "0.5", "0", "0.5", "0.25"] in rows and ["ann", "instances", "4", "0", "4", "–"] in rows
    assert len(fabric.weft("quota", "show", "-p", "lab", "--user", "ann").out.splitlines()) == 7
    assert "each, 1 own" in fabric.weft("quota", "list", "-A").out
    (item,) = listed(fabric, "quota", "list", "-p", "lab")
    assert item["spec"]["users"]["ann"]["cpu"] == 0.5 and item["spec"]["users"]["ann"]["memory"] is None
    said = fabric.weft("quota", "set", "-p", "lab", "--user", "ann", "--per-user", "--cpu", "1")
    assert said.code == 2 and "give one of them" in said.err
    assert fabric.weft("quota", "set", "-p", "lab", "--user", "Ann!", "--cpu", "1").code == 2
    assert fabric.weft("quota", "set", "-p", "lab", "--user", "ann", "--cpu", "none").code == 0
    (item,) = listed(fabric, "quota", "list", "-p", "lab")
    assert item["spec"]["users"] == {}

    assert fabric.weft("quota", "set", "-p", "lab", "--cpu", "none", "--soft-cpu", "NONE").code == 0
    (item,) = listed(fabric, "quota", "list", "-p", "lab")
    assert item["spec"] == {**item["spec"], "cpu": None, "memory": 2**30}
    assert item["spec"]["soft"]["cpu"] is None
    assert fabric.weft("vm", "create", "db", "-p", "lab", "--image", "tiny", "--cpu", "1", "--memory", "64M").code == 0
    for line in (["set", "-p", "lab"], ["show", "lab"], ["set", "lab", "--cpu", "2"]):
        assert fabric.weft("quota", *line).code == 2, line
    said = fabric.weft("quota", "set", "-p", "nowhere", "--cpu", "2")
    assert said.code == 3 and 'project "nowhere" not found' in said.err
    assert fabric.weft("quota", "delete", "project", "-p", "lab", "--yes").code == 0
    assert listed(fabric, "quota", "list", "-p", "lab") == []
    assert fabric.weft("delete", "vm/web", "vm/db", "-p", "lab", "--yes").code == 0


def test_a_rebalancing_is_planned_and_a_plan_that_is_not_there_is_named(fabric: Fabric) -> None:
    said = fabric.weft("rebalance", "plan", "-o", "json")
    assert said.code == 0, said.err
    answer = json.loads(said.out)
    assert set(answer) == {"plan", "score_before", "score_after", "moves"}
    assert answer["score_after"] <= answer["score_before"] and bool(answer["moves"]) is bool(answer["plan"])
    assert (
        {"workload", "from", "to", "seconds", "bytes", "reason"} <= {*answer["moves"][0]} if answer["moves"] else True
    )
    missing = fabric.weft("rebalance", "apply", "nothing")
    assert missing.code == 3 and "nothing" in missing.err
    assert fabric.weft("rebalance", "plan", "--moves", "0").code == 2
    assert fabric.weft("rebalance", "plan", "--bytes", "0").code == 2
    assert fabric.weft("rebalance", "undo").code == 2
    assert json.loads(fabric.weft("rebalance", "auto", "-o", "json").out) == {"on": False}
    assert fabric.weft("rebalance", "auto", "status", "--moves", "3").code == 2
    for limit in ("--moves", "--bytes"):
        said = fabric.weft("rebalance", "auto", "on", limit, "0")
        assert said.code == 2 and f"{limit} 0 would" in said.err and "auto off" in said.err
    assert json.loads(fabric.weft("rebalance", "auto", "-o", "json").out) == {"on": False}
    on = json.loads(fabric.weft("rebalance", "auto", "on", "--moves", "1", "--bytes", "5G", "-o", "json").out)
    assert on["on"] and (on["spec"]["migrations_per_hour"], on["spec"]["bytes_per_hour"]) == (1, 5 * 2**30)
    assert "1 migration and 5.0 GiB an hour, 2 at" in fabric.weft("rebalance", "auto", "on", "--concurrent", "2").out
    assert "off" in fabric.weft("rebalance", "auto", "off").out and fabric.weft("rebalance", "auto", "off").code == 0
    if answer["plan"]:
        assert answer["plan"] in fabric.weft("rebalance", "list").out
        assert fabric.weft("delete", f"rebalanceplan/{answer['plan']}").code == 0


def test_a_migration_is_planned_for_a_time_or_a_window_and_a_better_node_is_recommended(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "traveller", "--image", "tiny", "--cpu", "1", "--memory", "64M").code == 0
    here = json.loads(fabric.weft("vm", "get", "traveller", "-o", "json").out)["status"]["node"]
    there = "n2" if here == "n1" else "n1"
    line = ["migration", "plan", "vm/traveller", "--to", there]
    for words in ([], ["--at", "2h", "--window", "auto"], ["--window", "auto", "--within", "1h"]):
        assert fabric.weft(*line, *words).code == 2, words
    said = fabric.weft(*line, "--at", "400d")
    assert said.code == 2 and "more than 31 days ahead" in said.err
    said = fabric.weft(*line, "--at", "2h", "--within", "0s")
    assert said.code == 2 and "--within 0s" in said.err
    said = fabric.weft(*line, "--at", "2h", "--within", "1h", "--reason", "night shift", "-o", "json")
    assert said.code == 0, said.err
    plan = json.loads(said.out)
    assert plan["status"] == "Reserved" and (plan["from"], plan["to"]) == (here, there)
    assert {*plan["window"]} == {"start", "end", "quality", "reason"} and plan["window"]["quality"] == 1.0
    assert plan["window"]["start"] < plan["window"]["end"]
    assert plan["estimated_cost"]["bytes"] >= 64 * 2**20 and plan["estimated_cost"]["seconds"] > 0
    shown = fabric.weft("migration", "plans", "-A").out
    assert "night shift" in shown and "PROJECT" in shown and "default" in shown and "unknown" not in shown
    again = fabric.weft(*line, "--at", "3h", "-o", "json")
    assert again.code == 6 and json.loads(again.out)["status"] == "Waiting"  # one at a time holds capacity
    assert f"migration/{plan['name']} holds capacity" in fabric.weft("migration", "plans").out
    assert fabric.weft("migration", "cancel", json.loads(again.out)["name"]).code == 0
    assert fabric.weft("migration", "accept", plan["name"]).code == 5
    assert fabric.weft("migration", "cancel", plan["name"]).code == 0
    said = fabric.weft(*line, "--window", "auto", "-o", "json")
    assert said.code == 0, said.err
    auto = json.loads(said.out)
    assert auto["window"]["quality"] == 0.0 and "no cycle found: any time is as good" in auto["window"]["reason"]
    [cancelled, planned] = [
        one["status"]
        for name in (plan["name"], auto["name"])
        for one in json.loads(fabric.weft("migration", "plans", "-o", "json").out)["items"]
        if one["name"] == name
    ]
    assert (cancelled, planned) == ("Cancelled", "Reserved")
    assert fabric.weft("migration", "cancel", auto["name"]).code == 0
    assert fabric.weft("migration", "plan", "vm/traveller", "--to", "n9", "--window", "auto").code == 3
    asked = fabric.weft("recommendation", "create", "vm/traveller", "-o", "json")
    assert asked.code == 0, asked.err
    name = json.loads(asked.out)["name"]
    assert name in fabric.weft("recommendation", "list").out
    assert fabric.weft("recommendation", "delete", name, "--yes").code == 0
    assert fabric.weft("vm", "delete", "traveller", "--yes").code == 0


def test_a_service_is_created_listed_changed_and_deleted(fabric: Fabric) -> None:
    make(fabric, "front", "-l", "app=shop")
    said = fabric.weft(
        "service", "create", "shop", "--selector", "app=shop", "--port", "80:8080", "--publish", "8088:80"
    )
    assert said.code == 0, said.err
    assert fabric.weft("wait", "service/shop", "--for=phase=Ready", "--timeout", "2s").code in (0, 7)
    assert fabric.weft("service", "set", "shop", "--readiness-type", "none").code == 0
    assert fabric.weft("wait", "service/shop", "--for=phase=Ready", "--timeout", "30s").code == 0
    [one] = listed(fabric, "service", "list")
    assert one["status"]["endpoints"][0]["weight"] == 1000 and one["status"]["address"]
    assert "1/1" in fabric.weft("service", "list").out
    taken = fabric.weft("service", "create", "other", "--selector", "app=x", "--port", "80", "--publish", "8088:80")
    assert taken.code == 5 and "port 8088/tcp is published already" in taken.err
    nothing = fabric.weft("service", "set", "shop", "--weight", "version=2:0")
    assert nothing.code == 2 and "add up to 0 per mille" in nothing.err
    assert "network" in fabric.weft("network", "delete", "default", "--yes").err
    assert fabric.weft("service", "delete", "shop", "--yes").code == 0
    assert listed(fabric, "get", "ports") == []
    assert fabric.weft("vm", "delete", "front", "--yes").code == 0
