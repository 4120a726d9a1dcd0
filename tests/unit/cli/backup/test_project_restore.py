"""How a backed-up project comes back: what others refer to first, data from the backups of then; what is there stays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from weft.cli.backup import project_restore
from weft.cli.backup.adoption import name_new, plan_import
from weft.cli.backup.interruption import Made
from weft.cli.backup.objects import ObjectRestore, bring_topics, choose_data, plan_restore
from weft.cli.backup.project import name_images
from weft.cli.backup.project_restore import list_data_waits
from weft.cli.command.exit_codes import INTERRUPTED
from weft.cli.wait import finish
from weft.cli.wait.watch import Result
from weft.kinds.backup import SET
from weft.kinds.parts.snapshot.backed_up import BackedUpObject, BackedUpProject
from weft.objects.errors import AlreadyExists, NotFound

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


def plan(
    existing: dict[tuple[str, str], Any] | None = None, prefix: str = "", keep: bool = False
) -> dict[str, ObjectRestore]:
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


OF_WEB: dict[str, Any] = {**backup("vm/web", "root"), "uid": "u1"}


class Fabric:
    """A session with a server that has the backups of ``shop``. Ctrl-C comes at the call that is to create ``interrupted``, which
    the server carries out or, unless ``late``, doesn't."""

    def __init__(self, interrupted: str = "", *, late: bool = False) -> None:
        self.told: list[str] = []
        self.made: list[str] = []
        self.interrupted, self.late = interrupted, late
        self.typed = ["backup", "restore", "all", "--into", "trial"]
        self.client = self
        self.project, self.in_project, self.detach, self.is_data, self.color = "shop", "", False, False, False
        self.output, self.debug, self.wait_seconds = "table", False, 1.0
        self.clock = SimpleNamespace(elapsed=lambda: 0.0)
        self.adopting: list[dict[str, Any]] = []  # in the project that is restored into

    def notify(self, line: str) -> None:
        self.told.append(line)

    def list(self, kind: str, *, project: str | None = None) -> Any:
        backups = self.adopting if project == "trial" else [OF_WEB]
        found = {"project": [{"name": "shop"}], "backup": backups}
        return SimpleNamespace(items=found.get(kind, []))

    def get(self, kind: str, name: str, *, project: str | None = None) -> dict[str, Any]:
        if f"{kind}/{name}" not in self.made:
            raise NotFound(f"no {kind}/{name}")
        return {}

    def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        what = f"{manifest['kind']}/{manifest['name']}"
        if what != self.interrupted or self.late:
            self.made.append(what)
        if what == self.interrupted:
            raise KeyboardInterrupt
        return {**manifest, "uid": what, "status": {}}

    def verb(self, kind: str, name: str, verb: str, given: dict[str, Any], *, project: str) -> dict[str, Any]:
        return self.create({**given, "kind": "vm", "name": given["new_name"], "project": project})


def restore_into_trial(fabric: Any, monkeypatch: pytest.MonkeyPatch, at_wait: int) -> int:
    """``at_wait``: Ctrl-C comes in this wait, of the adopted backups or of all that was created."""
    waits = []

    def follow(_: Any, waited: Any, __: Any) -> list[Result]:
        waits.append(sorted(one.target.what for one in waited))
        if len(waits) == at_wait:
            raise KeyboardInterrupt
        return [Result(one, {"kind": one.target.kind.name, "status": {"phase": "Ready"}}) for one in waited]

    objects = [one("network", "blue", **NETWORK), one("vm", "web", True, image="tiny", networks=["blue"])]
    held = msgspec.json.encode(BackedUpProject(project="shop", taken_at=9.0, objects=objects))
    monkeypatch.setattr(project_restore, "read_stream", lambda *_: held)
    monkeypatch.setattr(finish, "follow", follow)
    code = project_restore.restore_project(
        fabric,
        {**backup("project/shop"), "project": "shop"},
        into="trial",
        prefix="",
        pool="",
        keep=False,
        dry_run=False,
    )
    fabric.waits = waits
    return code


GO_ON = "go on: weft backup restore all --into trial --keep-existing"


@pytest.mark.parametrize(
    ("interrupted", "late", "at_wait", "made", "undo"),
    [
        ("project/trial", False, 0, [], ""),
        ("backup/web-9", False, 0, ["project/trial"], "weft delete project/trial"),
        (
            "",
            False,
            1,
            ["project/trial", "backup/web-9"],
            "weft delete backup/web-9 -p trial && weft delete project/trial",
        ),
        (
            "vm/web",
            True,
            0,
            ["project/trial", "backup/web-9", "network/blue", "vm/web"],
            "weft delete vm/web -p trial && weft delete network/blue backup/web-9 -p trial && weft delete project/trial",
        ),
    ],
    ids=["at the project", "at a backup", "while a backup is adopted", "at a VM that was created nevertheless"],
)
def test_who_interrupts_a_restore_of_a_project_ends_it_and_is_told_what_is_there(
    interrupted: str, late: bool, at_wait: int, made: list[str], undo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric: Any = Fabric(interrupted, late=late)
    assert restore_into_trial(fabric, monkeypatch, at_wait) == INTERRUPTED
    assert fabric.made == made
    told = [line for line in fabric.told if not line.endswith("  created")]
    if not made:
        assert told == ["interrupted: nothing was created"]
        return
    assert told == [
        f"interrupted: nothing more is created; created so far, and it stays: {', '.join(made)}",
        GO_ON,
        f"undo: {undo}",
    ]


def test_who_interrupts_the_wait_after_the_last_step_is_told_how_to_watch_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric: Any = Fabric()
    assert restore_into_trial(fabric, monkeypatch, 2) == INTERRUPTED
    assert fabric.told[-2:] == [
        "interrupted: nothing is left to create, and the work goes on; watch: weft wait network/blue vm/web -p trial",
        "undo: weft delete vm/web -p trial && weft delete network/blue backup/web-9 -p trial && weft delete project/trial",
    ]


def test_a_restore_that_goes_on_waits_for_the_backups_that_the_interrupted_one_had_begun_to_adopt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fabric: Any = Fabric()
    begun = {"of": "vm/web", "to": "safe", "adopts": "u1"}
    fabric.adopting = [{**OF_WEB, "uid": "u2", "spec": begun, "status": {"phase": "Copying"}}]
    assert restore_into_trial(fabric, monkeypatch, 0) == 0
    assert fabric.waits[0] == ["backup/web-9"] and "backup/web-9" not in fabric.made


def test_what_was_there_before_a_restore_is_not_in_the_undo_of_an_interrupted_one() -> None:
    made, fabric = Made("trial", ["volume/orders"]), Fabric()
    fabric.made = ["vm/shop", "volume/orders"]
    made.ask("vm/shop", "volume/orders")
    assert made.inspect(fabric) == [] and made.whats == ["vm/shop"]  # type: ignore[arg-type]


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


def test_long_new_names_that_begin_alike_differ() -> None:
    objects = [one("vm", name, image="tiny") for name in ("web-1", "web-2")]
    held = BackedUpProject(project="shop", taken_at=9.0, objects=objects)
    names = [step.name for step in plan_restore(held, {}, {}, prefix="c" * 60, keep=False)]
    assert len(set(names)) == 2 and all(len(name) <= 63 for name in names)
