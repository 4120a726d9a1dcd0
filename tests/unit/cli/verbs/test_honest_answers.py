"""What is ``unchanged`` and has failed, or isn't there yet, is no success; in whose project a command works; what a refusal is
not preceded by."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from weft.cli import runtime_image
from weft.cli.app import run
from weft.cli.command.flag_names import name_flags
from weft.cli.command.grammar import load, verbs_of
from weft.cli.command.target import Target
from weft.cli.session import Session
from weft.cli.verbs import apply, delegation, delete, migrate
from weft.cli.wait import finish
from weft.cli.wait.finish import Done
from weft.cli.wait.watch import Wait, judge
from weft.contracts.clock import SystemClock
from weft.kinds.delegation import mark_workload
from weft.kinds.registry import BY_NAME
from weft.objects.errors import Forbidden, InvalidInput, NotFound, WeftError

TEMPLATE = {"image": "tiny", "memory": "128M"}


@pytest.fixture
def file(tmp_path: Path) -> str:
    place = tmp_path / "till.yaml"
    place.write_text("kind: vm\nname: till\nspec: {image: tiny, memory: 128M}\n")
    return str(place)


def delegated(phase: str, *, ready: bool = False, **status: Any) -> dict[str, Any]:
    given = {"phase": phase, "sent": mark_workload({}, TEMPLATE), "ready": ready, **status}
    spec = {"cluster": "west", "workload": "vm", "template": TEMPLATE}
    return {"kind": "delegation", "name": "till", "uid": "u", "project": "lab", "spec": spec, "status": given}


class Waiting:
    """``waits`` are what the last command waited for."""

    project = "lab"

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self.lines: list[str] = []

    def finish(self, _: Any, done: list[Done], waits: list[Wait]) -> int:
        self.lines, self.waits = [one.line for one in done], list(waits)
        return 0


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Waiting()
    for module in (apply, delegation):
        monkeypatch.setattr(module, "finish", made.finish)
    return made


def answer(monkeypatch: pytest.MonkeyPatch, *results: dict[str, Any]) -> None:
    monkeypatch.setattr(apply, "send", lambda *_, **__: list(results))


def test_an_unchanged_delegation_that_is_not_there_is_waited_for_and_a_failed_one_told(
    session: Any, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delegate(obj: dict[str, Any]) -> Any:
        answer(monkeypatch, {"action": "unchanged", "object": obj})
        assert delegation._delegate(session, None, (file,), (), "west", False) == 0 and session.lines == ["unchanged"]
        return session.waits

    assert delegate(delegated("Running", ready=True)) == []
    failed = delegated("Failed", reason="refused", message="image tiny not found")
    (wait,) = delegate(failed)
    ended = judge(wait, failed)
    assert ended is not None and ended.error is not None and "image tiny not found" in ended.error.message
    (wait,) = delegate(pending := delegated("Pending", sent="", reason="notGranted"))
    assert judge(wait, pending) is None and judge(wait, delegated("Running", ready=True)).error is None  # type: ignore[union-attr]


def test_a_destination_that_is_misspelt_for_a_delegation_that_exists_is_said_not_to_exist(
    session: Any, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise InvalidInput("spec.cluster of delegation can never change", field="spec.cluster")

    def find(kind: str, name: str) -> None:
        if name != "west":
            raise NotFound(f'{kind} "{name}" not found')

    monkeypatch.setattr(apply, "send", refuse)
    session.client = SimpleNamespace(get=find)
    for destination, why in (("wst", 'cluster "wst" not found'), ("west", "can never change")):
        with pytest.raises(WeftError, match=why):
            delegation._delegate(session, None, (file,), (), destination, False)


def test_an_apply_that_changes_nothing_tells_what_failed_but_beside_a_change_it_is_not_judged_yet(
    session: Any, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = {"phase": "Failed", "observed_generation": 1, "reason": "imageFailed"}
    vm = {"kind": "vm", "name": "till", "uid": "u", "generation": 1, "spec": {"run": "run"}, "status": status}
    fine = {**vm, "name": "web", "status": {**status, "phase": "Running"}}
    text = Path(file).read_text()
    Path(file).write_text(f"{text}---\n{text.replace('till', 'web')}")

    def apply_both(action: str) -> list[str]:
        answer(monkeypatch, {"action": "unchanged", "object": vm}, {"action": action, "object": fine})
        apply._run(session, None, (file,), (), None, None, False, (), False)
        return [wait.target.name for wait in session.waits]

    assert apply_both("unchanged") == ["till"]
    assert apply_both("updated") == ["web"]


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("cluster delegate {} --destination west", 'POST /v1/apply {"objects": [{"project": "lab"'),
        ("cluster replicate vm/a --destination west", "PATCH /v1/projects/lab/replications/a"),
    ],
)
def test_what_runs_at_a_linked_cluster_belongs_to_the_project_that_is_given(
    line: str, sent: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = tmp_path / "context.json"
    context.write_text(json.dumps({"server": "https://127.0.0.1:1", "token": "weft_limited"}))
    start = ["--context", str(context), "-p", "lab"]
    code = run([*start, *line.format(file).split(), "--explain"], SystemClock)
    said = capsys.readouterr()
    assert code == 0 and sent in said.out, said.err
    assert run([*start, "cluster", "list", "--explain"], SystemClock) == 2
    assert "clusters belong to no project" in capsys.readouterr().err


def test_who_may_not_see_the_base_images_leaves_it_to_the_server_whether_they_are_there() -> None:
    class Client:
        project = "lab"

        def __init__(self) -> None:
            self.asked: list[str] = []

        def get(self, kind: str, name: str, *, project: str) -> None:
            self.asked.append(project)
            raise Forbidden("you can't see images in default") if project == "default" else NotFound("no image")

    class Limited:
        client = Client()

    session: Any = Limited()
    runtime_image.provide_bases(session, [{"runtime": "python3.11", "isolation": "process"}], lambda: None)
    assert session.client.asked == ["lab", "default"]


def test_an_image_is_built_only_for_functions_that_the_server_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NotFound('node "brnch" not found', field="spec.local_nodes")

    def find(*_: Any, **__: Any) -> None:
        raise NotFound("no image")

    monkeypatch.setattr(runtime_image, "build_and_add", lambda *_: pytest.fail("built before it was checked"))
    session: Any = SimpleNamespace(client=SimpleNamespace(project="lab", get=find))
    with pytest.raises(NotFound, match="brnch"):
        runtime_image.provide_bases(session, [{"runtime": "python3.11", "isolation": "process"}], refuse)


def test_what_is_not_found_is_named_with_the_flag_that_meant_it() -> None:
    command = load("create", verbs_of("function")["create"], BY_NAME["function"])
    session = Session(SystemClock, {})
    context = click.Context(command, obj=session)

    def name(message: str, field: str) -> str:
        return name_flags(context, NotFound(message, field=field)).message

    assert name('node "brnch" not found', "spec.local_nodes") == '--local-node: node "brnch" not found'
    session.typed = ["function", "create", "--local-nodes=brnch"]
    assert name('node "brnch" not found', "spec.local_nodes") == '--local-nodes: node "brnch" not found'
    assert name('image "tinny" not found in project lab', "spec.image") == 'image "tinny" not found in project lab'


def test_what_is_wrong_with_a_migration_to_another_cluster_is_said_of_its_options() -> None:
    context = click.Context(load("migrate", verbs_of("vm")["migrate"], BY_NAME["vm"]))

    def name(message: str, field: str) -> str:
        return name_flags(context, InvalidInput(message, field=field)).message

    assert (
        name("input.cluster 'West!' is not a valid name", "input.cluster") == "--to-cluster 'West!' is not a valid name"
    )
    assert name("input.bytes_per_second: 10X", "input.bytes_per_second") == "--bandwidth: 10X"
    assert name("input.pause_ms: too long", "input.pause_ms") == "--pause: too long"


def test_a_word_that_is_no_token_of_a_witness_is_said_of_the_option_that_gave_it() -> None:
    context = click.Context(load("witness", verbs_of("cluster")["witness"], BY_NAME["cluster"]))
    problem = InvalidInput("spec.values.witness is not a witness's token", field="spec.values.witness")
    assert name_flags(context, problem).message == "--token is not a witness's token"


def test_what_was_done_is_said_in_words() -> None:
    session: Any = SimpleNamespace(detach=False)
    words = {verb: finish._word(session, verb) for verb in ("run-alone", "take-back", "promote", "reclaim")}
    assert words == {
        "run-alone": "runs alone, and is automatic no more: weft replication set NAME --automatic turns that on again",
        "take-back": "taken back",
        "promote": "promoted",
        "reclaim": "goes on here: make sure that it never runs at the other cluster",
    }
    assert finish._word(session, "reclaim", "volume") == "is an ordinary volume now"


@pytest.mark.parametrize(("phase", "told"), [("Ready", 0), ("Autonomous", 0), ("NotReady", 5)])
def test_what_is_lost_with_a_node_is_listed_only_if_it_can_be_given_up(phase: str, told: int) -> None:
    class Client:
        def get(self, kind: str, name: str) -> dict[str, Any]:
            return {"uid": "u", "status": {"phase": phase}}

        def list(self, kind: str, **_: Any) -> Any:
            return SimpleNamespace(items=[])

    said: list[str] = []
    session: Any = SimpleNamespace(client=Client(), notify=said.append)
    delete._warn_of_loss(session, Target(BY_NAME["node"], "n1"))
    assert len(said) == told


def test_workloads_that_name_a_lost_node_are_not_said_to_be_placed_again() -> None:
    class Client:
        def get(self, kind: str, name: str) -> dict[str, Any]:
            return {"uid": "u", "status": {"phase": "NotReady"}}

        def list(self, kind: str, **query: Any) -> Any:
            names = [("vm", "v1"), ("vm", "v2"), ("container", "task-0")]
            refs = [{"kind": kind, "project": "default", "name": name} for kind, name in names]
            pinned = kind == "vm" and query["fields"] == "spec.node=n1"
            places: list[dict[str, Any]] = [{"spec": {"workload": ref, "volumes": []}} for ref in refs]
            places[2]["spec"]["once"], places[2]["report"] = True, {"ended": True}  # it never runs again
            found = {"allocation": places, "vm": refs[:1]}
            return SimpleNamespace(items=found.get(kind, []) if pinned or kind == "allocation" else [])

    said: list[str] = []
    session: Any = SimpleNamespace(client=Client(), notify=said.append)
    delete._warn_of_loss(session, Target(BY_NAME["node"], "n1"))
    assert said[:2] == [
        "workloads placed again, without their root disks: vm/v2",
        "workloads that wait for the node, because they name it: vm/v1",
    ]


def test_of_each_root_disk_that_goes_with_a_node_the_copies_elsewhere_are_named() -> None:
    def made(kind: str, name: str, of: str, **status: Any) -> dict[str, Any]:
        spec = {"of": f"vm/{of}", "cluster": "west"}
        status = {"phase": "Ready", "workload_uid": of, "taken_at": 0.0, **status}
        return {"kind": kind, "name": name, "project": "default", "spec": spec, "status": status}

    objects = {
        "backup": [
            made("backup", "old", "v1", taken_at=-60.0),
            made("backup", "new", "v1"),
            made("backup", "no", "v2", phase="Failed"),
        ],
        "snapshot": [made("snapshot", "gone", "v2", node="n1", disks={"root": {"pool": "local"}})],
        "replication": [made("replication", "v1", "v1", point={"taken_at": 60.0})],
    }

    class Client:
        def get(self, kind: str, name: str) -> dict[str, Any]:
            return {"uid": "u", "status": {"phase": "NotReady"}}

        def list(self, kind: str, **_: Any) -> Any:
            refs = [{"kind": "vm", "project": "default", "name": name, "uid": name} for name in ("v1", "v2")]
            places = [{"spec": {"workload": ref, "volumes": [], "resources": {"disk": 1}}} for ref in refs]
            return SimpleNamespace(items=places if kind == "allocation" else objects.get(kind, []))

    said: list[str] = []
    session: Any = SimpleNamespace(client=Client(), notify=said.append)
    delete._warn_of_loss(session, Target(BY_NAME["node"], "n1"))
    assert said[5:] == [
        "root disk of vm/v1: backup/new has it as of 1970-01-01 00:00 UTC: weft backup restore new --new-name NAME; "
        "cluster west has a replica of 1970-01-01 00:01 UTC",
        "root disk of vm/v2: there is no backup, snapshot or replica of it",
    ]


def test_functions_that_a_lost_node_alone_serves_are_named() -> None:
    nodes = {"price": ["n1"], "both": ["n1", "n2"], "other": ["n2"], "plain": []}

    class Client:
        def get(self, kind: str, name: str) -> dict[str, Any]:
            return {"uid": "u", "status": {"phase": "NotReady"}}

        def list(self, kind: str, **query: Any) -> Any:
            found = [{"name": name, "spec": {"local_nodes": named}} for name, named in nodes.items()]
            return SimpleNamespace(items=found if kind == "function" and query == {"all_projects": True} else [])

    said: list[str] = []
    session: Any = SimpleNamespace(client=Client(), notify=said.append)
    delete._warn_of_loss(session, Target(BY_NAME["node"], "n1"))
    assert said[-1] == "functions that no other node serves at an address of its own: function/price"


SILENCE = "; node n3 sends no heartbeat, so nothing changes there before it is back"


@pytest.mark.parametrize(
    ("verb", "said"), [("set", "changed"), ("stop", "stop requested"), ("delete", "delete requested")]
)
@pytest.mark.parametrize("reason", ["nodeAutonomous", "nodeLost", ""])
def test_what_nobody_waits_for_says_that_a_silent_node_does_not_hear_of_it_yet(
    verb: str, said: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target(BY_NAME["vm"], "web")
    vm = {"kind": "vm", "name": "web", "uid": "u", "generation": 2, "status": {"node": "n3", "reason": reason}}
    session: Any = SimpleNamespace(detach=True, is_data=False, in_project="", unfinished=False)
    wait = finish.plan_wait(vm, target, "update" if verb == "set" else verb)
    assert finish.finish(session, [Done(target, vm, verb)], [wait] if wait else []) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"vm/web  {said}{SILENCE if reason else ''}; operation vm/web@2"), told
    finish.finish(session, [Done(target, vm, "unchanged")], [])
    assert capsys.readouterr().out == "vm/web  unchanged\n"


@pytest.mark.parametrize("reason", ["nodeAutonomous", ""])
def test_a_migration_that_nobody_watches_says_that_it_does_not_begin_before_the_node_is_back(
    reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vm = {"kind": "vm", "name": "web", "status": {"node": "n3", "reason": reason}}
    migration = {"kind": "migration", "name": "web-1", "generation": 1}
    client = SimpleNamespace(get=lambda *_: vm, verb=lambda *_: migration)
    session: Any = SimpleNamespace(
        client=client, detach=True, is_data=False, output="", in_project="", given_project=""
    )
    given: dict[str, Any] = dict.fromkeys(("to", "bandwidth", "at", "within", "reason", "timeout"))
    assert migrate._run(session, BY_NAME["vm"], ("web",), **given, dry_run=False, detach=True) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"vm/web  migrating{SILENCE if reason else ''}; watch: weft operation attach"), told


BAR = "an emulated guest with hot-plugged memory can't migrate live; after a restart it can"


@pytest.mark.parametrize(
    ("more", "bar", "answer", "outcome"),
    [
        ({}, "", None, 0),
        ({}, BAR, None, "give --allow-pause"),  # nobody can be asked
        ({}, BAR, True, 0),
        ({}, BAR, False, 1),
        ({"allow_pause": True}, BAR, None, 0),
        ({"cold": True}, BAR, None, 0),
    ],
)
def test_a_guest_that_can_only_migrate_standing_still_is_asked_about_with_the_reason(
    more: dict[str, Any], bar: str, answer: bool | None, outcome: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = {"kind": "vm", "name": "web", "status": {"phase": "Running", "node": "n3", "live_bar": bar}}
    sent: list[str] = []

    def act(*words: Any) -> dict[str, Any]:
        sent.append(words[2])
        return {"kind": "migration", "name": "web-1", "generation": 1}

    said: list[str] = []
    session: Any = SimpleNamespace(
        client=SimpleNamespace(get=lambda *_: vm, verb=act),
        detach=True,
        is_data=False,
        output="",
        in_project="",
        given_project="",
        recorder=None,
        notify=said.append,
    )
    monkeypatch.setattr(migrate, "is_terminal", lambda _: answer is not None)
    monkeypatch.setattr(migrate.click, "confirm", lambda *_, **__: answer)
    given: dict[str, Any] = dict.fromkeys(("to", "bandwidth", "at", "within", "reason", "timeout")) | more

    def run() -> int:
        return migrate._run(session, BY_NAME["vm"], ("web",), **given, dry_run=False, detach=True)

    if isinstance(outcome, str):
        with pytest.raises(click.UsageError) as refused:
            run()
        assert BAR in refused.value.message and outcome in str(vars(refused.value).get("hint"))
    else:
        assert run() == outcome
    assert sent == (["migrate"] if outcome == 0 else [])
    assert any(BAR in line for line in said) == (bool(bar) and not more)


@pytest.mark.parametrize(
    ("kind", "node_uid", "is_said"), [("vm", "u", True), ("vm", None, False), ("arrival", "u", False)]
)
def test_volumes_that_stay_are_named_and_those_of_an_arrival_or_without_data_go_with_it(
    kind: str, node_uid: str | None, is_said: bool
) -> None:
    said: list[str] = []
    obj = {"kind": kind, "name": "web", "spec": {"origin": {"uid": "u"}, "volumes": ["data"]}}
    volumes = SimpleNamespace(items=[{"name": "data", "status": {"node_uid": node_uid}}])
    client = SimpleNamespace(list=lambda _: volumes)
    session: Any = SimpleNamespace(notify=said.append, in_project="", client=client)
    delete._name_volumes_left(session, [Done(Target(BY_NAME[kind], "web"), obj, "deleted")])
    assert ("1 volume of vm/web, a copy, stays: weft volume delete data" in said) is is_said and bool(said) is is_said


def test_the_other_cluster_s_token_for_the_witness_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = tmp_path / "context.json"
    context.write_text(json.dumps({"server": "https://127.0.0.1:1", "token": "weft_limited"}))
    line = ["--context", str(context), "cluster", "witness", "west", "https://192.0.2.7:7443", "--explain", "--token"]
    west, east = (f"{site}.{'a' * 64}.{'b' * 64}" for site in ("west", "east"))
    assert run([*line, west], SystemClock) == 2
    said = capsys.readouterr().err
    assert "--token is that of west" in said and "a" * 64 not in said
    assert run([*line, east], SystemClock) == 0


def test_a_link_token_is_valid_for_a_week_at_most(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = tmp_path / "context.json"
    context.write_text(json.dumps({"server": "https://127.0.0.1:1", "token": "weft_limited"}))
    assert run(["--context", str(context), "cluster", "link-token", "east", "--expires", "8d"], SystemClock) == 2
    assert "8d is more than a week" in capsys.readouterr().err
