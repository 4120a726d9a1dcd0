"""Verbs, their kinds and their files: the table behind ``weft NOUN VERB`` and ``weft VERB KIND/NAME``.

Kinds and their own verbs come from the registry; nothing is loaded before it is asked for.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import click

from weft.cli.command.synonyms import (
    DESTROYING,
    ELSEWHERE,
    NOT_YET,
    OTHERWISE,
    PROGRAMS,
    RENAMES,
    SYNONYMS,
    find_command_meant,
    find_kind_meant,
    find_missing,
)
from weft.cli.command.target import choose_command, usage
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, KINDS, WORKLOADS, find_kind
from weft.objects.errors import NotFound
from weft.objects.schema import suggest

PEOPLE = tuple(kind.name for kind in KINDS if kind.access.writer == "people")
CHANGEABLE = tuple(kind.name for kind in KINDS if kind.access.writer == "people" and not kind.lifetime.ephemeral)
# A node comes by joining, with its pools, a cluster by linking, and a replica from the cluster that sends its points.
MAKEABLE = tuple(name for name in PEOPLE if name not in ("node", "pool", "cluster", "replica"))


PLACED = tuple(WORKLOADS)
_ALIKE = 0.75  # so alike must a command be that is proposed: sbatch is no attach


def able(verb: str) -> tuple[str, ...]:
    """The kinds that a verb is for, as they declare."""
    return tuple(kind.name for kind in KINDS if kind.verb(verb) is not None or verb in kind.display.commands)


class Entry(NamedTuple):
    """A verb: its file in ``weft.cli.verbs``, or ``file.verb`` where several share one; what it does; its kinds (none: all)."""

    module: str
    summary: str
    kinds: tuple[str, ...] = ()


# Verbs on objects: after a noun, and on their own with KIND/NAME.
VERBS: dict[str, Entry] = {
    "list": Entry("list.list", "List objects"),
    "get": Entry("get", "Show objects, or list them"),
    "describe": Entry("describe", "Show an object in full, with its latest events"),
    "create": Entry("create", "Create an object", MAKEABLE),
    "set": Entry("set.set", "Change fields; shows what each change requires", CHANGEABLE),
    "edit": Entry("edit", "Edit an object in $EDITOR", CHANGEABLE),
    "label": Entry("set.label", "Set or remove labels", CHANGEABLE),
    "delete": Entry("delete", "Delete objects", (*PEOPLE, *(kind.name for kind in KINDS if kind.access.removable))),
    "wait": Entry("wait", "Wait until an object reaches a state"),
    "events": Entry("events", "Show events"),
    "schema": Entry("schema", "List the fields of a kind"),
    "ssh": Entry("stream.ssh", "Log into a VM by SSH", able("ssh")),
    "cp": Entry("cp", "Copy files to or from a guest", able("cp")),
    "explain": Entry("explain.explain", "Explain why a workload was placed, or why it wasn't", (*PLACED, "migration")),
    "recommend": Entry("explain.recommend", "Show where a workload would be placed now, or with other fields", PLACED),
    "top": Entry("top", "Show the usage of nodes and workloads", ("node", *PLACED)),
    "add": Entry("image.add", "Fetch an image and check it", ("image",)),
    "build": Entry("image.build", "Build one of weft's own images and add it", ("image",)),
    "dead-letters": Entry("function.dead_letters", "List asynchronous invocations that failed for good", ("function",)),
    "alias": Entry("function.alias", "Name versions of a function", ("function",)),
    "resize": Entry("volume.resize", "Make a volume larger", ("volume",)),
    "restore": Entry(
        "restore", "Go back to it in place, or create a VM or a volume from it under a new name", ("snapshot",)
    ),
    "attach": Entry("volume.attach", "Attach a volume to a VM", ("volume",)),
    "run": Entry("job_run", "Run a job, wait for it, and exit as it did", ("job",)),
    "logs": Entry("logs.logs", "Show logs of guests, functions and jobs", ("job",)),
    "invite": Entry("user.invite", "Create a user with a role in a project, and print the line to log in", ("user",)),
    "passwd": Entry("user.passwd", "Set a user's password", ("user",)),
    "detach": Entry("volume.attach", "Detach a volume from a VM", ("volume",)),
}
# A kind's own verbs that need more than a request: streams.
STREAMS = {
    "exec": "stream.exec",
    "invoke": "invoke",
    "console": "stream.console",
    "forward": "stream.forward",
    "logs": "logs.logs",
    "metrics": "metrics",
    "screen": "stream.screen",
}
# Verbs only after their noun: alone, the word is another kind's name.
AFTER = {
    "backup": {"ls": Entry("backup_files.ls", "List files in a backup", ("backup",))},
    "backuprepository": {
        "key": Entry("backup.key", "Print its key, to keep where the fabric can't lose it", ("backuprepository",)),
        "import": Entry("backup.import", "Import the backups it already holds", ("backuprepository",)),
        "metrics": Entry("repository_metrics", "Show what it took up over time", ("backuprepository",)),
    },
    "network": {
        "flows": Entry("network.flows", "Show network flows of a workload", ("network",)),
        "matrix": Entry("network.matrix", "Show the traffic between workloads", ("network",)),
        "trace": Entry("network.trace", "Show whether a connection is allowed, and what decides", ("network",)),
        "topology": Entry("network.topology", "Show the network between the nodes", ("network",)),
        "capture": Entry("capture.capture", "Capture packets of a workload", ("network",)),
    },
    "function": {
        "endpoint": Entry("function.endpoint", "Show where functions are invoked, also for AWS SDKs", ("function",))
    },
    "migration": {
        "plan": Entry("migration_plan", "Plan a migration for later, with its capacity reserved", ("migration",)),
        "plans": Entry("migration_plan.plans", "List planned and proposed migrations", ("migration",)),
    },
    "cluster": {
        "link": Entry("cluster.link", "Link another cluster with this one", ("cluster",)),
        "link-token": Entry("cluster.link_token", "Print a token that links another cluster, once", ("cluster",)),
        "witness": Entry(
            "cluster.witness", "Set the witness that both clusters of a link ask who is primary", ("cluster",)
        ),
        "replicate": Entry("replication.replicate", "Replicate VMs to a linked cluster", ("cluster",)),
        "delegate": Entry("delegation.delegate", "Have a linked cluster run the workloads in files", ("cluster",)),
    },
    "device": {
        "watch": Entry("device.watch", "Show what devices report, as it changes", ("device",)),
        "metrics": Entry("device_metrics", "Show which numbers a device reported over time", ("device",)),
    },
    "container": {"restore": Entry("restore", "Show how its volumes go back to a snapshot", ("container",))},
    "vm": {
        "update": Entry("vm_update.update", "Roll out another version of a VM", ("vm",)),
        "deploy": Entry("vm_update.deploy", "Create a VM beside an old one, and split the requests", ("vm",)),
        "canary": Entry("vm_update.canary", "Let another version have a part of the requests, and judge it", ("vm",)),
    },
}
# Verbs that one kind does in a way of its own.
SPECIAL = {
    ("create", "token"): "token",
    ("create", "user"): "user.create",
    ("create", "project"): "project",
    ("delete", "project"): "project.delete",
    ("create", "backup"): "backup",
    ("create", "backuprepository"): "backup.repository",
    ("restore", "backup"): "backup.restore",
    ("promote", "replica"): "replication.promote",
    ("rehearse", "recoveryplan"): "recovery.rehearse",
    ("failover", "recoveryplan"): "recovery.failover",
    ("get", "backup"): "backup_files.get",
    ("describe", "migration"): "describe.migration",
    ("maintenance", "node"): "node.maintenance",
    ("drain", "node"): "node.drain",
    ("power", "node"): "node.power",
    ("logs", "job"): "logs.job_logs",
    ("metrics", "function"): "function.metrics",
    ("create", "secret"): "secret",
    ("create", "recommendation"): "explain.create_recommendation",
    ("create", "deployment"): "deployment.create",
    ("update", "deployment"): "deployment.update",
    ("undo", "deployment"): "rollout.undo",
    ("scale", "deployment"): "deployment.scale",
    ("autoscale", "deployment"): "deployment.autoscale",
    ("publish", "function"): "function.publish",
    ("set", "secret"): "secret",
    ("describe", "quota"): "quota.describe",
    ("restore", "vm"): "restore",
    ("restore", "volume"): "restore",
    ("warm", "image"): "warm",
    ("clone", "vm"): "restore.clone",
    ("set", "quota"): "quota.set",
    ("set", "device"): "device.set",
}
# What the lists of verbs say of those that do something else than their name does elsewhere.
SUMMARIES = {
    ("get", "backup"): "Copy a file or a folder out of a backup, or show backups",
    ("set", "secret"): "Change values of a secret",
    ("set", "quota"): "Set limits of a project",
    ("set", "device"): "Say which values its properties shall have, or change its fields",
    ("describe", "quota"): "Show the limits of a project, and how much of them is used",
    ("create", "recommendation"): "Ask where a workload would be better, and why",
}
# Commands about no object in particular.
TOOLS: dict[str, Entry] = {
    "apply": Entry("apply", "Create or change objects to match files"),
    "plan": Entry("plan.plan", "Show what apply would do, under an id to apply"),
    "diff": Entry("plan.diff", "Show what apply would change"),
    "api": Entry("api", "Send one request to the server's API"),
    "login": Entry("login.login", "Log in as a user"),
    "logout": Entry("login.logout", "End the login of the context"),
    "whoami": Entry("login.whoami", "Show who you are to the server, and your roles"),
    "ps": Entry("list.ps", "List VMs, containers and jobs"),
    "operation": Entry("operation", "List operations in progress; show, attach to or cancel one"),
    "lease": Entry("lease", "List leases; describe, extend or cancel one"),
    "queue": Entry("queue", "Show the scheduling queue with expected start times"),
    "rollout": Entry("rollout", "Show how an update of a deployment goes; pause, resume or undo it"),
    "rebalance": Entry("rebalance", "Plan migrations that make load even; apply, undo or list such plans"),
    "fabric": Entry("fabric", "Upgrade weft on all machines under running guests, or rotate a key of the fabric"),
    "capacity": Entry("explain.capacity", "Show how full the nodes are, what is pending, and why"),
    "fairness": Entry("queue.fairness", "Show each project's share of the cluster, and what it is entitled to"),
    "insight": Entry("insight", "Show what history says of a workload or a node"),
    "usage": Entry("usage", "Show what projects requested and used over time, in core-, GiB- and GPU-hours"),
    "calendar": Entry("calendar", "Show the calendar of leases by node"),
    "site": Entry("site", "List sites with their nodes, or describe one"),
    "storage": Entry("storage", "Show storage pools, how full they are, and what is largest in them"),
    "context": Entry("context.context", "Choose the server and the credentials to use"),
    "config": Entry("context.config", "Show the settings in force, and where each comes from"),
    "dashboard": Entry("dashboard", "Show the dashboard in this machine's browser"),
    "doctor": Entry("doctor", "Check this machine and the server"),
    "alert": Entry("alert", "List alerts; silence them, list silences, or remove one"),
    "audit": Entry("audit", "List, verify or export the audit log"),
    "trace": Entry("trace", "Show what a request took its time for, or list traces"),
    "support": Entry("support", "Collect a support bundle: support bundle"),
    "completion": Entry("completion", "Set up completion for bash, zsh or fish"),
    "version": Entry("version", "Show the versions of weft here and at the server"),
    "help": Entry("help", "Show help on a command or a topic"),
}


# What an operator starts; each has its own --help, and none of them asks a server.
PROCESSES: dict[str, Entry] = {
    "server": Entry("", "Run the server; server backup FILE, server restore FILE; server join URL; server list"),
    "agent": Entry("", "Run a node's agent; agent join URL makes this machine a node"),
    "edge": Entry("", "edge gateway: serve a node's devices, with an MQTT broker"),
    "witness": Entry("", "Run the witness of two clusters; witness add-site NAME prints a secret"),
    "simulate": Entry(
        "", "simulate placement|leases|rebalance|forecast|anomalies: what weft would do, on files, on any machine"
    ),
    "policykit": Entry("", "policykit init|test: write and test your own placement policies"),
}


# What ``weft --help`` shows: what people type every day, as they type it …
DAILY: dict[str, Entry] = {
    "vm create web --image tiny": Entry("", "Create and start a VM; --help lists its flags"),
    "ps": Entry("", "List VMs, containers and jobs"),
    "describe vm/web": Entry("", "Show an object in full, with its latest events"),
    "exec vm/web -- uname -a": Entry("", "Run a command in a guest; also ssh, console, cp"),
    "logs web -f": Entry("", "Show what it prints"),
    "set vm/web --memory 1G": Entry("", "Change fields; shows what each change requires"),
    "migrate vm/web": Entry("", "Migrate it to another node while it runs"),
    "explain web": Entry("", "Explain why it was placed there, or why it wasn't"),
    "apply app.yaml": Entry("", "Create or change objects to match files"),
    "delete vm/web": Entry("", "Delete objects"),
}
# … and where the rest is.
MORE: dict[str, Entry] = {
    "top, capacity, queue, calendar": Entry("", "Usage, free capacity, pending work and leases"),
    "node drain n1, doctor, audit": Entry("", "Look after the cluster"),
    "help all": Entry("", "Every command"),
    "help COMMAND, help exit-codes": Entry("", "Help on a command or a topic"),
}


# What comes after these words, for completion.
PROCESS_WORDS = {
    "server": ("backup", "restore", "init", "join", "move-store"),
    "agent": ("join",),
    "edge": ("gateway",),
    "witness": ("add-site", "remove-site"),
    "simulate": ("placement", "leases", "rebalance", "forecast", "anomalies"),
    "policykit": ("init", "test"),
}


@functools.cache
def verbs_of(noun: str | None) -> dict[str, Entry]:
    """The verbs after ``noun`` (a kind's name), or those that stand on their own."""
    names = (noun,) if noun else tuple(BY_NAME)
    verbs = {verb: entry for verb, entry in VERBS.items() if not entry.kinds or set(entry.kinds) & set(names)}
    verbs |= AFTER.get(noun or "", {})
    for name in names:
        for verb in BY_NAME[name].verbs:
            if verb.name in ELSEWHERE or (noun is None and verb.name in BY_NAME):  # alone, it is that kind's name
                continue
            if verb.name in verbs:
                known = verbs[verb.name]
                verbs[verb.name] = known._replace(kinds=tuple(dict.fromkeys((*known.kinds, name))))
            elif verb.stream and verb.name in STREAMS:
                verbs[verb.name] = Entry(STREAMS[verb.name], verb.summary, (name,))
            elif verb.make is not None:
                verbs[verb.name] = Entry(SPECIAL.get((verb.name, name), verb.name), verb.summary, (name,))
            elif verb.changes:
                verbs[verb.name] = Entry(SPECIAL.get((verb.name, name), "act"), verb.summary, (name,))
    return {
        verb: entry._replace(summary=SUMMARIES.get((verb, noun or ""), entry.summary)) for verb, entry in verbs.items()
    }


def load(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """The command of ``verb``, from its file; made once."""
    return _load(verb, entry, kind.name if kind else "")


@functools.cache
def _load(verb: str, entry: Entry, kind: str) -> click.Command:
    file, _, name = SPECIAL.get((verb, kind), entry.module).partition(".")
    make = getattr(importlib.import_module(f"weft.cli.verbs.{file}"), f"{name}_command" if name else "command")
    command: click.Command = make(verb, entry, BY_NAME.get(kind))
    return command


class ReaderGone(Exception):
    """Nobody reads standard output any more. Click would end the process for a BrokenPipeError with its own exit code."""


class Words(click.Group):
    """A group whose commands are named by a table and loaded when used."""

    def entries(self) -> dict[str, Entry]:
        raise LookupError("a group of words knows its own")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.entries())

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0] if args[0] in self.entries() else SYNONYMS.get(args[0], args[0])
        command = self.get_command(ctx, word)
        if command is None:
            if ctx.resilient_parsing:
                return None, None, args[1:]
            if self.noun() is None and args[0] in PROGRAMS:
                raise _refuse_tool(ctx, args[0], args[1:])
            raise unknown_word(ctx, args[0], self.every_word(), self.noun())
        return word, command, args[1:]

    def noun(self) -> str | None:
        """The noun that these words come after."""
        return None

    def every_word(self) -> Iterable[str]:
        """All words that may stand here, for suggestions."""
        return self.entries()


