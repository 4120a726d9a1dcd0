"""`weft vm update web --config web.yaml`, `vm deploy new --config F --parallel-to old`, `vm canary web --config F`: another version
of a single VM. The VM becomes the first instance of a deployment of its name."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import ERROR
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target, usage
from weft.cli.deployment.flags import check_update, make_strategy_flags, read_strategy, read_workload_config
from weft.cli.deployment.preview import find_changes, foresee, is_unchanged, print_preview
from weft.cli.deployment.replacement import (
    REPLACE,
    describe_replaced,
    find_current,
    is_there,
    make_template,
    settle_replacement,
)
from weft.cli.session import Session
from weft.cli.wait.finish import finish_one, plan_wait
from weft.cli.wait.follow import follow_to_end
from weft.cli.wait.progress import Progress
from weft.kinds.deployment import DEPLOYMENT
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind
from weft.kinds.replication import REPLICATION
from weft.kinds.snapshot import SNAPSHOT
from weft.kinds.vm import VM, VmSpec
from weft.objects.errors import AlreadyExists, IllegalTransition, NotFound
from weft.objects.identity import check_name


def update_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [*_params("NAME"), click.Option(["--live-migrate"], is_flag=True, help=_LIVE_MIGRATE)]
    return options.build(
        verb, "Roll out another version of a VM, with a snapshot to go back to.", _update, kind, params
    )


_LIVE_MIGRATE = "Only take changes that need no restart; the VM migrates live where its node lacks the capacity."


def deploy_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        *_params("NEW", chooses=False),
        click.Option(
            ["--parallel-to", "old"], metavar="OLD", required=True, help="The VM that the new one runs beside."
        ),
    ]
    return options.build(verb, "Create a VM beside an old one, and split the requests.", _deploy, kind, params)


def canary_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    return options.build(
        verb,
        "Let another version of a VM have a part of the requests, and judge it.",
        _canary,
        kind,
        _params("NAME", chooses=False),
    )


def _params(name: str, *, chooses: bool = True) -> list[click.Parameter]:
    """``chooses``: the strategy is a flag, not the command's own."""
    return [
        click.Argument(["words"], nargs=-1, metavar=name),
        click.Option(
            ["--config", "-f"],
            metavar="FILE",
            required=True,
            help="A file with the VM's whole spec, in YAML, JSON, TOML or nix.",
        ),
        *(flag for flag in make_strategy_flags() if chooses or flag.name != "strategy__type"),
        click.Option(["--replace-root-disk"], is_flag=True, help=REPLACE),
        click.Option(
            ["--dry-run"], is_flag=True, help="Show whether the VM would restart, change or stay; change nothing."
        ),
        *options.waits(),
        options.output(),
    ]


def _update(session: Session, kind: Kind | None, words: tuple[str, ...], live_migrate: bool, **given: Any) -> int:
    return _roll_out(session, _find_name(session, kind, words), given, {}, live=live_migrate)


def _canary(session: Session, kind: Kind | None, words: tuple[str, ...], **given: Any) -> int:
    return _roll_out(session, _find_name(session, kind, words), given, {"type": "canary"})


def _deploy(session: Session, kind: Kind | None, words: tuple[str, ...], old: str, **given: Any) -> int:
    if len(words) != 1:
        raise usage("give one name for the new VM", "weft vm deploy NEW --config F --parallel-to OLD")
    old = old.removeprefix("vm/")
    if words[0] == old:
        raise usage(
            f"vm/{old} can't run beside itself", f"give the new VM another name; weft vm update {old} changes it"
        )
    check_name(words[0], "NEW")
    if is_there(session, words[0]):
        raise AlreadyExists(f'vm "{words[0]}" exists already', hint="choose another name for the new VM")
    return _roll_out(session, old, given, {"type": "blue-green"}, instance=words[0])


def _find_name(session: Session, kind: Kind | None, words: tuple[str, ...]) -> str:
    return find_one(session, kind or VM, words, (VM.name,), "give one NAME").name


def _roll_out(
    session: Session,
    name: str,
    given: dict[str, Any],
    strategy: dict[str, Any],
    *,
    instance: str = "",
    live: bool = False,
) -> int:
    """Have a deployment roll out the file's spec; the exit code."""
    file = read_workload_config(given["config"], VM)
    deployment, vm = _find_deployment(session, name), None
    if deployment is None:
        current = vm = session.client.get(VM.name, name)
        _check_adoption(session, vm)
    else:
        current = find_current(session, deployment)
    template = make_template(file, current)
    chooses = "type" not in strategy
    strategy = {**read_strategy(given), **strategy}
    shown = deployment or _make_manifest(current, name)
    check_update(shown, template, strategy, instance=instance, chooses=chooses)
    chosen = {**dig(shown, "spec.strategy", {}), **strategy}
    rows = foresee(shown, [current], template, chosen.get("type", "rolling"), instance)
    replaced = describe_replaced(session, shown, current, template, chosen, rows)
    if given["dry_run"]:
        return print_preview(session, rows, chosen, replaced)
    if not instance and is_unchanged(shown, rows, template, {"strategy": chosen}):
        target, same = (Target(VM, name), current) if deployment is None else (Target(DEPLOYMENT, shown["name"]), shown)
        return finish_one(session, target, same, "unchanged")
    if live:
        _refuse_restarts(current, template)
    if live or chosen.get("live_migrate"):  # this update's own, not a later one's
        strategy["live_migrate"] = live
    body = {"template": template, "strategy": strategy, "instance": instance}
    _try_update(session, deployment, vm, template, body)
    replaces = given["replace_root_disk"]
    if replaced and not settle_replacement(
        session, current, template, chosen, rows[0]["new"], replaced, replaces=replaces
    ):
        session.notify("nothing was changed")
        return ERROR
    if deployment is None:
        assert vm is not None
        adopted = _adopt(session, vm)
        if isinstance(adopted, int):
            return adopted
        deployment = adopted
    if not live and dig(deployment, "spec.adopt") and chosen.get("type", "rolling") == "rolling":
        interrupted = _take_snapshot(session, current["name"])
        if interrupted is not None:
            return interrupted
    target = Target(DEPLOYMENT, deployment["name"])
    made = session.client.verb(DEPLOYMENT.name, target.name, "update", body)
    return finish_one(session, target, made, "update")


