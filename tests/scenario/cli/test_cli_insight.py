"""`weft insight` at a real API: a profile in words and as data, pictures from a real history, and nothing of another project."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab
from tests.scenario.metrics_lab import OwnDatabase, fetch

from weft.cli.app import run
from weft.client.context import write_context
from weft.contracts.clock import SystemClock
from weft.kinds.profile import (
    NODE_PROFILE,
    WORKLOAD_PROFILE,
    Anomaly,
    Correlation,
    Extreme,
    NodeProfileSpec,
    Pattern,
    Prediction,
    ProfileStatus,
    Signature,
    WorkloadProfileSpec,
)
from weft.kinds.vm import VM, VmSpec
from weft.objects.errors import Forbidden
from weft.objects.identity import Ref
from weft.telemetry.metrics.sample import Sample

HOUR = 3600.0


def make_status(now: float) -> ProfileStatus:
    def place(at: float, value: float) -> Extreme:
        return Extreme(at=now + at, start=now + at - HOUR, end=now + at + HOUR, value=value)

    fold = [0.1 + 0.8 * (20 <= part < 26) for part in range(48)]
    cycle = Pattern(
        type="diurnal", cycle_seconds=24 * HOUR, confidence=0.97, peaks=[place(5 * HOUR, 0.9)],
        troughs=[place(9 * HOUR, 0.1)], fold=fold, fold_at=now - 7 * HOUR,
    )  # fmt: skip
    return ProfileStatus(
        looked_at=now - 600, cycles_looked_at=now - 600, sampled_at=now - 600, history_seconds=7 * 24 * HOUR,
        resource="cpu", unit="cores", full=2.0, patterns=[cycle], stability=0.62,
        prediction={
            name: Prediction(seconds=seconds, value=value, low=value / 2, high=2 * value, method="weighted experts")
            for name, seconds, value in (("5m", 300.0, 0.2), ("1h", HOUR, 0.3), ("24h", 24 * HOUR, 0.25))
        },
        signature=Signature(class_="cyclic", probability=0.93),
        correlations=[Correlation(resource="cpu", other="cpu", workload="vm/db", correlation=0.71)],
        anomalies=[Anomaly(at=now - 2 * HOUR, channel="jump", value=1.9, low=0.1, high=0.4, score=6.1)],
        missing={"anomalies": "less than a day of history"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    own = OwnDatabase(tmp_path_factory.mktemp("server"))
    made, now = ApiLab(tmp_path_factory.mktemp("api"), find_metrics=own.find), time.time()
    for project in ("red", "blue"):
        made.client.create({"kind": "project", "name": project, "spec": {}})
    labels = (("project", "red"), ("kind", "vm"), ("name", "web"), ("node", "n1"))
    own.send([Sample("weft_guest_cpu_cores", labels, int((now - ago) * 1000), 0.7) for ago in range(0, 170, 10)])
    fetch(own.find(), "/internal/force_flush", b"")

    vms = [
        VM.make(name, VmSpec(image="tiny", run="stop"), now - 200, project=project)
        for project, name in (("red", "web"), ("red", "young"), ("blue", "web"))
    ]
    profiles = [
        WORKLOAD_PROFILE.make(
            "vm.web",
            WorkloadProfileSpec(workload=vm.ref),
            now,
            project=vm.project,
            owner=vm.ref,
            status=make_status(now),
        )
        for vm in vms
        if vm.name == "web"
    ]
    node = Ref(kind="node", name="n1", uid="u")
    of_node = NODE_PROFILE.make("n1", NodeProfileSpec(node=node), now, owner=node, status=make_status(now))
    made.put(*vms, *profiles, of_node)
    yield made
    made.close()
    own.close()


def weft(lab: ApiLab, *argv: str, context: Path | None = None) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["--context", str(context or lab.context_path), *argv], SystemClock)
    return code, out.getvalue(), err.getvalue()


def test_a_profile_says_all_in_plain_words(lab: ApiLab) -> None:
    code, out, err = weft(lab, "insight", "vm/web", "-p", "red")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("vm/web: cyclic (93% sure): it comes and goes in cycles; stability 0.62")
    assert lines[1] == "CPU of 2, 7d of history, looked at 10m ago"
    assert "diurnal (confidence 0.97), peak from" in out and "(0.90)" in out and "lowest from" in out
    assert "in 1 h     0.30  (80 %: 0.15 to 0.60; weighted experts)" in out
    assert "vm/db (+0.71)" in out and "jumped to 1.90, usually 0.10 to 0.40" in out
    assert "anomalies: less than a day of history" in out


def test_programs_get_the_shape_that_is_promised(lab: ApiLab) -> None:
    code, out, err = weft(lab, "insight", "vm/web", "-p", "red", "-o", "json")
    assert code == 0, err
    told = json.loads(out)
    assert {"patterns", "prediction", "signature", "stability", "correlations", "anomalies"} <= told.keys()
    assert told["patterns"][0].keys() >= {"type", "cycle_seconds", "confidence", "peaks", "troughs"}
    assert told["signature"] == {"class": "cyclic", "probability": 0.93}
    assert told["prediction"]["1h"]["low"] == 0.15 and told["patterns"][0]["peaks"][0]["at"].endswith("Z")


def test_a_picture_has_the_week_the_forecast_and_the_fold(lab: ApiLab) -> None:
    code, out, err = weft(lab, "insight", "vm/web", "-p", "red", "--plot")
    assert code == 0 and not err
    assert "█" in out and "×" in out and "░" in out
    assert "diurnal, folded: the median of all cycles; cores" in out and "00:00" in out and "24:00" in out
    assert max(map(len, out.split("\n\n", 2)[2].splitlines())) <= 80


def test_lists_are_of_a_project_or_of_all_and_of_one_class(lab: ApiLab) -> None:
    code, out, _ = weft(lab, "insight", "list", "-A")
    assert code == 0 and [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["blue", "vm/web"], ["red", "vm/web"], ["–", "node/n1"]
    ]  # fmt: skip
    assert weft(lab, "insight", "-p", "red", "-o", "name")[1] == "vm/web\n"
    assert weft(lab, "insight", "list", "-p", "red", "--class", "idle")[2].strip() == "no workload is idle"


def test_what_is_not_there_and_what_is_of_another_project_are_told_alike(lab: ApiLab, tmp_path: Path) -> None:
    mine = tmp_path / "context.json"
    name = {"kind": "token", "name": "red-only", "spec": {"use": "access", "role": "viewer", "project": "red"}}
    limited = lab.client.create(name)["secret"]
    write_context(mine, msgspec.structs.replace(lab.context, token=limited, project="red"))
    assert weft(lab, "insight", "vm/web", context=mine)[0] == 0
    answers = [weft(lab, "insight", "vm/web", "-p", project, context=mine) for project in ("blue", "none-such")]
    assert answers[0][0] == answers[1][0] != 0
    assert answers[0][2].replace("blue", "none-such") == answers[1][2] and "cyclic" not in answers[0][1]
    code, _, said = weft(lab, "insight", "vm/young", context=mine)
    assert code == 3 and "vm/young has no profile yet" in said and "five minutes" in said
    nothing = weft(lab, "insight", "vm/nothing", context=mine)
    assert nothing[0] == 3 and "nothing" in nothing[2] and "profile" not in nothing[2]
    assert weft(lab, "nodeprofile", "get", "n1", context=mine)[0] != 0
    body = json.dumps({"kind": "workloadprofile", "name": "vm.x", "spec": {}}).encode()
    assert lab.client.http.request("POST", "/v1/projects/red/workloadprofiles", body).status in (403, 405)


@pytest.mark.parametrize(
    ("line", "said", "remedy"),
    [
        ("insight vm", "the name is missing", "vm NAME"),
        ("insight nope/x", "no such kind: 'nope'", ""),
        ("insight vm/nope -p red", 'VM "nope" not found', "weft vm list"),
        ("insight vm/web -p nope", 'project "nope" not found', "weft project list"),
        ("insight vm/web container/x -p red", "give one workload or node", "weft insight list"),
        ("insight job/x", "not job/x", ""),
        ("insight /", "'/': give KIND/NAME", "like vm/web"),
        ("insight vm/a/b", "is not an object's name", "give KIND/NAME"),
        ("insight vm/web --plot x.svg", "it takes no file", "weft insight vm/web --plot"),
        ("insight vm/web --plot -o json", "--plot draws, and -o prints data", "leave one of them out"),
        ("insight vm/web --sort class", "--sort goes with list", "weft insight list --sort"),
        ("insight vm/web --columns class", "--columns goes with list", "weft insight list --columns"),
        ("insight vm/web -A", "--all-projects goes with list", "weft insight list --all-projects"),
        ("insight vm/web --class idle", "--class goes with list", "weft insight list --class idle"),
        ("insight list vm/web", "list takes no names", "weft insight vm/web shows one"),
        ("insight list --plot", "--plot draws one workload", "weft insight vm/web --plot"),
        ("insight list --class nope", "--class", "idle"),
        ("insight function/orders:1", "of all versions together", "weft insight function/orders"),
        ("insight node/n1 -p red", "-p red: nodes belong to no project", "leave -p out"),
        ("node list -p red", "-p red: nodes belong to no project", "leave -p out"),
        ("get pools -p red", "-p red: pools belong to no project", "leave -p out"),
        ("describe node/n1 -p red", "-p red: nodes belong to no project", "leave -p out"),
        ("network topology -p red", "belongs to no project", "leave -p out"),
        ("network topology --plot x.pdf", "'x.pdf' doesn't end with .svg", "--plot map.svg"),
        ("network topology --node n1 --by place", "--by place shows places", "leave one of them out"),
        ("network matrix --plot -o json", "--plot draws, and -o prints data", "leave one of them out"),
        ("logs --server --deleted", "not to server processes", "leave out --deleted"),
        ("events -p nope", 'project "nope" not found', "weft project list"),
        ("events node/n1 -p red", "-p red: nodes belong to no project", "leave -p out"),
    ],
)
def test_what_has_no_effect_or_no_sense_is_refused_with_what_to_do(
    lab: ApiLab, line: str, said: str, remedy: str
) -> None:
    code, out, err = weft(lab, *line.split())
    assert code in (2, 3) and not out, (code, out, err)
    assert said in err and remedy in err, err


def test_events_of_a_project_are_of_its_objects_only(lab: ApiLab) -> None:
    for project in ("red", "blue"):
        made = {"kind": "network", "name": f"in-{project}", "project": project, "spec": {"cidr": "10.0.0.0/24"}}
        lab.client.create(made)
    lab.journal.flush()
    names = {one["object"]["name"] for one in json.loads(weft(lab, "events", "-p", "red", "-o", "json")[1])["items"]}
    assert "in-red" in names and "in-blue" not in names
    both = {one["object"]["name"] for one in json.loads(weft(lab, "events", "-o", "json")[1])["items"]}
    assert {"in-red", "in-blue"} <= both
    follower = lab.connect().events(since=0, project="red", follow=True)
    assert (
        next(follower)["object"] | {"project": "red"} == next(iter(lab.client.events(since=0, project="red")))["object"]
    )
    limited = lab.with_token(use="access", role="viewer", project="blue")
    with pytest.raises(Forbidden):
        list(limited.events(project="red"))
    assert [one["object"]["name"] for one in limited.events(project="blue")] == ["in-blue"]
