"""How a backed-up project comes back: what others refer to first, data from the backups of then; what is there stays."""

from __future__ import annotations

from typing import Any

import pytest

from weft.cli.backup import project_restore
from weft.cli.backup.adoption import name_new, plan_import
from weft.cli.backup.objects import Step, bring_topics, choose_data, plan_restore
from weft.cli.backup.project import name_images
from weft.cli.backup.project_restore import list_data_waits
from weft.cli.command.exit_codes import INTERRUPTED
from weft.kinds.backup import SET
from weft.kinds.parts.snapshot.backed_up import BackedUpObject, BackedUpProject
from weft.objects.errors import AlreadyExists

NETWORK: dict[str, Any] = {"cidr": "10.7.0.0/24"}


def one(kind: str, name: str, has_data: bool = False, **spec: Any) -> BackedUpObject:
    return BackedUpObject(kind=kind, name=name, spec=spec, has_data=has_data)


SHOP = BackedUpProject(
    project="shop",
    taken_at=9.0,
    objects=[
        one("vm", "web", True, image="tiny", networks=["blue"], volumes=["orders"], lease={"mode": "immediate"}),
        one("vm", "new", image="tiny", networks=["blue"]),
        one("vm", "lost", True, image="tiny"),
        one("container", "db", image="busybox", mounts=["data:/data"]),
        one("volume", "orders", True, size=1 << 26),
        one("volume", "data", True, size=1 << 26),
        one("volume", "empty", size=1 << 26),
        one("network", "blue", **NETWORK),
        one("secret", "login"),
        one("backuppolicy", "nightly", of=["vm/web", "volume/data"], to="safe"),
        one("image", "own", url="file:///srv/own.tar"),
    ],
)


def backup(of: str, *disks: str, whole: str = "all", at: float = 9.0, state: str = "read") -> dict[str, Any]:
    status = {"phase": "Ready", "state": state, "taken_at": at, "disks": {disk: {"size": 1} for disk in disks}}
    labels = {SET: whole} if whole else {}
    return {
        "name": f"{of.partition('/')[2]}-{at:g}", "labels": labels, "spec": {"of": of, "to": "safe"}, "status": status
    }  # fmt: skip


BACKUPS = [
    backup("vm/web", "root", "orders"),
    backup("vm/web", "root", "orders", whole="", at=9.5),
    backup("container/db", "data"),
    backup("vm/lost", "root", state="damaged"),
]


def plan(existing: dict[tuple[str, str], Any] | None = None, prefix: str = "", keep: bool = False) -> dict[str, Step]:
    data = choose_data(BACKUPS, backup("project/shop"))
    steps = plan_restore(SHOP, data, existing or {}, prefix=prefix, keep=keep)
    return {f"{step.kind}/{step.old}:{step.how}": step for step in steps}


def test_what_is_referred_to_comes_first_and_data_from_the_backups_of_the_same_whole() -> None:
    steps = plan()
    order = list(steps)
    web = steps["vm/web:restore"]
    assert (
        order.index("network/blue:create") < order.index("vm/web:restore") < order.index("backuppolicy/nightly:create")
    )
    assert web.backup is not None and web.backup["name"] == "web-9"
    assert web.manifest["volumes"] == {"orders": "orders"} and web.manifest["spec"]["networks"] == ["blue"]
    assert not {"volumes", "lease"} & web.manifest["spec"].keys() and web.note == "without lease"
    assert order.index("volume/db:restore") < order.index("container/db:create")
    assert {"volume/orders:comes", "volume/data:comes", "volume/empty:create", "vm/new:create"} <= set(order)
    assert steps["vm/lost:leave"].note == "no good backup has its data"
    assert steps["image/own:leave"].note == "its content is in no backup: weft image add own FILE"


def test_a_rule_comes_after_its_receivers() -> None:
    rule = one("alertrule", "full", expr="up == 0", receivers=["hook"])
    held = BackedUpProject(project="shop", taken_at=9.0, objects=[rule, one("receiver", "hook", type="webhook")])
    steps = plan_restore(held, {}, {}, prefix="", keep=False)
    assert [(step.kind, step.how) for step in steps] == [("receiver", "create"), ("alertrule", "create")]


