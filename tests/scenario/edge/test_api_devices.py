"""A gateway and the API: what its node's certificate lets it read, and what becomes of its reports. The test reports as a node
would."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests import onnx_files
from tests.onnx_files import digest, linear
from tests.scenario.api_lab import ApiLab, JoinedNode
from tests.scenario.cli_lab import WEFT

from weft.client import Client
from weft.client.answer import raise_problem
from weft.client.function_code import upload_code
from weft.informer.enrolments import Enrolments
from weft.kinds.device import DEVICE, DeviceActions, DeviceReport, DeviceSpec
from weft.kinds.device_rollout import DeviceRolloutSpec
from weft.kinds.model import ModelReport, NodeRuns
from weft.objects.envelope import decode_part
from weft.objects.errors import Forbidden, InvalidInput, NotFound
from weft.protocol.devices import MOST_BEHIND
from weft.trust.tickets import verify_ticket

DOUBLE = linear([2.0], 1.0)
OUTSIDE = onnx_files.model(
    [onnx_files.node("Gemm", ["x", "w", "b"], ["y"])],
    [onnx_files.external("w", [1, 1], "/etc/shadow"), onnx_files.tensor("b", [1], [0.0])],
    [onnx_files.value("x", [1, 1])],
    [onnx_files.value("y", [1, 1])],
)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path_factory.mktemp("devices"))
    yield lab
    lab.close()


class Shop:
    """A project of its own with two nodes, a model, and a device behind each node."""

    count = 0

    def __init__(self, lab: ApiLab) -> None:
        Shop.count += 1
        self.lab, self.project = lab, f"shop{Shop.count}"
        lab.client.create({"kind": "project", "name": self.project, "spec": {}})
        self.node, self.other = (lab.join(f"s{Shop.count}n{n}") for n in (1, 2))
        for one in (self.node, self.other):
            lab.client.patch("node", one.name, {"spec": {"devices_project": self.project}})
        properties = {
            "setpoint": {"type": "number", "maximum": 10},
            "temperature": {"type": "number", "read_only": True},
        }
        self.make("devicemodel", "fridge", properties=properties)
        self.make("devicemodel", "unused", properties=properties)
        self.fridge = self.make("device", "fridge-1", node=self.node.name, model="fridge")
        self.foreign = self.make("device", "fridge-2", node=self.other.name, model="fridge")

    def make(self, kind: str, name: str, **spec: Any) -> Any:
        return self.lab.client.create({"kind": kind, "name": name, "project": self.project, "spec": spec})

    def make_model(self, name: str, file: bytes = DOUBLE, **spec: Any) -> Any:
        upload_code(Client(self.lab.context, project=self.project), digest(file), file, "onnx")
        given = {"inputs": ["temperature"], "result": {"set": "setpoint"}, "devices": {"model": "fridge"}, **spec}
        return self.make("model", name, file=digest(file), **given)

    def list_names(self, node: JoinedNode, plural: str) -> set[tuple[str, str]]:
        found = ask(node.client, "GET", f"/v1/{plural}")["items"]
        return {(one["project"], one["name"]) for one in found}

    def report(self, **told: Any) -> Any:
        return post(self.node, f"/v1/nodes/{self.node.name}:devices", told)

    def stored(self, name: str) -> tuple[int, DeviceSpec, DeviceReport]:
        found = self.lab.stored(f"/device/{self.project}/{name}")
        assert found is not None
        return found.revision, decode_part(found.spec, DeviceSpec), decode_part(found.report, DeviceReport)

    def times(self, name: str) -> dict[str, float]:
        found = self.lab.stored(f"/device/{self.project}/{name}")
        assert found is not None
        return decode_part(found.actions, DeviceActions).desired_until


def post(node: JoinedNode, path: str, body: Any) -> Any:
    return ask(node.client, "POST", path, body)


def ask(client: Client, method: str, path: str, body: Any = None) -> Any:
    answer = client.http.request(method, path, body)
    raise_problem(answer)
    return answer.json()


@pytest.fixture
def shop(started: ApiLab) -> Shop:
    return Shop(started)


def test_a_gateway_reads_its_devices_and_what_they_need_and_nothing_else(shop: Shop) -> None:
    shop.make("rule", "any", when="temperature>8", then=[{"event": "warm"}])
    shop.make("rule", "here", node=shop.node.name, when="temperature>8", then=[{"event": "warm"}])
    shop.make("rule", "there", node=shop.other.name, when="temperature>8", then=[{"event": "warm"}])
    shop.make_model("any")
    shop.make_model("here", node=shop.node.name)
    there = shop.make_model("there", linear([2.0]), node=shop.other.name)
    Shop(shop.lab)
    mine = shop.project
    assert shop.list_names(shop.node, "devices") == {(mine, "fridge-1")}
    assert shop.list_names(shop.node, "devicemodels") == {(mine, "fridge")}
    assert shop.list_names(shop.node, "rules") == {(mine, "any"), (mine, "here")}
    assert shop.list_names(shop.node, "models") == {(mine, "any"), (mine, "here")}
    found = shop.node.client.http.request("GET", f"/v1/blobs/{digest(DOUBLE)}")
    assert found.body == DOUBLE
    with pytest.raises(Forbidden):
        ask(shop.node.client, "GET", f"/v1/blobs/{there['spec']['file']}")
    with pytest.raises(Forbidden):
        ask(shop.node.client, "GET", f"/v1/projects/{mine}/devices/fridge-2")
    with pytest.raises(Forbidden):
        ask(shop.node.client, "GET", f"/v1/projects/{mine}/secrets")


def test_a_gateway_opens_the_secret_of_its_own_approved_device_only(shop: Shop) -> None:
    for name, node in (("one", shop.node), ("two", shop.other)):
        secret = {
            "kind": "secret",
            "name": name,
            "project": shop.project,
            "spec": {"values": {"password": f"pass-{name}"}},
        }
        shop.lab.client.create(secret)
        shop.make("device", f"locked-{name}", node=node.name, model="fridge", credentials=name)
    path = f"/v1/nodes/{shop.node.name}:secrets"
    opened = post(shop.node, path, {"device": f"{shop.project}/locked-one"})
    assert opened["secrets"] == {"one": {"password": "pass-one"}}
    for device in ("locked-two", "fridge-1", "absent", ""):
        with pytest.raises((NotFound, InvalidInput)) as caught:
            post(shop.node, path, {"device": f"{shop.project}/{device}"})
        assert "pass-" not in str(caught.value)


def test_a_report_is_written_once_and_one_that_changes_nothing_writes_nothing(shop: Shop) -> None:
    told = {"uid": shop.fridge["uid"], "phase": "Online", "seen_seconds_ago": 1.0, "reported": {"temperature": 4.5}}
    assert shop.report(devices=[told]).get("refused", {}) == {}
    revision, _, report = shop.stored("fridge-1")
    assert (report.phase, report.reported, report.node_uid) == ("Online", {"temperature": 4.5}, shop.node.uid)
    shop.report(devices=[told])
    assert shop.stored("fridge-1")[0] == revision
    shop.report(devices=[{**told, "reported": {"temperature": 5.5}}])
    assert shop.stored("fridge-1")[0] > revision


def test_all_devices_are_read_only_for_a_report_on_one_that_no_report_had(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists, read = list[str](), shop.lab.store.list

    async def count(prefix: str, **rest: Any) -> Any:
        lists.append(prefix)
        return await read(prefix, **rest)

    monkeypatch.setattr(shop.lab.store, "list", count)
    for value in (1.0, 2.0, 3.0):
        told = {"uid": shop.fridge["uid"], "phase": "Online", "reported": {"temperature": value}}
        assert shop.report(devices=[told]).get("refused", {}) == {}
    assert lists.count("/device/") == 1
    assert shop.stored("fridge-1")[2].reported == {"temperature": 3.0}


def test_a_device_that_moved_or_went_after_a_report_is_refused(shop: Shop) -> None:
    told = {"uid": shop.fridge["uid"], "phase": "Online"}
    assert shop.report(devices=[told]).get("refused", {}) == {}
    shop.lab.client.patch("device", "fridge-1", {"spec": {"node": shop.other.name}}, project=shop.project)
    assert shop.report(devices=[told])["refused"] == {shop.fridge["uid"]: "notYours"}
    shop.lab.client.delete("device", "fridge-1", project=shop.project)
    shop.make("device", "fridge-1", node=shop.node.name, model="fridge")
    assert shop.report(devices=[told])["refused"] == {shop.fridge["uid"]: "unknown"}
    assert shop.stored("fridge-1")[2] == DeviceReport()


def test_a_report_on_another_nodes_device_is_refused_and_the_rest_counts(shop: Shop) -> None:
    told = [{"uid": uid, "phase": "Online"} for uid in (shop.foreign["uid"], shop.fridge["uid"], "u" * 300)]
    assert shop.report(devices=told)["refused"] == {shop.foreign["uid"]: "notYours", "u" * 64: "notYours"}
    assert shop.stored("fridge-2")[2] == DeviceReport()
    assert shop.stored("fridge-1")[2].phase == "Online"
    with pytest.raises(Forbidden):
        post(shop.node, f"/v1/nodes/{shop.other.name}:devices", {"devices": told})
    with pytest.raises(Forbidden):
        ask(shop.lab.client, "POST", f"/v1/nodes/{shop.node.name}:devices", {})


@pytest.mark.parametrize(
    "reported",
    [
        {f"p{n}": n for n in range(101)},
        {"a": "x" * 2000},
        {f"p{n}": "x" * 900 for n in range(30)},
        {"n" * 64: 1},
        {"a": 10**30},
    ],
)
def test_a_report_of_too_much_is_refused_and_leaves_what_was_there(shop: Shop, reported: dict[str, Any]) -> None:
    answer = shop.report(devices=[{"uid": shop.fridge["uid"], "phase": "Online", "reported": reported}])
    assert answer["refused"] == {shop.fridge["uid"]: "tooLarge"}
    assert shop.stored("fridge-1")[2] == DeviceReport()


def test_too_many_entries_or_values_that_are_none_are_refused_as_a_whole(shop: Shop) -> None:
    for told in (
        {"devices": [{"uid": "u", "phase": "Online"}] * 501},
        {"found": [{"protocol": "mqtt", "address": "a"}] * 101},
        {"rules": [{"uid": "u", "fired": 1}] * 201},
        {"models": [{"uid": "u", "runs": 1}] * 101},
        {"devices": [{"uid": "u", "phase": "Happy"}]},
        {"devices": [{"uid": "u", "phase": "Online", "reported": {"a": {"deep": 1}}}]},
    ):
        with pytest.raises(InvalidInput):
            shop.report(**told)


def test_a_found_device_waits_for_approval_and_one_that_people_deleted_stays_away(shop: Shop) -> None:
    found = {"protocol": "mqtt", "address": "acme/7", "name": "Acme Fridge 7", "facts": {"manufacturer": "Acme"}}
    shop.report(found=[found, found])
    _, spec, report = shop.stored("acme-fridge-7")
    assert (spec.approved, spec.node, report.found["manufacturer"]) == (False, shop.node.name, "Acme")
    assert shop.report(found=[found]).get("not_kept", 0) == 0
    shop.lab.client.delete("device", "acme-fridge-7", project=shop.project)
    assert shop.report(found=[found])["not_kept"] == 1
    assert shop.lab.stored(f"/device/{shop.project}/acme-fridge-7") is None


def test_the_largest_reports_of_a_hundred_devices_are_all_taken(shop: Shop) -> None:
    spec = DeviceSpec(node=shop.node.name, model="fridge")
    made = [DEVICE.make(f"big-{n}", spec, 0.0, project=shop.project, creator="") for n in range(100)]
    shop.lab.put(*made)
    reported = {f"p{n}": "x" * 1000 for n in range(16)}
    told = [{"uid": one.uid, "phase": "Online", "reported": reported} for one in made]
    assert shop.report(devices=told).get("refused", {}) == {}
    assert all(shop.stored(one.name)[2].reported == reported for one in made)


def test_who_follows_the_certificates_of_nodes_bears_found_devices(shop: Shop) -> None:
    async def follow() -> asyncio.Task[None]:
        return asyncio.ensure_future(enrolments.run())

    changed: list[str] = []
    enrolments = Enrolments(shop.lab.store, shop.lab.clock, changed.append)
    following = shop.lab.run(follow())
    shop.report(found=[{"protocol": "mqtt", "address": "acme/8"}])
    later = shop.lab.join(f"{shop.node.name}-later")
    ends = shop.lab.clock.elapsed() + 60
    while later.uid not in changed and not following.done() and shop.lab.clock.elapsed() < ends:
        shop.lab.run(shop.lab.clock.sleep(0.02))
    assert later.uid in changed
    assert not following.done()
    following.cancel()


def test_a_node_has_at_most_five_hundred_found_devices(shop: Shop) -> None:
    for start in range(0, 600, 100):
        answer = shop.report(found=[{"protocol": "mqtt", "address": f"a/{n}"} for n in range(start, start + 100)])
    assert answer["not_kept"] == 100
    found = shop.lab.client.list("device", project=shop.project)
    assert sum(not one["spec"]["approved"] for one in found.items) == 500


def test_found_devices_that_are_approved_at_once_have_a_bound_too(shop: Shop) -> None:
    spec = DeviceSpec(node=shop.node.name, model="fridge")
    made = [DEVICE.make(f"many-{n}", spec, 0.0, project=shop.project, creator="") for n in range(MOST_BEHIND - 2)]
    for start in range(0, len(made), 100):
        shop.lab.put(*made[start : start + 100])
    shop.lab.client.delete("device", "fridge-2", project=shop.project)  # for the project has a bound, too
    answer = shop.report(found=[{"protocol": "mqtt", "address": f"b/{n}"} for n in range(4)])
    assert answer["not_kept"] == 3  # with the shop's own device one place was left


def test_found_devices_are_no_more_than_the_project_may_have(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop.lab.api, "settings", replace(shop.lab.api.settings, most_objects=4))
    answer = shop.report(found=[{"protocol": "mqtt", "address": f"c/{n}"} for n in range(3)])
    assert answer["not_kept"] == 1
    with pytest.raises(Forbidden) as caught:
        shop.make("device", "one-more", node=shop.node.name, model="fridge")
    assert "4 devices" in str(caught.value)


def test_a_node_takes_devices_of_the_one_project_that_its_administrator_chose(shop: Shop) -> None:
    client, other = shop.lab.client, Shop(shop.lab)
    with pytest.raises(Forbidden) as caught:
        other.make("device", "spy", node=shop.node.name)
    assert caught.value.field == "spec.node"
    assert f"weft node set {shop.node.name} --devices-project {other.project}" in (caught.value.hint or "")
    with pytest.raises(Forbidden):
        client.patch("device", "fridge-1", {"spec": {"node": shop.node.name}}, project=other.project)
    told = {"uid": shop.fridge["uid"], "phase": "Online"}
    assert shop.report(devices=[told])["project"] == shop.project
    with pytest.raises(NotFound, match='project "nope"'):
        client.patch("node", shop.node.name, {"spec": {"devices_project": "nope"}})
    client.patch("node", shop.node.name, {"spec": {"devices_project": other.project}})
    answer = shop.report(devices=[told])
    assert (answer["project"], answer["refused"]) == (other.project, {shop.fridge["uid"]: "notYours"})
    client.patch(
        "device", "fridge-1", {"spec": {"desired": {"setpoint": 4}}}, project=shop.project
    )  # it may still change
    other.make("device", "mine", node=shop.node.name)


def test_a_model_that_a_device_names_later_is_told_of_by_the_watch_that_began_before(shop: Shop) -> None:
    listing = shop.node.client.list("devicemodel", all_projects=True)
    path = f"/v1/devicemodels?watch=1&cursor={listing.cursor}"
    with shop.node.client.http.stream("GET", path) as lines:
        shop.lab.client.patch("device", "fridge-1", {"spec": {"model": "unused"}}, project=shop.project)
        assert shop.list_names(shop.node, "devicemodels") == {(shop.project, "unused")}
        for name in ("fridge", "unused"):
            shop.lab.client.patch("devicemodel", name, {"spec": {"title": "new"}}, project=shop.project)
        first = next(line for line in lines.lines() if b"devicemodel" in line)
        assert b'"name":"unused"' in first


def test_a_manifest_with_another_desired_value_ends_the_time_of_the_former_one(shop: Shop) -> None:
    client, where = shop.lab.client, {"project": shop.project}
    client.verb("device", "fridge-1", "set", {"desired": {"setpoint": 4}, "expires_seconds": 3000}, **where)
    shop.lab.journal.flush()
    said = list(client.events(about=f"device/{shop.project}/fridge-1"))[-1]["message"]
    assert said.startswith("set requested by ") and said.endswith(": setpoint=4, for 50m")
    client.patch("device", "fridge-1", {"spec": {"desired": {"setpoint": 4}, "poll_seconds": 5}}, **where)
    assert "setpoint" in shop.times("fridge-1")
    client.patch("device", "fridge-1", {"spec": {"desired": {"setpoint": 5}}}, **where)
    assert shop.stored("fridge-1")[1].desired == {"setpoint": 5}
    assert shop.times("fridge-1") == {}


def test_a_rule_that_fired_counts_once_however_often_it_is_reported(shop: Shop) -> None:
    rule = shop.make("rule", "warm", when="temperature>8", then=[{"event": "warm"}])
    told = {"uid": rule["uid"], "fired": 3, "seconds_ago": 5.0}
    shop.report(rules=[told])
    first = shop.lab.stored(f"/rule/{shop.project}/warm")
    shop.report(rules=[told])
    again = shop.lab.stored(f"/rule/{shop.project}/warm")
    assert first is not None
    assert again is not None
    assert first.revision == again.revision
    assert b'"fired":3' in bytes(first.report)


def test_a_workload_is_near_a_device_of_its_own_project_that_exists(shop: Shop) -> None:
    shop.make("container", "near", image="registry.example.org/web:1", networks=[], near="device/fridge-1")
    with pytest.raises(NotFound, match="no-such"):
        shop.make("container", "lost", image="registry.example.org/web:1", networks=[], near="device/no-such")
    shop.lab.client.create({"kind": "project", "name": f"{shop.project}-x", "spec": {}})
    other = {"kind": "container", "name": "thief", "project": f"{shop.project}-x"}
    with pytest.raises(NotFound, match="fridge-1"):
        shop.lab.client.create(
            {**other, "spec": {"image": "registry.example.org/web:1", "networks": [], "near": "device/fridge-1"}}
        )


def test_a_model_counts_once_however_often_it_is_reported_and_only_where_it_is_for_the_node(shop: Shop) -> None:
    model, there = shop.make_model("colder"), shop.make_model("there", node=shop.other.name)
    told = {"uid": model["uid"], "file": digest(DOUBLE), "runs": 9, "late": 2, "nan": 1, "p99_ms": 1.23456}
    shop.report(models=[told])
    first = shop.lab.stored(f"/model/{shop.project}/colder")
    answer = shop.report(models=[told, {"uid": there["uid"], "runs": 1}, {"uid": "nobody's", "runs": 1}])
    again = shop.lab.stored(f"/model/{shop.project}/colder")
    assert answer["refused"] == {there["uid"]: "notYours", "nobody's": "unknown"}
    assert first is not None and again is not None and first.revision == again.revision
    assert decode_part(first.report, ModelReport).nodes == {
        shop.node.name: NodeRuns(file=digest(DOUBLE), runs=9, late=2, nan=1, p99_ms=1.235)
    }


def test_a_model_needs_its_file_and_fits_its_device_model(shop: Shop) -> None:
    with pytest.raises(NotFound, match="no model with the digest"):
        shop.make("model", "a", file="a" * 64, inputs=["temperature"], result={"set": "setpoint"})
    client = Client(shop.lab.context, project=shop.project)
    for file, words in ((b"not ONNX", "not an ONNX"), (DOUBLE[:-3], "not an ONNX"), (OUTSIDE, "another file")):
        with pytest.raises(InvalidInput, match=words):
            upload_code(client, digest(file), file, "onnx")
    with pytest.raises(InvalidInput, match="doesn't match"):
        upload_code(client, "b" * 64, DOUBLE, "onnx")
    for given, words in (
        ({"inputs": ["humidity"]}, "no such property"),
        ({"inputs": ["temperature.mean60"]}, "no mean over 60 s"),
        ({"result": {"set": "temperature"}}, "only the device sets"),
        ({"result": {"set": "setpoint", "threshold": 0.5}}, "of type number"),
        ({"fallback": {"value": 11}}, "more than 10"),
    ):
        with pytest.raises(InvalidInput, match=words):
            shop.make_model("a", **given)


def test_a_file_becomes_a_model_by_a_flag_or_beside_its_manifest(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "double.onnx").write_bytes(DOUBLE)
    (tmp_path / "model.yaml").write_text(
        "kind: model\nname: applied\nspec:\n  file: double.onnx\n  inputs: [temperature]\n  result: {set: setpoint}\n"
    )
    flags = ("--input", "temperature", "--result-set", "setpoint")
    made = weft(shop, "model", "create", "flagged", "--file", str(tmp_path / "double.onnx"), *flags)
    assert (made.returncode, "file  " in made.stderr + made.stdout) == (0, True), made.stderr
    assert weft(shop, "apply", "-f", str(tmp_path / "model.yaml")).returncode == 0
    found = shop.lab.stored(f"/model/{shop.project}/applied")
    assert found is not None and digest(DOUBLE).encode() in bytes(found.spec)
    (tmp_path / "double.onnx").write_bytes(b"no model")
    refused = weft(shop, "model", "set", "flagged", "--file", str(tmp_path / "double.onnx"))
    assert "not an ONNX model" in refused.stderr


def test_a_node_hands_messages_only_to_functions_of_its_project_whose_topics_say_so(shop: Shop) -> None:
    code = {"image": "registry.example.org/alarm:1"}
    topics = [f"weft/{shop.project}/+/event"]
    shop.make("function", "alarm", **code, topics=topics)
    shop.make("function", "quiet", **code)
    with pytest.raises(InvalidInput, match="of project plant"):
        shop.make("function", "spy", **code, topics=["weft/plant/+/event"])
    with pytest.raises(InvalidInput, match="not a topic"):
        shop.make("function", "spy", **code, topics=["#"])
    assert shop.report()["topics"] == {"alarm": topics}
    path = f"/v1/nodes/{shop.node.name}:invocations"
    given = post(shop.node, path, {"function": "alarm", "dropped": 12})
    claims = verify_ticket(shop.lab.settings.ticket_key, given["ticket"], shop.lab.clock.now())
    assert (claims["verb"], claims["workload"]["name"], claims["workload"]["project"]) == (
        "invoke",
        "alarm",
        shop.project,
    )
    for function in ("quiet", "no-such"):
        with pytest.raises(NotFound, match="no topic"):
            post(shop.node, path, {"function": function})
    with pytest.raises(Forbidden):
        post(shop.other, path, {"function": "alarm"})  # in the name of another node


def test_set_is_checked_against_the_model_and_names_the_property(shop: Shop) -> None:
    client = shop.lab.client
    changed = client.verb(
        "device", "fridge-1", "set", {"desired": {"setpoint": 4}, "expires_seconds": 30}, project=shop.project
    )
    assert changed["spec"]["desired"] == {"setpoint": 4}
    assert changed["actions"]["desired_until"]["setpoint"] > 0
    for desired, field in (({"setpoint": 11}, "setpoint"), ({"temperature": 1}, "temperature"), ({"nope": 1}, "nope")):
        with pytest.raises(InvalidInput) as caught:
            client.verb("device", "fridge-1", "set", {"desired": desired}, project=shop.project)
        assert field in (caught.value.field or "")


def weft(shop: Shop, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*WEFT, *words, "-p", shop.project, "--context", str(shop.lab.context_path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_people_set_values_for_a_time_and_list_what_devices_reported(shop: Shop) -> None:
    said = weft(shop, "device", "set", "fridge-1", "setpoint=4", "--expires", "30s")
    assert said.returncode == 0, said.stderr
    _, spec, _ = shop.stored("fridge-1")
    assert spec.desired == {"setpoint": 4}
    assert 0 < shop.times("fridge-1")["setpoint"] - shop.lab.clock.now() <= 30
    refused = weft(shop, "device", "set", "fridge-1", "setpoint=40")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: setpoint: 40 is more than 10")
    (item,) = json.loads(weft(shop, "device", "list", "-o", "json").stdout)["items"][:1]
    assert {"phase", "last_seen", "reported", "drift"} <= item["status"].keys()
    for words, said_of in (
        (("nosuch-",), "nosuch: "),
        (("setpoint=1", "setpoint=2"), "setpoint: "),
        (("setpoint=1", "--expires", "40d"), "--expires: must be at most 31d"),
        (("setpoint=" + "x" * 20_000,), "setpoint: a text of 20000 characters is too long"),
    ):
        refused = weft(shop, "device", "set", "fridge-1", *words)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {said_of}")
    assert (
        weft(shop, "device", "set", "fridge-1", "setpoint-").stdout == "device/fridge-1  no longer desired: setpoint\n"
    )
    assert shop.stored("fridge-1")[1].desired == {}
    for _ in range(20):  # events are gathered for a moment
        if "setpoint no longer desired" in (told := weft(shop, "events", "device/fridge-1").stdout):
            break
    assert "setpoint no longer desired" in told and "null" not in told
    found = {"protocol": "mqtt", "address": "acme/9", "name": "lamp"}
    shop.report(found=[found])
    waits = weft(shop, "device", "set", "lamp", "on=true")
    assert waits.returncode == 5
    assert "weft device approve lamp --model MODEL" in waits.stderr
    assert weft(shop, "device", "approve", "lamp", "--model", "fridge").returncode == 0
    assert shop.stored("lamp")[1].approved


def test_people_send_settings_to_all_devices_of_a_model(shop: Shop) -> None:
    words = ("devicerollout", "create", "colder", "--model", "fridge", "--detach")
    refused = weft(shop, *words, "--set", "setpoint=20")
    assert refused.returncode == 2
    assert "setpoint: 20 is more than 10" in refused.stderr
    said = weft(shop, *words, "--set", "setpoint=2.5", "--percent", "50")
    assert said.returncode == 0, said.stderr
    stored = shop.lab.stored(f"/devicerollout/{shop.project}/colder")
    assert stored is not None
    assert decode_part(stored.spec, DeviceRolloutSpec).set == {"setpoint": 2.5}
