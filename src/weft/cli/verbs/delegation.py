"""`weft cluster delegate web.yaml --destination west`: a linked cluster, like a site's own server, runs what the files have."""

from __future__ import annotations

import contextlib
from typing import Any

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target, usage
from weft.cli.manifest.check import WrittenManifest, locate
from weft.cli.session import Session
from weft.cli.verbs import apply
from weft.cli.wait.finish import Done, finish, plan_wait
from weft.kinds.cluster import CLUSTER
from weft.kinds.delegation import DELEGATION, WORKLOADS
from weft.kinds.record import Kind
from weft.objects.errors import Forbidden, InvalidInput, WeftError


def delegate_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        *apply.files(),
        click.Option(
            ["--destination"],
            metavar="CLUSTER",
            required=True,
            shell_complete=complete_name("cluster"),
            help="The linked cluster that runs them.",
        ),
        click.Option(
            ["--adopt"],
            is_flag=True,
            help="Take over what this cluster had created there under these names before, like what was abandoned.",
        ),
        *options.waits(),
        options.output(),
    ]
    words = (
        "Have a linked cluster run the VMs, containers and jobs in files, like a site with a server of its own. Each gets a "
        "delegation of its name here; what it names (images, networks, secrets) are objects of that cluster, which goes on "
        "running them while the line is down."
    )
    return options.build(verb, words, _delegate, kind, params, in_project=True)


def _delegate(
    session: Session,
    kind: Kind | None,
    paths: tuple[str, ...],
    files: tuple[str, ...],
    destination: str,
    adopt: bool,
) -> int:
    manifests = [
        make_delegation(one, destination, adopt) for one in apply.read_files((*files, *paths), session.project)
    ]
    done, waits = [], []
    try:
        results = apply.send(session, manifests, dry_run=False)
    except WeftError as refusal:
        if (refusal.field or "").endswith("spec.cluster"):  # of a delegation that has another one, which can't change
            with contextlib.suppress(Forbidden):
                session.client.get(CLUSTER.name, destination)  # raises NotFound where the name is merely misspelt
        raise
    for result in results:
        obj, verb = result["object"], apply.VERBS[result["action"]]
        target = Target(DELEGATION, obj["name"])
        done.append(Done(target, obj, verb, str(result["action"])))
        wait = plan_wait(obj, target, verb)
        waits += [wait] if wait else []
    return finish(session, done, waits)


def make_delegation(manifest: WrittenManifest, destination: str, adopt: bool = False) -> WrittenManifest:
    """Pure. The delegation of a workload's manifest. Raises UsageError for another kind, InvalidInput for what would name an object
    of this cluster."""
    kind = manifest.kind
    if kind.name not in WORKLOADS:
        raise usage(
            f"{manifest.what}: {kind.a_title} can't be delegated",
            f"{', '.join(WORKLOADS)} can: create the others at that cluster",
        )
    for part in ("uid", "generation"):
        if part in manifest.data:
            problem = InvalidInput(
                f"{part} is that of an object of this cluster, and {destination} makes another one",
                field=part,
                hint=f"delete the line {part}",
            )
            raise locate(manifest, problem)
    spec: dict[str, Any] = {"cluster": destination, "workload": kind.name, "template": manifest.data.get("spec") or {}}
    spec |= {"adopt": True} if adopt else {}
    rest = {name: value for name, value in manifest.data.items() if name in ("name", "project", "labels")}
    return msgspec.structs.replace(manifest, kind=DELEGATION, data={"kind": DELEGATION.name, **rest, "spec": spec})
