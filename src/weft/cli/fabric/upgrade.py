"""`weft fabric upgrade --to FOLDER|RELEASE`: another release of weft on all machines, one after the other, under running guests.
`--renew`: then nodes are emptied, and rebooted, that need it. `--dry-run` shows in which order. Interrupted or detached, it
goes on; `weft upgrade list` shows how far it is."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from weft.cli.command.target import Target, usage
from weft.cli.fabric.packages import Package, find_packages, upload
from weft.cli.output.formats import print_items
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.cli.wait.finish import finish_one
from weft.kinds.fields.cells import dig
from weft.kinds.parts.packages import read_release
from weft.kinds.record import Object
from weft.kinds.upgrade import UPGRADE, Machine, is_downgrade, order_machines
from weft.objects.errors import IllegalTransition, NotFound
from weft.objects.quantity import format_bytes

_EXAMPLE = "weft fabric upgrade --to dist"
_TITLES = ("TURN>", "MACHINE!", "NOW", "THEN", "NOTE~")


def upgrade(session: Session, to: str | None, *, renew: bool, dry_run: bool) -> int | None:
    """Raises WeftError, UsageError."""
    packages: list[Object]
    sent: list[Package] = []
    machines = _list_machines(session) if not to and renew else []
    if not to:
        if not renew:
            raise usage(
                "upgrade takes --to: a folder of packages, or a release that was installed by an upgrade before",
                _EXAMPLE,
            )
        releases = sorted({one.release for one in machines})
        if len(releases) != 1:
            raise usage(f"machines have different releases ({', '.join(releases)}): give --to, too", _EXAMPLE)
        release, packages = releases[0], []
    elif read_release(to) and not Path(to).exists():
        release, packages = to, _find_uploaded(session, to)
    else:
        sent = find_packages(Path(to).expanduser())
        release = sent[0].release
        packages = [
            {"name": one.name, "architecture": one.architecture, "sha256": one.sha256, "size": one.size} for one in sent
        ]
    machines = machines or _list_machines(session)
    left = [one for one in order_machines(release, machines) if one.release != release]
    if dry_run:
        _show(session, release, left, machines, renew=renew)
        return None
    if not left and not (renew and any(one.need for one in machines)):
        if renew:
            said = "no guest runs in an earlier QEMU, and no machine needs a reboot"
            raise IllegalTransition(said, hint="weft node list -o wide; a node finds out within 30 s")
        raise IllegalTransition(
            f"all {len(machines)} machines have weft {release}", hint="weft server list; weft node list"
        )
    size = upload(session.client.http, sent)
    if size and not session.is_document:
        session.notify(f"uploaded {format_bytes(size)}")
    what = f"to-{release.replace('+', '-').replace('~', '-').replace('.', '-')}" if packages else "renew"
    name = f"{what}-{secrets.token_hex(2)}"
    spec = {"to": release, "packages": packages, **({"renew": True} if renew else {})}
    obj = session.client.create({"kind": UPGRADE.name, "name": name, "spec": spec})
    return finish_one(session, Target(UPGRADE, name), obj, "create")


def _find_uploaded(session: Session, release: str) -> list[Object]:
    """The packages of that release in an upgrade of before. Raises NotFound."""
    for one in session.client.list(UPGRADE.name).items:
        if dig(one, "spec.to") == release:
            return list(dig(one, "spec.packages", []))
    raise NotFound(
        f"no upgrade has brought packages of weft {release}",
        hint=f"give the folder with them: {_EXAMPLE}; weft upgrade list shows the releases that upgrades have brought",
    )


def _list_machines(session: Session) -> list[Machine]:
    servers = [
        Machine(
            "server",
            obj["name"],
            obj["uid"],
            dig(obj, "status.release", ""),
            dig(obj, "status.phase") == "Ready",
            leads=bool(dig(obj, "status.leads")),
            by_hand=dig(obj, "status.by_hand", ""),
        )
        for obj in session.client.list("server").items
    ]
    nodes = [
        Machine(
            "node",
            obj["name"],
            obj["uid"],
            dig(obj, "report.version", ""),
            dig(obj, "status.phase") == "Ready",
            reboot=dig(obj, "report.reboot", ""),
            outdated=dig(obj, "report.outdated", 0),
            closed=bool(dig(obj, "actions.cordoned")),
        )
        for obj in session.client.list("node").items
    ]
    return [*servers, *nodes]


def _show(session: Session, release: str, left: list[Machine], machines: list[Machine], *, renew: bool) -> None:
    """Show whose turn comes when."""
    rows, items = [], list[dict[str, Any]]()
    for turn, one in enumerate(left, 1):
        note = one.by_hand or ("" if one.ready else "away: " + ("must be ready first" if one.is_server else "later"))
        rows.append([str(turn), one.path, one.release or "–", release, note])
        items.append({"turn": turn, "machine": one.path, "now": one.release, "then": release, "note": note})
    due = [one for one in machines if one.need and not one.is_server] if renew else []
    for turn, one in enumerate(due, len(left) + 1):
        then = "rebooted" if one.reboot else "emptied"
        note = "stays as it is: people have cordoned it" if one.closed else one.need
        rows.append([str(turn), one.path, one.release or "–", then, note])
        items.append({"turn": turn, "machine": one.path, "now": one.release, "then": then, "note": note})
    nothing = f"all {len(machines)} machines have weft {release}{', and none needs to be renewed' if renew else ''}"
    print_items(session, items, [], (make_columns(*_TITLES), rows), nothing)
    if left and not session.is_data:
        back = "nodes first, as agents are never newer than the servers; " if is_downgrade(release, machines) else ""
        session.notify(f"{back}one machine at a time, and none while a server isn't ready; guests run on")
    elif due and not session.is_data:
        session.notify("one node at a time, within the disruption budgets: its guests migrate")
