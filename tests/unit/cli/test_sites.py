"""Sites, as a view of nodes by their label."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weft.cli.manifest.check import read_manifests
from weft.cli.manifest.files import read_documents
from weft.cli.output.form import read_form
from weft.cli.session import Session
from weft.cli.verbs import site
from weft.cli.verbs.delegation import make_delegation
from weft.cli.verbs.site import list_sites, sum_up_cluster
from weft.contracts.clock import SystemClock
from weft.objects.errors import InvalidInput, NotFound


def node(name: str, phase: str, **labels: str) -> dict[str, Any]:
    return {
        "name": name,
        "labels": labels,
        "spec": {"autonomy_seconds": 3600.0 if labels else 0.0},
        "status": {"phase": phase, "allocations": 2},
        "report": {"cpu": 4.0, "memory": 2**30, "address": "10.0.0.4"},
    }


def test_nodes_are_gathered_by_their_site_and_summed() -> None:
    central, hamburg = list_sites(
        [node("h2", "Autonomous", site="hamburg"), node("n1", "Ready"), node("h1", "NotReady", site="hamburg")]
    )
    assert (central["name"], [one["name"] for one in central["nodes"]], central["ready"]) == ("default", ["n1"], 1)
    assert (hamburg["name"], [one["name"] for one in hamburg["nodes"]]) == ("hamburg", ["h1", "h2"])
    assert (hamburg["ready"], hamburg["autonomous"], hamburg["not_ready"]) == (0, 1, 1)
    assert (hamburg["workloads"], hamburg["cpu"], hamburg["memory"]) == (4, 8.0, 2**31)
    assert hamburg["nodes"][1]["autonomy_seconds"] == 3600.0 and list_sites([]) == []


def test_a_linked_cluster_is_a_site_with_what_is_delegated_to_it() -> None:
    cluster = {"name": "west", "spec": {"url": "https://192.0.2.7"}, "status": {"phase": "Linked"}}
    delegations = [{"name": name, "phase": phase} for name, phase in (("a", "Running"), ("b", "Unknown"), ("c", ""))]
    made = sum_up_cluster(cluster, delegations)
    assert (made["name"], made["server"], made["phase"]) == ("west", "https://192.0.2.7", "Linked")
    assert (made["workloads"], made["running"], made["unknown"]) == (3, 1, 1)


@pytest.mark.parametrize("part", ["uid: a-uid", "generation: 3"])
def test_a_file_of_an_object_here_is_not_delegated_as_if_it_were_another(tmp_path: Path, part: str) -> None:
    text = f"kind: vm\nname: till\nproject: lab\n{part}\nspec: {{image: tiny, memory: 128M}}\n"
    file = tmp_path / "till.yaml"
    file.write_text(text)
    [manifest] = read_manifests(read_documents([str(file)]))
    with pytest.raises(InvalidInput) as refused:
        make_delegation(manifest, "west")
    name = part.partition(":")[0]
    assert refused.value.field == name and refused.value.hint == f"delete the line {name}"
    assert "till.yaml" in str(refused.value.details)
    file.write_text(text.replace(part, "labels: {app: shop}"))
    [plain] = read_manifests(read_documents([str(file)]))
    data = make_delegation(plain, "west", adopt=True).data
    assert (data["name"], data["project"], data["labels"]) == ("till", "lab", {"app": "shop"})
    assert (data["spec"]["workload"], data["spec"]["adopt"], data["spec"]["template"]["memory"]) == ("vm", True, "128M")


class Client:
    """One node at site west, and the linked cluster west."""

    def list(self, kind: str, **_: Any) -> Any:
        cluster = {"name": "west", "spec": {"url": "https://192.0.2.7"}, "status": {"phase": "Linked"}}
        delegation = {"name": "till", "spec": {"cluster": "west", "workload": "vm"}, "status": {"phase": "Running"}}
        items = {"node": [node("h1", "Ready", site="west")], "cluster": [cluster], "delegation": [delegation]}
        return SimpleNamespace(items=items[kind])


def test_a_site_with_the_name_of_a_linked_cluster_hides_neither(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(act: str, *words: str, form: str = "table") -> str:
        session: Any = Session(SystemClock, {})
        session.given_form = read_form(form)
        monkeypatch.setattr(Session, "client", Client())
        site._run(session, None, act, words)
        return capsys.readouterr().out

    described = show("describe", "west")
    assert "h1" in described and "vm/till" in described
    assert show("list", form="name") == "west\n"
    assert {"nodes", "delegations"} <= {
        part for one in json.loads(show("describe", "west", form="json"))["items"] for part in one
    }
    with pytest.raises(NotFound) as unknown:
        show("describe", "wst")
    assert unknown.value.hint == "did you mean west?"