def test_what_is_there_is_refused_by_name_kept_or_gets_another_name() -> None:
    existing = {("vm", "web"): {}, ("network", "blue"): NETWORK, ("secret", "login"): {}}
    with pytest.raises(AlreadyExists, match=r"there already: secret/login, vm/web$") as refused:
        plan(existing)
    assert all(flag in str(refused.value.hint) for flag in ("--keep-existing", "--new-name PREFIX", "--into PROJECT"))
    kept = plan(existing, keep=True)
    assert kept["vm/web:keep"].note == "it is there, and stays as it is"
    assert kept["network/blue:keep"].note == "it is there, and the same"
    assert "volume/orders:leave" in kept  # its data came with the VM

    renamed = plan(existing, prefix="old")
    assert renamed["vm/web:restore"].what == "vm/old-web" and renamed["secret/login:keep"].name == "login"
    assert renamed["vm/web:restore"].manifest["volumes"] == {"orders": "old-orders"}
    assert renamed["container/db:create"].manifest["spec"]["mounts"] == ["old-data:/data"]
    assert renamed["backuppolicy/nightly:create"].manifest["spec"]["of"] == ["vm/old-web", "volume/old-data"]
    assert renamed["vm/new:create"].manifest["spec"]["networks"] == ["blue"]


def test_a_backup_names_the_images_that_nobody_could_fetch_or_build_again() -> None:
    urls = {"base": "file:///srv/base.qcow2", "debian-12": "file:///var/own", "web": "https://example.com/web.qcow2"}
    images = [{"name": name, "spec": {"url": url}} for name, url in urls.items()]
    assert name_images(images) == [
        "image/base: no backup has the content of images; keep a copy of file:///srv/base.qcow2"
    ]


def test_who_interrupts_a_restore_is_told_what_stays_and_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told, steps = (
        list[str](),
        [Step("keep", "network", "blue", "blue", "it is there"), Step("create", "vm", "new", "new")],
    )

    def do(session: object, step: Step, *_: object) -> None:
        if step.how == "create":
            raise KeyboardInterrupt

    monkeypatch.setattr(project_restore, "_do", do)
    session: Any = type("Session", (), {"notify": staticmethod(told.append)})()
    code = project_restore._carry_out(session, steps, SHOP, backup("project/shop"), "shop")
    assert (code, told[0]) == (INTERRUPTED, "network/blue  kept: it is there")
    assert told[1:] == [
        "interrupted at vm/new: what was created before stays; the same command with --keep-existing goes on"
    ]


def test_a_restore_waits_for_the_data_of_what_is_stopped() -> None:
    made = {
        "kind": "vm",
        "name": "web",
        "project": "trial",
        "spec": {"origin": {"snapshot": "web-1-back"}, "run": "stop"},
    }
    [wait] = list_data_waits(made)
    assert (wait.target.what, wait.project) == ("snapshot/web-1-back", "trial")
    assert not wait.goal.reached({"status": {"phase": "Taking"}}) and wait.goal.reached({"status": {"phase": "Ready"}})
    running = {**made, "spec": {**made["spec"], "run": "run"}}  # it waits for its data itself
    assert list_data_waits(running) == [] == list_data_waits({**made, "spec": {"run": "stop"}})


def test_topics_that_invoke_a_function_are_those_of_the_project_into_which_it_comes() -> None:
    manifest = {"kind": "function", "name": "alarm", "spec": {"topics": ["weft/shop/+/event"], "memory": 1}}
    assert bring_topics(manifest, "shop", "test")["spec"] == {"topics": ["weft/test/+/event"], "memory": 1}
    assert bring_topics(manifest, "shop", "shop") == manifest
    assert bring_topics({"kind": "vm", "spec": {}}, "shop", "test") == {"kind": "vm", "spec": {}}


def test_an_import_tries_again_what_failed_and_leaves_what_is_here() -> None:
    entries = [{"uid": uid, "name": "k", "project": "a"} for uid in ("u1", "u2", "u3")]

    def known(uid: str, project: str, phase: str, **spec: Any) -> dict[str, Any]:
        return {"uid": uid, "name": uid, "project": project, "spec": spec, "status": {"phase": phase}}

    own = [
        known("u1", "a", "Failed"),  # made here: its backup is what it is
        known("x", "a", "Failed", adopts="u2"),
        known("y", "b", "Failed", adopts="u2"),
        known("z", "a", "Ready", adopts="u3"),
    ]
    assert plan_import(entries, own, "") == ([entries[1]], [own[1]])
    assert plan_import(entries, own, "b") == (entries, [own[2]])
    assert plan_import(entries, [*own, known("w", "a", "Ready", adopts="u2")], "") == ([], [])


def test_a_backup_that_is_taken_in_has_its_name_or_one_that_is_free() -> None:
    entry = {"uid": "a50ef9a9" * 4, "name": "k2"}
    taken = set[tuple[str, str]]()
    for name in ("k2", "k2-a50ef9a9", "k2-a50ef9a9-2", "k2-a50ef9a9-3"):
        assert name_new(entry, "p", taken) == name and name_new(entry, "other", taken) == "k2"
        taken.add(("p", name))
    long = {**entry, "name": "k" * 63}
    assert len(name_new(long, "p", {("p", "k" * 63)})) == 63
