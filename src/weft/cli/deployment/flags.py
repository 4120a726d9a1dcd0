"""Flags of deployments: those of the instances' kind, and how a change reaches the instances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.flags import flag_fields, flag_parameter, make_flags, name_flag, read_flags, read_pairs
from weft.cli.command.target import usage
from weft.cli.manifest.check import check_spec, reword
from weft.cli.manifest.config import read_config
from weft.kinds.deployment import DEPLOYMENT, FIXED, TEMPLATES
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind
from weft.kinds.vm import VM
from weft.objects.errors import WeftError
from weft.objects.quantity import parse_share

_STRATEGIES = ("rolling", "blue-green", "canary")
_ONLY = {  # what only some strategies heed
    "traffic_split": ("blue-green",),
    "keep_old": ("blue-green",),
    "canary_steps": ("canary",),
    "monitor_duration": ("canary", "blue-green"),
    "on_undecided": ("canary", "blue-green"),
}
_HIDDEN = tuple(f"spec.{name}" for name in FIXED)


class Share(click.ParamType[float]):
    """A part of the whole, like 5%."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_share(value, name := param.opts[0] if param else "share")
        except WeftError as problem:
            self.fail(f"{problem.message.removeprefix(f'{name}: ')}; {problem.hint}", param, ctx)


def make_template_flags(*kinds: Kind) -> list[click.Parameter]:
    """A flag for each field of an instance; where two kinds have one of the same name, the first one's. A rollout's own flags come
    before those of fields."""
    made: list[click.Parameter] = []
    taken = {name for flag in make_strategy_flags() for name in (*flag.opts, *flag.secondary_opts)}
    hidden = {flag_parameter(path) for path in _HIDDEN}
    for kind in kinds:
        for flag in make_flags(kind):
            name = flag.name or ""
            flag.opts = [word for word in flag.opts if word != "--strategy"]  # here that is the rollout's
            words = {*flag.opts, *flag.secondary_opts, name}
            if not taken & words and not any(name == one or name.startswith(f"{one}__") for one in hidden):
                made.append(flag)
                taken |= words
    return made


def make_strategy_flags() -> list[click.Parameter]:
    """How a change reaches the instances; the names are those of the fields of ``strategy``."""
    duration, share = options.Duration(), Share()
    return [
        click.Option(
            ["--strategy", "strategy__type"],
            type=click.Choice(_STRATEGIES),
            help="How a change reaches the instances: one after another, as a whole set, or by a part of the requests.",
        ),
        click.Option(
            ["--max-unavailable", "strategy__max_unavailable"],
            type=click.IntRange(0),
            metavar="N",
            help="How many instances may be missing. [1]",
        ),
        click.Option(
            ["--max-surge", "strategy__max_surge"],
            type=click.IntRange(0),
            metavar="N",
            help="How many further instances there may be. [1]",
        ),
        click.Option(
            ["--health-check-timeout", "strategy__health_check_timeout"],
            type=duration,
            help="How long to wait for the next healthy instance. [5m]",
        ),
        click.Option(
            ["--rollback-on-failure/--no-rollback-on-failure", "strategy__rollback_on_failure"],
            default=None,
            help="Go back to the old revision if the new one fails. Like all of the strategy, it stays for later updates.",
        ),
        click.Option(
            ["--traffic-split", "strategy__traffic_split"],
            type=share,
            help="blue-green: share of the requests for the new set until it is promoted, like 10%.",
        ),
        click.Option(
            ["--canary-percent", "strategy__canary_steps"],
            metavar="SHARE,…",
            multiple=True,
            help="canary: share of the requests for the new revision, one for each step. [5%]",
        ),
        click.Option(
            ["--success-threshold", "strategy__success_threshold"],
            type=share,
            help="canary: share of the requests that must succeed. [99.9%]",
        ),
        click.Option(
            ["--monitor-duration", "strategy__monitor_duration"],
            type=duration,
            help="canary: how long each step is watched. [10m]",
        ),
        click.Option(
            ["--auto-promote/--no-auto-promote", "strategy__auto_promote"],
            default=None,
            help="Promote without a person's word once the new revision is judged good; this update and later ones.",
        ),
        click.Option(
            ["--on-undecided", "strategy__on_undecided"],
            type=click.Choice(("hold", "promote", "revert")),
            help="canary: what to do when too few requests came to judge. [hold]",
        ),
        click.Option(
            ["--keep-old", "strategy__keep_old"],
            type=duration,
            help="blue-green: how long the old set is kept after the switch. [5m]",
        ),
    ]


