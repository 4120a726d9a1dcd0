"""`weft doctor`: what is wrong here or at the server, and what to do about it. Exit 1 when something is broken."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import ERROR, OK
from weft.cli.command.grammar import Entry
from weft.cli.fabric.rotate import list_rotations
from weft.cli.output.formats import print_data
from weft.cli.session import Session
from weft.cli.verbs.version import ask_health, ask_time
from weft.client.context import FILE, FOLDER, is_in_clone
from weft.kinds.fields.cells import dig
from weft.kinds.parts.node.reboot import describe_need
from weft.kinds.record import Kind
from weft.objects.errors import StoreUnavailable, WeftError
from weft.objects.quantity import format_age, format_bytes
from weft.protocol.server.join import warn_of_even

_CLOCK_SECONDS = 30.0
_SLOW_STORE_MS = 100.0
_FULL_PERCENT = 70  # of the store's quota
_SIGNS = {"ok": "✓", "note": "!", "broken": "✗"}
_COLORS = {"ok": "green", "note": "yellow", "broken": "red"}
# What a machine that runs guests needs: the program, and where apt has it. Debian 12's own QEMU is too old.
_QEMU = "--no-install-recommends -t bookworm-backports qemu-system-x86 qemu-utils seabios"
_PROGRAMS = {
    "qemu-system-x86_64": _QEMU,
    "qemu-img": _QEMU,
    "ip": "iproute2",
    "nft": "nftables",
    "dnsmasq": "dnsmasq-base",
}


class Finding(NamedTuple):
    """One result of a check. ``state`` is ok, note (worth knowing) or broken; ``remedy`` what to do."""

    subject: str
    state: str
    fact: str
    remedy: str = ""


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    return options.build(
        verb, "Check this machine and the server, and suggest remedies.", _run, kind, [options.output()]
    )


def _run(session: Session, kind: Kind | None) -> int:
    findings = examine(session)
    if session.is_document:
        print_data(session, {"items": [finding._asdict() for finding in findings]})
    else:
        width = max(len(finding.subject) for finding in findings)
        for subject, state, fact, remedy in findings:
            print(f"{session.paint.color(_SIGNS[state], _COLORS[state])} {subject:<{width}}  {fact}")
            if remedy:
                print(f"  {'':<{width}}  → {remedy}")
    return ERROR if any(finding.state == "broken" for finding in findings) else OK


def examine(session: Session) -> list[Finding]:
    """All checks, here and at the server."""
    return [*_check_machine(), *_check_server(session)]


def _check_machine() -> Iterator[Finding]:
    yield Finding("machine", "ok", f"{platform.system()} {platform.release()}, Python {platform.python_version()}")
    lacking = judge_programs({program for program in _PROGRAMS if not shutil.which(program)})
    yield lacking or Finding("programs", "ok", f"{_qemu_version()} and the other programs that guests need")
    yield _check_kvm()


def judge_programs(missing: set[str]) -> Finding | None:
    """Name what to install when a machine lacks these programs."""
    packages = {program: package for program, package in _PROGRAMS.items() if program in missing}
    if not packages:
        return None
    others = [package for package in packages.values() if package != _QEMU]
    wanted = [_QEMU] * (_QEMU in packages.values()) + [" ".join(others)] * bool(others)
    remedy = f"{' && '.join(f'apt-get install {each}' for each in wanted)} (in a clone: make install)"
    return Finding("programs", "note", f"missing: {', '.join(packages)} (needed where guests run)", remedy)


def _qemu_version() -> str:
    try:
        answer = subprocess.run(
            ["qemu-system-x86_64", "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "QEMU"
    words = answer.split()
    return f"QEMU {words[3]}" if len(words) > 3 else "QEMU"


def _check_kvm() -> Finding:
    device = Path("/dev/kvm")
    if not device.exists():
        return Finding("kvm", "note", "not available: guests are emulated (TCG), slower but complete")
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding("kvm", "note", "present, but not for this user", "run the agent as root, or join the group kvm")
    return Finding("kvm", "ok", "present; each agent tests it with a guest (weft node list -o wide)")


def _check_server(session: Session) -> Iterator[Finding]:
    try:
        context = session.client.context
    except WeftError as problem:
        yield Finding("context", "broken", problem.message, problem.hint or "")
        return
    yield _check_privacy(session) or Finding("context", "ok", f"{context.server}, project {session.client.project}")
    health, trouble = ask_health(session)
    if trouble is not None:
        yield judge_trouble(trouble)
        return
    yield Finding("server", "ok", f"answers, version {health.get('version', '')}")
    if isinstance(took := health.get("store_ms"), (int, float)):  # an older server doesn't report it
        yield Finding("store", "ok" if took < _SLOW_STORE_MS else "note", f"answers the server in {took:g} ms")
    yield _check_clock(session)
    with suppress(WeftError):  # a project's user doesn't see them
        yield from judge_servers(session.client.list("server").items)
    with suppress(WeftError):  # nor does the user see these
        yield from judge_rotations(list_rotations(session), session.clock.now())
    try:
        nodes = session.client.list("node").items
    except WeftError as problem:
        yield Finding("nodes", "broken", problem.message, problem.hint or "")
        return
    if not nodes:
        yield Finding(
            "nodes", "broken", "no node has joined", "weft token create --join prints the command to run on a new node"
        )
    for node in nodes:
        yield _check_node(node)
    has = {str(dig(node, "uid")): dig(node, "report.volumes") for node in nodes}  # which only the fabric's readers see
    yield from _check_volumes(session, {uid: volumes for uid, volumes in has.items() if volumes is not None})


def judge_trouble(trouble: WeftError) -> Finding:
    """A server that gives no answer, or one that runs, and says what its store lacks."""
    remedy = trouble.hint if trouble.token == StoreUnavailable.reason else None
    return Finding("server", "broken", trouble.message, remedy or _restart("weft server"))


def judge_servers(servers: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """The servers of the fabric, if there are several, and the space of the store that they keep."""
    several = len(servers) > 1
    for server in servers if several else ():
        subject, name, message = f"server {server['name']}", server["name"], dig(server, "status.message", "")
        if dig(server, "status.phase") != "Ready":
            fact = f"NotReady: {message or 'it was never started'}"
            yield Finding(
                subject, "broken", fact, f"start it if it doesn't run, or give it up: weft server delete {name}"
            )
        elif ahead := dig(server, "status.clock_ahead", 0):
            fact = f"its clock is {format_age(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the leading server's"
            yield Finding(subject, "broken", fact, "set the clock that is wrong: timedatectl set-ntp true")
        else:
            yield Finding(subject, "ok", f"Ready at {dig(server, 'status.address')}")
    releases = {str(server["name"]): str(release) for server in servers if (release := dig(server, "status.release"))}
    if len(set(releases.values())) > 1:
        fact = f"run different releases: {', '.join(f'{name} {release}' for name, release in releases.items())}"
        yield Finding("servers", "note", fact, "update the older ones, one after the other")
    yield from _check_addresses(servers if several else ())
    members = sum(bool(dig(server, "marks.member")) for server in servers)
    if members and (warning := warn_of_even(members)):
        yield Finding("servers", "note", warning, "weft token create --use server prints the command for another one")
    if len(quotas := {dig(server, "status.store.quota", 0) for server in servers} - {0}) > 1:
        fact = (
            f"the servers' quotas differ: {', '.join(map(format_bytes, sorted(quotas)))}; the smallest counts for all"
        )
        yield Finding("store", "note", fact, "start all servers with the same --store-quota")
    for server in servers:
        used, quota = dig(server, "status.store.used", 0), dig(server, "status.store.quota", 0)
        if problem := dig(server, "status.store.problem", ""):
            yield Finding("store", "broken", f"server {server['name']}: {problem}")
        elif quota and used >= quota * _FULL_PERCENT / 100:
            yield Finding("store", "note", f"server {server['name']}: {used / quota:.0%} of its quota is used")


def judge_rotations(rotations: Sequence[Mapping[str, Any]], now: float) -> Iterator[Finding]:
    """The keys of the fabric that rotate. ``now``: unix seconds."""
    status = "weft fabric rotate status"
    for one in rotations:
        subject = f"key {one['part']}"
        if one["lacking"]:
            fact = f"{', '.join(one['lacking'])}: the server doesn't have the fabric's key, and seals nothing"
            yield Finding(subject, "broken", fact, f"start the other servers, which give it the key; {status}")
        elif not one["step"]:
            yield Finding(subject, "ok", f"{one['key']}, never rotated")
        elif one["step"] != "done":
            waits = f"; waits for {', '.join(one['waits_for'])}" if one["waits_for"] else ""
            remedy = "start those servers, or give them up: weft server delete NAME" if waits else ""
            yield Finding(subject, "note", f"rotates: {one['meaning']}{waits}", remedy)
        elif one["unopened"]:
            fact = f"no key opens values of {', '.join(one['unopened'])}"
            yield Finding(subject, "note", fact, "enter these values again")
        else:
            yield Finding(subject, "ok", f"{one['key']}, rotated {format_age(now - one['finished_at'])} ago")


def _check_addresses(servers: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Find addresses of servers at which the others and clients don't reach them."""
    seen: dict[str, str] = {}
    for server in servers:
        for flag, at in (
            ("--gateway", dig(server, "status.gateway")),
            ("--functions", dig(server, "status.functions")),
        ):
            if not at or dig(server, "status.phase") != "Ready":
                continue
            fix = f"start it with {flag} and an address of its machine that the others reach"
            if at in seen:
                fact = f"names {at} for {flag}, as server {seen[at]} does"
                yield Finding(f"server {server['name']}", "broken", fact, fix)
            elif at.startswith(("127.", "[::1]")) and not dig(server, "status.address", "").startswith("https://127."):
                yield Finding(f"server {server['name']}", "broken", f"others don't reach {at}", fix)
            seen[at] = server["name"]