class Noun(Words):
    """``weft vm …``"""

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind.name, help=f"{kind.summary}.", no_args_is_help=False, invoke_without_command=True)
        self.kind = kind
        self.callback = show_help

    def entries(self) -> dict[str, Entry]:
        return verbs_of(self.kind.name)

    def noun(self) -> str | None:
        return self.kind.name

    def every_word(self) -> Iterable[str]:
        return [*self.entries(), *PROCESS_WORDS.get(self.kind.name, ())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries().get(cmd_name)
        return load(cmd_name, entry, self.kind) if entry else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_section(formatter, "Verbs", self.entries())


class Root(Words):
    """``weft …``: nouns, verbs on their own, and tools."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as problem:
            raise ReaderGone from problem

    def entries(self) -> dict[str, Entry]:
        nouns = {kind.name: Entry("", kind.summary) for kind in KINDS}
        return {**nouns, **verbs_of(None), **TOOLS}

    def every_word(self) -> Iterable[str]:
        return [*self.entries(), *PROCESSES, *(word for kind in KINDS for word in (kind.plural, *kind.display.aliases))]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list({**self.entries(), **PROCESSES})

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word, command, left = super().resolve_command(ctx, args)
        if word is None or command is None or word not in verbs_of(None) or isinstance(command, click.Group):
            return word, command, left

        def find(kind: Kind) -> click.Command | None:
            entry = verbs_of(kind.name).get(word)
            return load(word, entry, kind) if entry is not None else None

        whose, chosen, left = choose_command(command, left, find, ctx)
        return f"{whose} {word}".strip(), chosen, left  # as it is called where its help has these flags

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in TOOLS:
            return load(cmd_name, TOOLS[cmd_name], None)
        if ctx.resilient_parsing and cmd_name in PROCESSES:  # to be completed; it is run by ``weft.launch.entry``
            words = [*PROCESS_WORDS[cmd_name], *(verbs_of(cmd_name) if cmd_name in BY_NAME else ())]
            return click.Group(cmd_name, [click.Command(word) for word in words])
        try:
            return Noun(find_kind(cmd_name))
        except NotFound:
            entry = verbs_of(None).get(cmd_name)
            return load(cmd_name, entry, None) if entry else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands that people use every day; ``write_all`` has the rest."""
        write_section(formatter, "Every day", DAILY, 34)
        topics: dict[str, list[str]] = {}
        for kind in KINDS:
            if kind.access.writer == "people":
                topics.setdefault(kind.display.topic or "Other", []).append(kind.name)
        with formatter.section("Objects: weft OBJECT VERB; weft OBJECT --help lists the verbs"):
            formatter.write_dl([(topic, ", ".join(names)) for topic, names in topics.items()], col_max=24)
        write_section(formatter, "More", MORE, 34)


def write_all(context: click.Context) -> str:
    """Every command with its summary."""
    formatter = context.make_formatter()
    people = [kind for kind in KINDS if kind.access.writer == "people"]
    fabric = [kind.name for kind in KINDS if kind.access.writer != "people"]
    write_section(formatter, "Objects (weft OBJECT VERB)", {k.name: Entry("", k.summary) for k in people})
    formatter.write_paragraph()
    formatter.write_text("  Made by weft itself, read-only: " + ", ".join(fabric) + ".")
    write_section(formatter, "Verbs (weft VERB KIND/NAME)", verbs_of(None))
    write_section(formatter, "Tools", TOOLS)
    write_section(formatter, "On the machines", PROCESSES)
    return formatter.getvalue().strip()


def unknown_word(ctx: click.Context, word: str, known: Iterable[str], noun: str | None = None) -> click.UsageError:
    """The error for an unknown command, with a suggestion: by other tools' names first, then by spelling, which never proposes what
    destroys."""
    if word.lower() in NOT_YET:
        nearest = find_missing(word, noun, verbs_of(noun))
        return usage(f"{ctx.command_path} {word}: not there yet", f"nearest: {nearest}" if nearest else "weft help all")
    if word.lower() in RENAMES and noun in BY_NAME:
        other = f"weft {noun} clone NAME NEW_NAME makes a copy; " if "clone" in verbs_of(noun) else ""
        return usage(
            f"{ctx.command_path} {word}: an object keeps its name", f"{other}weft {noun} label NAME KEY=VALUE marks it"
        )
    meant = find_command_meant(word, noun, verbs_of(noun), BY_NAME)
    if meant is None and noun is None and (kind := find_kind_meant(word)):
        meant = f"{ctx.command_path} {kind}"
    if meant is None and (near := suggest(word.lower(), [*known, *SYNONYMS], _ALIKE)):
        verb = SYNONYMS.get(near, near)
        meant = f"{ctx.command_path} {verb}" if verb not in DESTROYING else None
    if meant is None and noun is not None and word[:1] != "-" and (owners := able(noun)):  # weft snapshot web
        meant = find_command_meant(word, None, ()) or f"weft {owners[0]} {noun} {word[:40]}"
    if meant is None and word in BY_NAME and (owners := able(word)):  # weft container snapshot
        meant = f"weft {owners[0]} {word} NAME"
    hint = f"did you mean {meant}?" if meant else f"{ctx.command_path} --help"
    return usage(f"{ctx.command_path}: no such command: {word[:40]}", hint)


def _refuse_tool(ctx: click.Context, tool: str, line: Sequence[str]) -> click.UsageError:
    """The error for another tool's name, with weft's command for what comes after it."""
    command = _translate(tool, [word for word in line if not word.startswith("-")])
    example = f": {command}" if command else f", like {ctx.command_path} ps   {ctx.command_path} --help"
    return usage(f"{ctx.command_path}: no such command: {tool}", f"{ctx.command_path} takes the verb itself{example}")


def _translate(tool: str, words: Sequence[str]) -> str | None:
    """The command that ``words``, another tool's verb and nouns, are here; None if that isn't known."""
    noun = PROGRAMS[tool]
    if noun is None and words and (noun := _find_kind_name(words[0])):
        words = words[1:]
    if noun is not None:
        verb = SYNONYMS.get(words[0], words[0]) if words else "list"
        if verb == "create" and (owners := able(noun)):  # incus snapshot create web
            return f"weft {owners[0]} {noun} NAME"
        return f"weft {noun} {verb}" if verb in verbs_of(noun) else find_command_meant(verb, noun, verbs_of(noun))
    first, second, *names = [*words, *[""] * (2 - len(words))]
    verb, object_ = SYNONYMS.get(first, first), _find_kind_name(second)
    if object_ is not None and verb in verbs_of(object_):
        return f"weft {verb} {object_} NAME" if names else f"weft {verb} {BY_NAME[object_].plural}"
    if first in OTHERWISE:
        return f"weft {OTHERWISE[first]}" if OTHERWISE[first] else None
    if verb == "get" and (command := find_command_meant(second, None, ())):
        return command
    return f"weft {verb}" if verb in {*verbs_of(None), *TOOLS} else find_command_meant(first, None, ())


def _find_kind_name(word: str) -> str | None:
    try:
        return find_kind(word).name
    except NotFound:
        return find_kind_meant(word)


def write_section(formatter: click.HelpFormatter, title: str, entries: dict[str, Entry], width: int = 14) -> None:
    with formatter.section(title):
        formatter.write_dl([(word, entry.summary) for word, entry in entries.items()], col_max=width)


def show_help() -> None:
    context = click.get_current_context()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