def read_strategy(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``strategy`` that were given."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        field = name.removeprefix("strategy__")
        if field == name or value is None or value == ():
            continue
        found[field] = value
        if field == "canary_steps":
            steps = [part for text in value for part in text.split(",") if part]
            found[field] = [parse_share(step, "--canary-percent") for step in steps]
    return found


def check_update(
    deployment: Mapping[str, Any],
    template: Mapping[str, Any],
    strategy: Mapping[str, Any],
    labels: Mapping[str, str] | None = None,
    instance: str = "",
    *,
    chooses: bool = True,
) -> None:
    """Raises the first problem of an update that ``strategy`` is given for, in words of the flags: before anything is changed.
    ``chooses``: the command has a flag --strategy."""
    spec = deployment["spec"]
    merged = {**(spec.get("strategy") or {}), **strategy}
    check_strategy_flags(strategy, merged.get("type", "rolling"), chooses=chooses)
    labels = dig(deployment, "spec.labels", {}) if labels is None else labels
    asked = {**spec, "template": dict(template), "strategy": merged, "labels": dict(labels), "instance": instance}
    check_asked(asked)


def check_strategy_flags(strategy: Mapping[str, Any], doing: str, *, chooses: bool = True) -> None:
    """Raises UsageError for the first field of ``strategy`` that an update of type ``doing`` doesn't heed."""
    for field in strategy:
        heeding = _ONLY.get(field, _STRATEGIES)
        if doing not in heeding:
            wanted = " or ".join(f"--strategy {one}" for one in heeding)
            raise usage(
                f"{_name_flag(field)} has no effect on a {doing} update",
                f"add {wanted}, or leave it out" if chooses else "leave it out",
            )


def check_asked(spec: Mapping[str, Any]) -> None:
    """Raises the first problem of a deployment's whole spec, in words of the flags."""
    for problem in check_spec(DEPLOYMENT, spec):
        at = (problem.field or "").removeprefix("spec.strategy.")
        if at != problem.field and problem.field:
            raise reword(problem, problem.message.replace(problem.field, _name_flag(at), 1), problem.hint)
        raise problem


def _name_flag(field: str) -> str:
    """The flag of a field of ``strategy``."""
    return "--canary-percent" if field == "canary_steps" else f"--{field.replace('_', '-')}"


def read_template(kind: Kind, given: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """``base``, the template or a part of it, with the flags of its fields over it. Raises UsageError for another kind's."""
    own = {flag_parameter(doc.path) for doc in flag_fields(kind)}
    for other in TEMPLATES.values():
        for doc in flag_fields(other):
            name = flag_parameter(doc.path)
            if name not in own and given.get(name) not in (None, ()):
                flag = f"--{doc.path.rpartition('.')[2].replace('_', '-')}"
                hint = "add --vm" if other is VM else "leave out --vm"
                raise usage(f"{flag}: instances that are {kind.plural} have no such field", hint)
    return read_flags(kind, given, base)


def check_template(kind: Kind, template: Mapping[str, Any]) -> None:
    """Raises the first problem, in words of the flags."""
    for problem in check_spec(kind, template):
        raise name_flag(kind, problem)


def read_labels(given: Mapping[str, Any]) -> dict[str, str]:
    return read_pairs(given["labels"], "label")


def read_workload_config(file: str, kind: Kind) -> dict[str, Any]:
    """The spec in ``file``: that of a VM or a container, as ``weft vm create --config`` takes it. Raises InvalidInput."""
    return dict(read_config(file, kind).value["spec"])
