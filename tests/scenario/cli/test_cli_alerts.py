"""`weft alert` at a real API: what fires, in the rights of who asks; silences; and a server on which nothing is evaluated."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab

from weft.cli.app import run
from weft.client.context import Context, write_context
from weft.contracts.clock import SystemClock
from weft.contracts.store import Put
from weft.kinds.alert_rule import ALERT_RULE, AlertRuleStatus
from weft.kinds.fields.alert.defaults import list_default_rules
from weft.kinds.fields.alert.notification import Alert
from weft.objects.envelope import Condition, decode_envelope, encode_envelope
from weft.objects.errors import Forbidden, InvalidInput, NotFound, WeftError
from weft.objects.identity import object_key

NOW = 1_795_000_000.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    made = ApiLab(tmp_path_factory.mktemp("api"))
    for project in ("red", "blue"):
        made.client.create({"kind": "project", "name": project, "spec": {}})
        spec = {"expr": "weft_x > 0", "summary": "{{ $labels.vm }} is full", "severity": "critical"}
        made.client.create({"kind": "alertrule", "name": "full", "project": project, "spec": spec})
        fire(made, project, "full", f"{project}-vm")
    yield made
    made.close()


def fire(lab: ApiLab, project: str, rule: str, vm: str) -> None:
    key = object_key("alertrule", project, rule)

    async def write() -> None:
        entry = await lab.store.get(key)
        assert entry is not None
        envelope = decode_envelope(entry.value)
        alert = Alert(labels={"vm": vm}, value=0.5, since=NOW, state="firing")
        status = AlertRuleStatus(state="firing", since=NOW, firing=3, alerts=[alert], more=2)
        envelope.status = msgspec.Raw(msgspec.json.encode(status))
        envelope.conditions = [Condition("Evaluated", "False", "metricsOff", "no history is kept", NOW, 1)]
        await lab.store.commit([Put(key, encode_envelope(envelope))])

    lab.run(write())


def weft(lab: ApiLab, *argv: str, context: Path | None = None) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["--context", str(context or lab.context_path), *argv], SystemClock)
    return code, out.getvalue(), err.getvalue()


def test_alerts_of_all_projects_are_listed_with_rule_state_since_labels_and_value(lab: ApiLab) -> None:
    code, out, err = weft(lab, "alert", "list", "-o", "json")
    assert code == 0, err
    items = json.loads(out)["items"]
    assert [one["project"] for one in items] == ["blue", "red"]
    assert items[1] == {
        "rule": "full",
        "project": "red",
        "state": "firing",
        "since": "2026-11-18T11:06:40.000Z",
        "severity": "critical",
        "labels": {"vm": "red-vm"},
        "value": 0.5,
        "summary": "red-vm is full",
        "silenced": "",
    }
    assert "2 rules are not evaluated: no history is kept" in err
    assert "full: 2 more alerts, 3 firing in all" in err
    assert [line.split()[0] for line in weft(lab, "alert", "list", "-p", "red")[1].splitlines()] == ["RULE", "full"]
    everywhere = [line.split()[:2] for line in weft(lab, "alert", "list")[1].splitlines()]
    assert everywhere == [["PROJECT", "RULE"], ["blue", "full"], ["red", "full"]]
    assert "no alerts" in weft(lab, "alert", "list", "--state", "pending")[2]


def test_a_rule_names_receivers_that_are_there(lab: ApiLab) -> None:
    spec = {"expr": "weft_x > 0", "receivers": ["nope"]}
    with pytest.raises(NotFound, match="nope") as refused:
        lab.client.create({"kind": "alertrule", "name": "typo", "project": "red", "spec": spec})
    assert refused.value.field == "spec.receivers"
    assert weft(lab, "network", "matrix", "--network", "nope", "-p", "red")[0] == 3


def test_who_is_limited_to_a_project_sees_its_alerts_only_and_silences_no_others(lab: ApiLab, tmp_path: Path) -> None:
    client = lab.with_token(use="access", role="editor", project="red")
    context = tmp_path / "red.json"
    write_context(
        context, Context(server=lab.context.server, ca=lab.context.ca, token=client.context.token, project="red")
    )
    code, out, err = weft(lab, "alert", "list", "-o", "json", context=context)
    assert code == 0, err
    assert {one["project"] for one in json.loads(out)["items"]} == {"red"}
    assert weft(lab, "alert", "list", "-p", "blue", context=context)[0] != 0
    assert weft(lab, "alert", "silence", "full", "--for", "1h", "-p", "blue", context=context)[0] != 0
    with pytest.raises(Forbidden):
        client.list("silence", project="blue")
    with pytest.raises(Forbidden):  # it would see all projects' series
        spec = {"expr": "weft_x > 0", "fabric": True}
        client.create({"kind": "alertrule", "name": "all", "project": "red", "spec": spec})


def test_a_rule_is_silenced_in_its_own_project_listed_and_heard_again(lab: ApiLab) -> None:
    code, out, err = weft(
        lab, "alert", "silence", "node-silent", "--label", "node=n2", "--for", "2h", "--comment", "new disk"
    )
    assert code == 0, err
    (silence,) = lab.client.list("silence", project="fabric").items
    assert (silence["spec"]["rule"], silence["spec"]["labels"]) == ("node-silent", {"node": "n2"})
    assert "nobody is notified of node-silent node=n2 until" in out + err
    assert "new disk" in weft(lab, "alert", "silences")[1]
    assert weft(lab, "alert", "unsilence", f"silence/{silence['name']}")[0] == 0  # as it was printed
    assert lab.client.list("silence", project="fabric").items == []


def test_a_silenced_alert_is_listed_with_its_silence(lab: ApiLab) -> None:
    assert weft(lab, "alert", "silence", "full", "--for", "1h", "-p", "red")[0] == 0
    items = json.loads(weft(lab, "alert", "list", "-o", "json")[1])["items"]
    assert [bool(one["silenced"]) for one in items] == [False, True]
    assert weft(lab, "alert", "unsilence", "full", "-p", "red")[0] == 0


@pytest.mark.parametrize(
    "argv",
    [
        ("silence", "full"),  # no end
        ("silence", "--for", "1h"),
        ("silence", "full", "--for", "1h"),  # in which project?
        ("silence", "nothing", "--for", "1h"),
        ("silence", "full", "--for", "9999d", "-p", "red"),
        ("silence", "full", "--label", "vm", "--for", "1h", "-p", "red"),
        ("unsilence", "nothing"),
        ("list", "full"),
        ("list", "--rule", "nothing"),
        ("list", "--for", "1h"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(lab: ApiLab, argv: tuple[str, ...]) -> None:
    before = lab.client.list("silence", all_projects=True).items
    code, _, err = weft(lab, "alert", *argv)
    assert code != 0
    assert err
    assert lab.client.list("silence", all_projects=True).items == before


def test_a_rule_is_made_changed_and_deleted_by_flags_and_bombs_are_refused(lab: ApiLab) -> None:
    made = weft(lab, "alertrule", "create", "busy", "--expr", "weft_guest_cpu_cores > 3", "--for", "5m", "-p", "red")
    assert made[0] == 0, made[2]
    assert weft(lab, "alertrule", "set", "busy", "--severity", "info", "--labels", "team=a", "-p", "red")[0] == 0
    spec = lab.client.get("alertrule", "busy", project="red")["spec"]
    assert (spec["for"], spec["severity"], spec["labels"]) == (300.0, "info", {"team": "a"})
    assert "busy" in weft(lab, "alertrule", "list", "-p", "red")[1]
    assert weft(lab, "describe", "alertrule/busy", "-p", "red")[0] == 0
    for expr in ('count_values("v", weft_x)', "weft_x)) or ((other", "x" * 5000):
        code, _, err = weft(lab, "alertrule", "set", "busy", "--expr", expr, "-p", "red")
        assert code != 0
        assert "--expr" in err
    assert weft(lab, "delete", "alertrule/busy", "-p", "red", "--yes")[0] == 0


def test_a_new_fabric_has_its_rules_which_people_may_delete_for_good(lab: ApiLab) -> None:
    rules = {one["name"]: one["spec"] for one in lab.client.list("alertrule", project="fabric").items}
    assert rules.keys() == list_default_rules().keys()
    assert all(rule["fabric"] and rule["summary"] for rule in rules.values())
    lab.client.delete("alertrule", "clock-off", project="fabric")
    lab.restart()
    names = {one["name"] for one in lab.client.list("alertrule", project="fabric").items}
    assert "clock-off" not in names


def test_a_default_rule_says_what_the_reference_says(lab: ApiLab) -> None:
    page = (Path(__file__).parents[3] / "docs/reference/alerts.md").read_text()
    metrics = (Path(__file__).parents[3] / "docs/reference/metrics.md").read_text()
    for name, spec in list_default_rules().items():
        assert f"| `{name}` | `{spec['expr']}` |" in page
        for word in re.findall(r"\w+", spec["expr"]):
            assert not word.startswith("weft_") or word in metrics or word.startswith("weft_pool"), word


def test_times_of_a_rule_are_refused_beyond_their_bounds(lab: ApiLab) -> None:
    for spec in ({"expr": "weft_x", "for": -1}, {"expr": "weft_x", "for": "30d"}):
        with pytest.raises((InvalidInput, WeftError)):
            lab.client.create({"kind": ALERT_RULE.name, "name": "never", "project": "red", "spec": spec})


def test_the_help_of_silence_is_about_silence(lab: ApiLab) -> None:
    code, out, _ = weft(lab, "alert", "silence", "--help")
    assert code == 0 and "silence [OPTIONS] [RULE]" in out and "--for" in out
    assert "--state" not in out and "unsilence" not in out
    _, every, _ = weft(lab, "alert", "--help")
    assert "[list|silence|silences|unsilence]" in every and "--state" in every and "--for" in every