def _restart(what: str) -> str:
    return "make up restarts what has died" if is_in_clone() else f"is {what} running there?"


def _check_volumes(session: Session, has: dict[str, list[str]]) -> Iterator[Finding]:
    """``has``: the uids of volumes whose data lies on each node, by the node's uid."""
    try:
        volumes = session.client.list("volume").items
    except WeftError:
        return  # the user may list nodes, but not this project's objects
    yield from (finding for volume in volumes if (finding := judge_volume(volume, has)) is not None)


def judge_volume(volume: dict[str, Any], has: dict[str, list[str]]) -> Finding | None:
    """Data that an older store, or an abandoned node, brought back beside the data in use, or with none in use. ``has`` as above;
    other nodes are unknown."""
    copies = dig(volume, "status.copies") or []
    if not copies:
        return None
    names, home, uid = ", ".join(map(str, copies)), dig(volume, "status.node_uid"), dig(volume, "uid")
    if home is None or (len(copies) > 1 and home in has and uid not in has[home]):
        fact = f"{names} hold unexplained copies of its data; weft can't tell which one is right"
        remedy = (
            "all copies are kept; workloads with the volume wait (volumesApart) until only one node has a copy. "
            "Deleting the volume removes all copies"
        )
    else:
        fact = f"its data is on {dig(volume, 'status.node')}; {names} has an unexplained copy"
        remedy = "the copy is kept but not used; workloads with the volume can't migrate there. Deleting the volume removes both"
    return Finding(f"volume {volume['name']}", "note", fact, remedy)


