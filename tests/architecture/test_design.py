"""What the design decided and only discipline would keep: who writes which part, and how many routes are made by hand."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from source import ROOT, SOURCE, files_of, nodes_of

from weft.api.openapi import describe_api
from weft.api.routes import ROUTES
from weft.kinds import orders
from weft.kinds.permissions import PERMISSIONS
from weft.kinds.registry import KINDS

# Which writer, as kinds name it, a folder or a file belongs to; the longest path counts.
WRITERS = {
    "api": "api",
    "controllers/accounting": "accounting",
    "controllers/alert": "alerts",
    "controllers/arrival": "arrivals",
    "controllers/device": "devices",
    "controllers/device/rollout": "device rollouts",
    "controllers/cluster": "clusters",
    "controllers/delegation": "delegations",
    "controllers/departure": "migrations",
    "controllers/failover": "witnesses",
    "controllers/recovery": "recovery plans",
    "controllers/replica": "replicas",
    "controllers/server": "servers",
    "controllers/replication": "replications",
    "controllers/conversion": "conversions",
    "controllers/copies": "copies",
    "controllers/function/egress_endpoints": "addresses",
    "controllers/image": "images",
    "controllers/deployment": "deployments",
    "controllers/job": "jobs",
    "controllers/loss": "loss",
    "controllers/migration": "migrations",
    "controllers/migration/ahead": "plans ahead",
    "controllers/topology": "topology",
    "controllers/network/addresses": "addresses",
    "controllers/network/controller": "networks",
    "controllers/network/security_groups": "securitygroups",
    "controllers/node/controller": "nodes",
    "controllers/node/drain_controller": "drain",
    "controllers/pool": "pools",
    "controllers/power/controller": "power",
    "controllers/profile": "profiles",
    "controllers/quota": "quotas",
    "controllers/rebalance": "rebalance",
    "controllers/rebalance/policy": "rebalance policies",
    "controllers/upgrade": "upgrades",
    "controllers/receiver": "receivers",
    "controllers/service": "services",
    "controllers/backup/boot": "backups",
    "controllers/backup/controller": "backups",
    "controllers/backup/policy": "backup policies",
    "controllers/backup/repository": "backup repositories",
    "controllers/snapshot": "snapshots",
    "controllers/snapshot/restore": "restores",
    "controllers/volume": "volumes",
    "controllers/workload": "workload",
    "gateway": "gateway",
    "informer/addresses": "addresses",
    "scheduler": "scheduler",
    "scheduler/constraint": "standing",
    "scheduler/recommendation": "recommend",
    "controllers/image/warm": "warm",
    "scheduler/report": "report",
}


def place_of(path: Path) -> str:
    """``room/subject/role`` of a file."""
    return "/".join(path.relative_to(SOURCE).with_suffix("").parts)


def find_writer(place: str) -> str:
    known = [known for known in WRITERS if f"{place}/".startswith(f"{known}/")]
    assert known, f"{place} writes an object: add it to WRITERS in this file, with the name of its controller"
    return WRITERS[max(known, key=len)]


def find_writes(part: str) -> Iterator[str]:
    """The place of every assignment to an object's ``part``, of every draft's change of it, and of what is made with one."""
    for path in files_of(
        "api", "controllers", "scheduler", "agent", "gateway", "client", "informer", "protocol", "cli"
    ):
        for call in nodes_of(path, ast.Call):
            changes = isinstance(call.func, ast.Attribute) and ast.unparse(call.func) == "draft.change"
            makes = part in ("actions", "marks") and isinstance(call.func, ast.Attribute) and call.func.attr == "make"
            if (changes or makes) and any(keyword.arg == part for keyword in call.keywords):
                yield place_of(path)
        if place_of(path) == "informer/commit":
            continue  # where a draft is
        for node in nodes_of(path, ast.Assign):
            parts = [t for t in node.targets if isinstance(t, ast.Attribute) and t.attr == part]
            if any(ast.unparse(target) != f"self.{part}" for target in parts):
                yield place_of(path)


def find_conditions() -> Iterator[tuple[str, str]]:
    """(controller, type) of every condition that is made."""
    for path in files_of("controllers", "scheduler", "api", "informer"):
        for node in nodes_of(path, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "Condition":
                assert isinstance(node.args[0], ast.Constant), f"{path.name}: a condition's type is written out"
                yield find_writer(place_of(path)), str(node.args[0].value)


def test_routes_written_by_hand_are_few_and_counted() -> None:
    by_hand = {route.path for route in ROUTES}
    unknown = {route.permission for route in ROUTES if "KIND:" not in route.permission} - {"–", *PERMISSIONS}
    assert not unknown, "no role would have it: add its row to weft.kinds.permissions.PERMISSIONS"
    assert by_hand == {
        "/v1/apply", "/v1/audit", "/v1/audit:verify",
        "/v1/blobs/{sha256}", "/v1/events", "/v1/gateway", "/v1/healthz", "/v1/join", "/v1/kinds", "/v1/openapi.json",
        "/v1/login", "/v1/projects/{project}/code/{sha256}", "/v1/projects/{project}/onnx/{sha256}", "/v1/packages/{sha256}",
        "/v1/rotations", "/v1/servers:seal-keys",
        "/v1/usage", "/v1/whoami", "/v1/nodes/{name}:renew",
        "/v1/nodes/{name}:certificate", "/v1/nodes/{name}:devices", "/v1/nodes/{name}:invocations",
        "/v1/nodes/{name}:report", "/v1/nodes/{name}:secrets", "/v1/nodes/{name}:egress", "/v1/nodes/{name}:traces",
        "/v1/nodes/{name}/images/{uid}/{sha256}",
        "/v1/projects/{project}/networktrace", "/v1/topology", "/v1/traces", "/v1/traces/{trace}", "/v1/server/logs/{process}",
        "/v1/backuprepositories/{name}:key",
        "/v1/clusters/{name}:link",
        "/v1/link", "/v1/servers:join",
        "/v1/users/{name}:passwd",
        "/v1/accounting", "/v1/projects/{project}/accounting",
        "/", "/assets/{name}", "/v1/session",
        "/v1/dashboard/table", "/v1/dashboard/search", "/v1/dashboard/summary", "/v1/dashboard/stream",
        "/v1/history/moments", "/v1/history/samples",
        "/metrics", "/api/v1/query", "/api/v1/query_range", "/api/v1/series", "/api/v1/labels", "/api/v1/label/{name}/values",
    }  # fmt: skip
    plurals = "|".join(kind.plural for kind in KINDS)
    derived = re.compile(rf"/v1/(projects/\{{project\}}/)?({plurals})(/\{{name\}})?(:[a-z-]+)?")
    told = {
        path for path in describe_api()["paths"] if not derived.fullmatch(path) and not path.startswith("/v1/nodes/")
    }
    assert told == {
        path
        for path in by_hand
        if not path.startswith(("/v1/nodes/", "/v1/users/", "/v1/backuprepositories/", "/v1/clusters/", "/v1/servers:"))
    }


def test_an_agent_has_a_worker_for_each_kind_of_order() -> None:
    """Orders of another kind would reach their nodes, and nobody would do them."""
    (table,) = (
        call
        for call in nodes_of(SOURCE / "launch/agent/parts.py", ast.Call)
        if isinstance(call.func, ast.Name) and call.func.id == "OrderTable"
    )
    assert isinstance(table.args[0], ast.Dict)
    given = {ast.unparse(key) for key in table.args[0].keys if key is not None}
    assert given == {f"{name}.name" for name, one in vars(orders).items() if isinstance(one, orders.OrderKind)}


def test_only_the_api_servers_write_reports_and_only_what_a_node_said() -> None:
    assert set(find_writes("report")) == {"api/node/devices", "api/node/report"}


def test_only_admission_and_the_owners_of_fabric_made_objects_write_spec() -> None:
    # Those of workloads, snapshots, restores, migrations (roles and moves) and security groups (the rules) and the scheduler write
    # the specs of allocations, which are theirs; plans ahead why the Migrations that they made are not needed, jobs those of their
    # tasks and runs, deployments those of their instances, and whose the endpoints and published ports
    # of those are;
    # conversions those of both workloads, for the people who asked for it, and whose their endpoints and published
    # ports are; services
    # those of their endpoints; recovery plans, and the witness's grants, those of the replicas that they promote; replications
    # and replicas, arrivals and departures those of VMs that another cluster runs: that they are stopped, and marked, or
    # taken back; what arms a replica those of its replication, VM and allocations, which nodes guard; device rollouts set
    # devices' values; devices take away desired values whose time is over, and approve what a model accepts; a
    # rotation seals values again.
    assert set(find_writes("spec")) == {
        "api/admission/admit",
        "api/rotation/reseal",
        "controllers/arrival/controller",
        "controllers/conversion/controller",
        "controllers/departure/controller",
        "controllers/departure/reclaim",
        "controllers/deployment/handover",
        "controllers/deployment/writes",
        "controllers/device/controller",
        "controllers/device/rollout",
        "controllers/failover/arming",
        "controllers/job/controller",
        "controllers/loss/controller",
        "controllers/migration/ahead",
        "controllers/migration/controller",
        "controllers/network/security_groups",
        "controllers/replica/controller",
        "controllers/replication/controller",
        "controllers/service/controller",
        "controllers/snapshot/controller",
        "controllers/snapshot/restore",
        "controllers/workload/controller",
        "controllers/workload/departed",
        "controllers/workload/handover",
        "controllers/workload/ports",
        "controllers/workload/stale_allocation",
        "scheduler/allocation/bind",
        "scheduler/allocation/lease",
        "scheduler/allocation/preempt",
        "scheduler/allocation/resize",
        "scheduler/allocation/resume",
        "scheduler/migration/plan",
        "scheduler/reservation/extend",
    }


def test_each_status_has_one_writer_and_the_kind_names_it() -> None:
    writers = {find_writer(place) for place in find_writes("status")}
    assert writers == {kind.access.status_writer for kind in KINDS if kind.access.status_writer}


def test_each_condition_has_one_writer_and_the_kind_names_it() -> None:
    declared = {(controller, type_) for kind in KINDS for type_, controller in kind.access.condition_writers.items()}
    assert set(find_conditions()) == declared


def test_each_mark_and_action_that_a_controller_writes_names_it() -> None:
    places = [*find_writes("marks"), *find_writes("actions")]
    writers = {find_writer(place) for place in places}
    named = {writer for kind in KINDS for all_ in kind.access.mark_writers.values() for writer in all_}
    assert writers == {writer for writer in named if not writer.startswith(":")}


TOY = """
import sys, types
from typing import Annotated