def _try_update(
    session: Session,
    deployment: dict[str, Any] | None,
    vm: dict[str, Any] | None,
    template: dict[str, Any],
    body: dict[str, Any],
) -> None:
    """Let the server refuse the update, as one whose image is missing, before the VM is adopted or a snapshot taken."""
    if deployment is not None:
        session.client.verb(DEPLOYMENT.name, deployment["name"], "update", body, dry_run=True)
        return
    assert vm is not None
    manifest = _make_manifest(vm, vm["name"])
    del manifest["uid"], manifest["status"]
    manifest["spec"]["template"] = template
    session.client.create(manifest, dry_run=True)


def _find_deployment(session: Session, name: str) -> dict[str, Any] | None:
    """The deployment that has the VM, which may have adopted it."""
    try:
        vm = session.client.get(VM.name, name)
        owner = vm.get("owner") or {}
        if owner.get("kind") == DEPLOYMENT.name:
            return session.client.get(DEPLOYMENT.name, owner["name"])
        return None
    except NotFound as missing:
        try:
            return session.client.get(DEPLOYMENT.name, name)
        except NotFound:
            raise missing from None


def _check_adoption(session: Session, vm: dict[str, Any]) -> None:
    """Raises IllegalTransition if it can't be the first instance of a deployment."""
    what, owner = f"vm/{vm['name']}", vm.get("owner") or {}
    if owner:
        whose = f"{owner['kind']}/{owner['name']}"
        raise IllegalTransition(
            f"{what} belongs to {whose}, which decides what it runs", hint=f"change {whose} instead"
        )
    if vm["spec"].get("run", "run") != "run":
        raise IllegalTransition(
            f"{what} is stopped: whether a new version is healthy shows only while it runs",
            hint=f"weft vm start {vm['name']}, or change the stopped VM with weft apply",
        )
    copies = [one["name"] for one in session.client.list(REPLICATION.name).items if dig(one, "spec.of") == what]
    if copies:
        raise IllegalTransition(
            f"{what} is replicated by replication/{copies[0]}, which an update would break",
            hint=f"weft apply changes the VM itself; weft delete replication/{copies[0]} ends the replication",
        )


def _make_manifest(vm: dict[str, Any], name: str) -> dict[str, Any]:
    template = make_template(vm["spec"], vm)
    labels = dict(vm.get("labels") or {})
    spec = {"workload": VM.name, "template": template, "labels": labels, "replicas": 1, "adopt": name}
    return {"kind": DEPLOYMENT.name, "name": name, "uid": "", "labels": labels, "spec": spec, "status": {}}


def _adopt(session: Session, vm: dict[str, Any]) -> dict[str, Any] | int:
    """The new deployment once the VM is its first instance; the exit code if the wait for that is interrupted."""
    manifest = _make_manifest(vm, vm["name"])
    del manifest["uid"], manifest["status"]
    made = session.client.create(manifest)
    session.notify(f"vm/{vm['name']}  is an instance of deployment/{vm['name']} now; deleting that leaves the VM")
    target = Target(DEPLOYMENT, vm["name"])
    wait = plan_wait(made, target, "create")
    assert wait is not None
    result = follow_to_end(session, wait, Progress, f"weft rollout status {vm['name']}")
    return result if isinstance(result, int) else dict(result.obj or made)


def _take_snapshot(session: Session, name: str) -> int | None:
    """Keep its disks as they are: the way back for what the new version writes. The exit code if the wait is interrupted."""
    snapshot = session.client.verb(VM.name, name, "snapshot", {})
    target = Target(SNAPSHOT, snapshot["name"])
    wait = plan_wait(snapshot, target, "create")
    if wait is not None:
        text = (
            f"nothing was updated yet: give the command again; the snapshot goes on: weft snapshot show {target.name}"
        )
        result = follow_to_end(session, wait, Progress, text)
        if isinstance(result, int):
            return result
    session.notify(
        f"snapshot/{target.name} has the disks as they were: weft vm restore {name} --snapshot {target.name}"
    )
    return None


def _refuse_restarts(vm: dict[str, Any], template: dict[str, Any]) -> None:
    """Raises IllegalTransition if the VM can't take the changes while it runs."""
    costly = [change for change in find_changes(VmSpec, vm, template) if change.mode != "live"]
    if costly:
        fields = ", ".join(f"{one.path.partition('.')[2]} ({one.mode})" for one in costly)
        raise IllegalTransition(
            f"--live-migrate: vm/{vm['name']} can't take these changes while it runs: {fields}",
            hint="leave out --live-migrate, or those changes",
        )