def _check_clock(session: Session) -> Finding:
    """Certificates and the ages in tables are read by this machine's clock."""
    ahead = session.clock.now() - ask_time(session)
    if abs(ahead) < _CLOCK_SECONDS:
        return Finding("clock", "ok", "agrees with the server's")
    fact = f"{format_age(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the server's"
    return Finding("clock", "broken", fact, "set the clock that is wrong: timedatectl set-ntp true")


def _check_privacy(session: Session) -> Finding | None:
    """A context file that others can read gives them its token."""
    named = session.context_file or session.environ.get("WEFT_CONTEXT")
    here = Path.cwd()
    files = [Path(named)] if named else [place / FOLDER / FILE for place in (here, *here.parents)]
    for file in files:
        if file.is_file():
            if stat.S_IMODE(file.stat().st_mode) & 0o077:
                return Finding("context", "note", f"{file} is readable by other users", f"chmod 600 {file}")
            return None
    return None


def _check_node(node: dict[str, object]) -> Finding:
    phase = str(dig(node, "status.phase", "Joining"))
    problems = [str(problem) for problem in dig(node, "report.problems", [])]
    if need := describe_need(dig(node, "report.reboot", ""), dig(node, "report.outdated", 0)):
        problems.append(f"{need}: weft fabric upgrade --renew")
    orphans = dig(node, "report.orphans", [])
    fact = f"{phase}, {dig(node, 'report.accelerator', '') or 'no accelerator known'}, "
    fact += f"{dig(node, 'report.cpu', 0):g} cores, {format_bytes(dig(node, 'report.memory', 0))}"
    if orphans:
        problems.append(f"{len(orphans)} unexplained guests are kept running: {', '.join(map(str, orphans[:3]))}")
    subject = f"node {node['name']}"
    if phase != "Ready":
        return Finding(
            subject, "broken", fact, f"its agent has died or can't reach the server; {_restart('weft agent')}"
        )
    return Finding(subject, "note", f"{fact}; {'; '.join(problems)}") if problems else Finding(subject, "ok", fact)