import msgspec

import weft.kinds
from weft.kinds.fields.cells import NAME, text
from weft.kinds.record import Access, Column, Display, Kind, Verb
from weft.objects.schema import field


class ToySpec(msgspec.Struct, kw_only=True):
    colour: Annotated[str, field("Its colour", change="live")]
    wound: Annotated[bool, field("Whether it is wound up", change="live")] = False


class ToyStatus(msgspec.Struct, kw_only=True):
    pass


TOY = Kind(
    name="toy", plural="toys", title="toy", summary="Something to play with", spec=ToySpec, status=ToyStatus,
    access=Access(readers="project"),
    verbs=(Verb("wind", "Wind it up", change=lambda obj, _: {**obj["spec"], "wound": True}, needs="operate"),),
    display=Display(columns=(NAME, Column("COLOUR", text("spec.colour")))),
)

# The registry as it would stand with the toy's line in it.
source = open("src/weft/kinds/registry.py").read()
changed = source.replace("    PUBLISHED_PORT,\\n", "    PUBLISHED_PORT,\\n    TOY,\\n")
assert changed != source
registry = sys.modules["weft.kinds.registry"] = weft.kinds.registry = types.ModuleType("weft.kinds.registry")
registry.TOY = TOY
exec(changed, registry.__dict__)
"""

PLAY = """
import contextlib, io, os, pathlib, tempfile

from weft.cli.app import run
from weft.contracts.clock import SystemClock
from tests.scenario.api_lab import ApiLab


def weft(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run(words, SystemClock)
    assert code == 0, (words, code)
    return out.getvalue()


with tempfile.TemporaryDirectory() as folder:
    lab = ApiLab(pathlib.Path(folder))
    os.environ["WEFT_CONTEXT"] = str(lab.context_path)
    try:
        weft("toy", "create", "top", "--colour", "red")
        weft("toy", "wind", "top")
        assert [line.split() for line in weft("toys", "list").splitlines()] == [["NAME", "COLOUR"], ["top", "red"]]
        assert lab.client.get("toy", "top")["spec"] == {"colour": "red", "wound": True}
        assert "Its colour" in weft("schema", "toy.spec")
        paths = lab.client.http.request("GET", "/v1/openapi.json").json()["paths"]
        assert "/v1/projects/{project}/toys/{name}:wind" in paths
        weft("delete", "toy/top", "--yes")
        assert not lab.client.list("toy").items
    finally:
        lab.close()
"""


def test_a_kind_is_a_file_and_a_line_and_all_interfaces_know_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOY + PLAY], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
