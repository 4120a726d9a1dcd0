"""The audit log of the real API server: what is in it, who sees it, that nothing acknowledged is missing, that it stays whole."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm
from tests.scenario.cli_lab import Said
from tests.scenario.server.test_api_process import ApiProcess

from weft.cli.app import run
from weft.client import Client
from weft.client.audit import read_all, read_newest, verify_servers
from weft.client.context import write_context
from weft.contracts.clock import SystemClock
from weft.objects.errors import Forbidden, InvalidInput, WeftError
from weft.telemetry.audit.bound import MOST_OF_ONE
from weft.telemetry.audit.files import list_files, list_torn, read_after, verify_files
from weft.trust.audit_chain import AuditRecord, read_record

SECRET = "Tr0ub4dor-and-3"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    for name in ("lab", "other"):
        lab.client.create({"kind": "project", "name": name, "spec": {}})
        lab.client.apply([{**make_image(), "project": name}])
    yield lab
    lab.close()


def read(lab: ApiLab) -> list[AuditRecord]:
    return [read_record(line) for line in read_after(lab.folder / "audit", 0)]


def last(lab: ApiLab) -> AuditRecord:
    return read(lab)[-1]


def weft(lab: ApiLab, *words: str, client: Client | None = None) -> Said:
    context = lab.folder / "of-client.json"
    write_context(context, (client or lab.client).context)
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["--context", str(context), *words], SystemClock)
    out.flush()
    return Said(code, out.buffer.getvalue().decode(), err.getvalue())  # type: ignore[attr-defined]


def test_a_change_a_refusal_and_a_failure_are_recorded_with_who_whence_what_and_why(lab: ApiLab) -> None:
    ann = lab.with_token("ann", use="access", role="editor", project="lab")
    made = ann.create({**make_vm("web", networks=[], cpu=2), "project": "lab"})
    record = last(lab)
    assert record.actor == msgspec.structs.replace(
        record.actor, kind="person", name="token:ann", role="editor", project="lab", id="ann"
    )
    assert record.address == "127.0.0.1" and record.request
    assert (record.method, record.verb, record.project, record.outcome, record.status) == (
        "POST", "create", "lab", "allowed", 201,
    )  # fmt: skip
    [about] = record.objects
    assert (about.kind, about.name, about.uid, about.action) == ("vm", "web", made["uid"], "created")
    assert {one.field: one.new for one in about.changes} == {"spec.image": "tiny", "spec.networks": [], "spec.cpu": 2}

    answer = ann.http.request("PATCH", "/v1/projects/lab/vms/web", {"spec": {"cpu": 3}, "labels": {"tier": "gold"}})
    record = last(lab)
    assert record.request == answer.headers["x-request-id"]
    [about] = record.objects
    changes = [(one.field, one.old, one.new) for one in about.changes]
    assert (about.action, changes) == ("updated", [("spec.cpu", 2, 3), ("labels", {}, {"tier": "gold"})])

    with pytest.raises(Forbidden):
        ann.create({**make_vm("spy", networks=[]), "project": "other"})
    record = last(lab)
    assert (record.outcome, record.status, record.reason, record.project) == ("refused", 403, "forbidden", "other")
    assert "limited to project lab" in record.message and record.actor.name == "token:ann"

    with pytest.raises(WeftError):
        ann.create({**make_vm("web", networks=[]), "project": "lab"})
    record = last(lab)
    assert (record.outcome, record.status, record.reason) == ("failed", 409, "alreadyExists")

    ann.delete("vm", "web", project="lab")
    record = last(lab)
    assert (record.verb, record.objects[0].uid, record.objects[0].action) == ("delete", made["uid"], "deleting")
    assert lab.audit.verify().broken is None


def test_verbs_streams_bulk_requests_joins_and_guarded_reads_are_recorded(lab: ApiLab) -> None:
    web = lab.client.create({**make_vm("web", networks=[]), "project": "lab"})
    lab.client.verb("vm", "web", "hold", {}, project="lab")
    record = last(lab)
    assert (record.verb, record.objects[0].uid) == ("hold", web["uid"])
    assert [(one.field, one.old, one.new) for one in record.objects[0].changes] == [("spec.hold", False, True)]
    body = {"argv": ["mysql", f"-p{SECRET}"]}
    with pytest.raises(WeftError):
        lab.client.verb("vm", "web", "exec", body, project="lab")
    assert (last(lab).verb, last(lab).outcome) == ("exec", "failed")
    before = len(read(lab))
    for verb in ("exec", "console", "logs"):  # a ticket opens a guest: no dry run has it without a record
        answer = lab.client.http.request("POST", f"/v1/projects/lab/vms/web:{verb}?dry_run=1", {})
        assert answer.status == 400 and "dry_run" in answer.body.decode()
    assert [one.verb for one in read(lab)[before:]] == ["exec", "console"]
    with pytest.raises(WeftError):
        lab.with_token(use="access", subject="eve", role="viewer", project="other").verb(
            "vm", "web", "logs", project="lab"
        )
    assert (last(lab).verb, last(lab).outcome) == ("logs", "refused")

    lab.client.http.request(
        "POST", "/v1/projects/lab/vms:batch", {"objects": [make_vm(f"b{n}", networks=[]) for n in range(3)]}
    )
    record = last(lab)
    assert (record.verb, [one.name for one in record.objects]) == ("batch", ["b0", "b1", "b2"])
    lab.client.apply([{**make_vm("x", networks=[]), "project": project} for project in ("lab", "other")])
    first, second = read(lab)[-2:]
    assert [(one.project, len(one.objects), one.request) for one in (first, second)] == [
        ("lab", 1, second.request), ("other", 1, second.request),
    ]  # fmt: skip
    lab.client.list("token").items  # noqa: B018
    record = last(lab)
    assert (record.method, record.verb, record.objects[0].kind, record.outcome) == ("GET", "read", "token", "allowed")
    node = lab.join("n1")
    joined = last(lab)
    assert (joined.verb, joined.actor.kind, joined.objects[0].kind, joined.objects[0].uid) == (
        "join", "joiner", "node", node.uid,
    )  # fmt: skip


def test_reads_reports_questions_and_rehearsed_changes_leave_no_record(lab: ApiLab) -> None:
    node = lab.join("n1")
    before = len(read(lab))
    lab.client.list("vm", all_projects=True).items  # noqa: B018
    lab.client.http.request("GET", "/v1/projects/lab/vms/none")
    lab.client.http.request("GET", "/v1/nowhere")
    lab.client.apply([{**make_vm("x", networks=[]), "project": "lab"}], dry_run=True)
    lab.client.http.request("POST", "/v1/projects/lab/vms?dry_run=1", make_vm("x", networks=[]))
    lab.client.http.request("POST", "/v1/projects/lab/vms?dry_run=1", {"name": "BAD"})
    node.report()
    node.client.get("node", "n1")
    assert len(read(lab)) == before


def test_a_stranger_is_recorded_up_to_a_bound_and_counted_beyond_it(lab: ApiLab) -> None:
    stranger = lab.connect(msgspec.structs.replace(lab.context, token=f"weft_x_{SECRET}"))
    before = len(read(lab))
    for n in range(100):
        assert stranger.http.request("GET", f"/v1/projects/lab/vms/web?n={n}").status == 401
    refused = read(lab)[before:]
    assert len(refused) == MOST_OF_ONE
    assert {(one.actor.kind, one.outcome, one.status, one.reason) for one in refused} == {
        ("nobody", "refused", 401, "notAuthenticated")
    }
    lab.restart()
    found = [one for one in read(lab) if one.verb == "notRecorded"]
    assert [(one.count, one.address) for one in found] == [(100 - MOST_OF_ONE, "127.0.0.1")]
    assert lab.audit.verify().broken is None


def test_no_secret_reaches_the_files(lab: ApiLab) -> None:
    made = lab.client.create({"kind": "secret", "name": "s", "spec": {"values": {"k": SECRET, "password": SECRET}}})
    lab.client.http.request("PATCH", "/v1/projects/default/secrets/s", {"spec": {"values": {"k": SECRET + "2"}}})
    lab.client.create({**make_vm("web", networks=[], user_data=f"#cloud-config\npassword: {SECRET}"), "project": "lab"})
    env = {"PASSWORD": SECRET, "HOME": SECRET}
    lab.client.create(
        {
            "kind": "container",
            "name": "c",
            "project": "lab",
            "spec": {"image": "docker.io/library/a:1", "networks": [], "env": env},
        }
    )
    container = "/v1/projects/lab/containers/c"
    lab.client.http.request("PATCH", container, {"spec": {"env": {"HOME": SECRET + "3"}}})
    token = lab.client.create({"kind": "token", "name": "t", "spec": {"use": "access", "subject": "bob"}})["secret"]
    lab.client.http.request("POST", "/v1/tokens", {"name": "t", "spec": {"use": "access"}})
    lab.client.http.request("PUT", f"/v1/projects/lab/vms/{token}", {"name": "x"})
    for path in (f"/v1/projects/lab/vms/{token}:stop", f"/v1/{token}"):
        lab.connect(msgspec.structs.replace(lab.context, token=token)).http.request("POST", path, {"a": SECRET})
    key = lab.client.create({"kind": "token", "name": "k", "spec": {"use": "access-key", "project": "lab"}})["secret"]
    text = b"".join(path.read_bytes() for path in (lab.folder / "audit").iterdir()).decode()
    sealed = json.dumps(lab.client.get("secret", "s")["spec"]["sealed"]["k"])[1:-1]
    assert made["name"] in text and '"(hidden)"' in text
    for secret in (SECRET, token, token.rpartition("_")[2], key, sealed):
        assert len(secret) > 8 and secret not in text
    assert len(read(lab)) > 12


def test_a_project_s_admin_and_auditors_see_what_is_theirs(lab: ApiLab) -> None:
    for name in ("lab", "other"):
        lab.client.create({**make_vm("web", networks=[]), "project": name})
    boss = lab.with_token(use="access", role="admin", project="lab", subject="boss")
    seen = [msgspec.json.decode(raw) for raw in read_all(boss.http, {})]
    assert {one.get("project") for one in seen} == {"lab"} and seen[-1]["objects"][0]["name"] == "web"
    for query in ({"project": "other"}, {"project": "other", "actor": "admin"}):
        with pytest.raises(Forbidden):
            read_newest(boss.http, query)
    with pytest.raises(Forbidden):
        verify_servers(boss.http)
    auditor = lab.with_token(use="access", role="auditor")
    assert {one.get("project") for one in map(msgspec.json.decode, read_all(auditor.http, {}))} >= {
        "lab",
        "other",
        None,
    }
    assert verify_servers(auditor.http).broken is None
    with pytest.raises(Forbidden):
        read_newest(lab.with_token(use="access", role="editor", project="lab").http, {})


def test_records_are_selected_and_paged(lab: ApiLab) -> None:
    for n in range(30):
        lab.client.create({"kind": "volume", "name": f"v{n}", "project": "lab", "spec": {"size": "1G"}})
    http = lab.client.http
    names = [f"v{n}" for n in range(30)]

    def pick(raws: Any) -> list[str]:
        return [one["objects"][0]["name"] for one in map(msgspec.json.decode, raws)]

    assert pick(read_all(http, {"kind": "volume"})) == names
    assert pick(read_all(http, {"kind": "volume", "limit": "7"})) == names
    assert pick(read_newest(http, {"kind": "volume"}, 3)) == names[-3:]
    middle = next(one for one in read(lab) if one.objects and one.objects[0].name == "v10")
    assert pick(read_all(http, {"kind": "volume", "since": middle.at})) == names[10:]
    assert pick(read_all(http, {"kind": "volume", "until": middle.at})) == names[:10]
    assert pick(read_newest(http, {"kind": "volume", "since": middle.at}, 100)) == names[10:]
    assert list(read_all(http, {"actor": "nobody-known"})) == [] == list(read_all(http, {"outcome": "failed"}))
    for query in ({"outcome": "good"}, {"since": "soon"}, {"since": "1e30"}, {"limit": "5000"}, {"colour": "red"}):
        with pytest.raises(InvalidInput):
            read_newest(http, query) if "limit" not in query else list(read_all(http, query))


def test_an_administrator_of_a_project_forges_no_name_by_a_token_s_subject_or_name(lab: ApiLab) -> None:
    lab.client.create({"kind": "user", "name": "bea", "spec": {}})
    boss = lab.with_token("boss", use="access", role="admin", project="lab")
    for name in ("admin", "bea"):
        spec = {"use": "access", "role": "editor", "project": "lab", "subject": "admin"}
        made = boss.create({"kind": "token", "name": name, "spec": spec})
        forger = lab.connect(msgspec.structs.replace(lab.context, token=made["secret"]))
        assert forger.http.request("GET", "/v1/whoami").json()["name"] == f"token:{name}"
        vm = forger.create({**make_vm(f"by-{name}", networks=[]), "project": "lab"})
        assert vm["created_by"] == f"token:{name}"
        lab.journal.flush()
        (event,) = lab.client.events(about=f"vm/lab/by-{name}")
        assert event["message"] == f"created by token:{name}"
        assert last(lab).actor.name == f"token:{name}"
        assert not list(read_all(lab.client.http, {"actor": name, "kind": "vm"}))
        assert len(list(read_all(lab.client.http, {"actor": f"token:{name}", "kind": "vm"}))) == 1


def test_the_commands_list_export_and_verify(lab: ApiLab, tmp_path: Path) -> None:
    ann = lab.with_token("ann", use="access", role="editor", project="lab")
    ann.create({**make_vm("web", networks=[]), "project": "lab"})
    with pytest.raises(Forbidden):
        ann.delete("vm", "web", project="other")
    said = weft(lab, "audit", "list", "--since", "1h", "--actor", "token:ann")
    assert said.code == 0, said
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[0][:5] == ["TIME", "ACTOR", "VERB", "OBJECT", "OUTCOME"]
    assert [line[3:7] for line in lines[1:]] == [  # after the time, which has three words
        ["token:ann", "create", "lab/vm/web", "allowed"],
        ["token:ann", "delete", "other/vm/web", "refused"],
    ]
    found = json.loads(weft(lab, "audit", "list", "-p", "other", "--outcome", "refused", "-o", "json").out)["items"]
    assert [one["actor"]["name"] for one in found] == ["token:ann"]
    assert "no records" in weft(lab, "audit", "list", "--until", "1h").err

    file = tmp_path / "audit.jsonl"
    said = weft(lab, "audit", "export", str(file))
    assert said.code == 0 and f"→ {file}" in said.err
    exported = file.read_bytes().splitlines()
    assert exported == [*read_after(lab.folder / "audit", 0)][: len(exported)]
    again = weft(lab, "audit", "export", str(file))
    assert again.code == 2 and f"{file} exists already" in again.err and "--force" in again.err
    assert file.read_bytes().splitlines() == exported
    assert weft(lab, "audit", "export", str(file), "--force").code == 0
    assert weft(lab, "audit", "export").out.encode().splitlines()[: len(exported)] == exported
    for words in ([], [str(file)]):
        said = weft(lab, "audit", "verify", *words)
        assert said.code == 0 and "records are whole: 1 to" in said.out, said

    half = len(exported) // 2
    (tmp_path / "a").write_bytes(b"\n".join(exported[:half]) + b"\n")
    (tmp_path / "b").write_bytes(b"\n".join(exported[half:]) + b"\n")
    assert weft(lab, "audit", "verify", str(tmp_path / "a"), str(tmp_path / "b")).code == 0
    said = weft(lab, "audit", "verify", str(tmp_path / "b"))
    assert said.code == 0 and "older ones are not in the files" in said.out
    exported[half] = exported[half].replace(b'"allowed"', b'"refused"')
    file.write_bytes(b"\n".join(exported) + b"\n")
    said = weft(lab, "audit", "verify", str(file))
    assert (said.code, said.out) == (1, f"broken at record {half + 1}: record {half + 1} is not as it was written\n")
    assert json.loads(weft(lab, "audit", "verify", str(file), "-o", "json").out)["broken"]["sequence"] == half + 1

    (stored,) = list_files(lab.folder / "audit")
    stored.write_bytes(b"".join(line + b"\n" for line in [*read_after(lab.folder / "audit", 0)][:3]))
    said = weft(lab, "audit", "verify")
    assert said.code == 1 and "broken at record 4" in said.out
    assert weft(lab, "audit", "verify", str(tmp_path / "none")).code != 0
    refused = weft(lab, "audit", "export", str(tmp_path / "refused"), client=ann)
    assert refused.code != 0 and not (tmp_path / "refused").exists()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiProcess]:
    with ApiProcess(tmp_path / "state", "--audit-syslog", str(tmp_path / "syslog")) as api:
        yield api


def test_whatever_was_acknowledged_before_a_kill_is_in_the_log_and_the_log_is_whole(api: ApiProcess) -> None:
    folder = api.state / "audit"
    acknowledged: set[str] = set()
    for turn in range(3):
        process = api.start()
        with contextlib.closing(api.connect()) as client:
            begun = len(acknowledged)

            def write(writer: int, turn: int = turn) -> None:
                own = Client(client.context)
                with contextlib.suppress(WeftError):
                    for n in range(1000):
                        name = f"v{turn}-{writer}-{n}"
                        own.create({"kind": "volume", "name": name, "spec": {"size": "1G"}})
                        acknowledged.add(name)
                own.close()

            writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
            for writer in writers:
                writer.start()
            while len(acknowledged) < begun + 100:
                threading.Event().wait(0.01)
            process.send_signal(signal.SIGKILL)
            for writer in writers:
                writer.join()
            process.wait()
        with list_files(folder)[-1].open("ab") as file:
            file.write(b'{"sequence":' * turn)  # as if it was killed in a write
    api.start()
    with contextlib.closing(api.connect()) as client:
        assert verify_servers(client.http).broken is None
        recorded = {
            one.name for line in read_after(folder, 0) for one in read_record(line).objects if one.action == "created"
        }
        assert acknowledged <= recorded and len(acknowledged) >= 300
    assert verify_files(folder, None).broken is None
    assert [read_record(line).verb for line in read_after(folder, 0)].count("start") == 4
    assert len(list_torn(folder)) == 2


def test_records_reach_syslog_and_its_end_holds_nothing_up(api: ApiProcess, tmp_path: Path) -> None:
    syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    syslog.bind(str(tmp_path / "syslog"))
    syslog.settimeout(20)
    process = api.start()
    with contextlib.closing(api.connect()) as client:
        client.create({"kind": "volume", "name": "seen", "spec": {"size": "1G"}})
        got = b""
        while b'"seen"' not in got:
            got = syslog.recv(65536)
        assert got.startswith(b"<86>1 20") and f" weft {process.pid} audit - ".encode() in got
        assert got.partition(b" - ")[2] in [*read_after(api.state / "audit", 0)]
        syslog.close()
        os.unlink(tmp_path / "syslog")
        for n in range(20):
            client.create({"kind": "volume", "name": f"v{n}", "spec": {"size": "1G"}})
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert read_record([*read_after(api.state / "audit", 0)][-1]).verb == "stop"


def test_a_bad_setting_is_refused_at_once(tmp_path: Path) -> None:
    for option, value in (("--audit-keep", "soon"), ("--audit-most", "lots"), ("--audit-syslog", "here")):
        process = ApiProcess(tmp_path / "state", option, value).start()
        assert process.wait(20) == 2
        assert process.stderr is not None and value in process.stderr.read()
    assert isinstance(process, subprocess.Popen)
