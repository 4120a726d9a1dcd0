"""A flag for every field of a spec, so that a new kind or field has its own for free; and the way back to a spec.

Pure but for reading the files that long texts are taken from."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import re
import shlex
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import inspect as mi

from weft.cli.command.completion import complete_name, complete_strategy
from weft.cli.command.options import Moment
from weft.cli.command.synonyms import FIELDS
from weft.client.small_file import read_small
from weft.kinds.allocation import HealthCheck
from weft.kinds.job import FIXED
from weft.kinds.parts.snapshot.restored import VmOrigin
from weft.kinds.priority_class import PRIORITY_CLASS
from weft.kinds.quota import AccountLimits
from weft.kinds.record import Kind
from weft.kinds.registry import WORKLOADS
from weft.objects.errors import InvalidInput, WeftError, begin_small
from weft.objects.schema import FieldDoc, describe_fields, suggest

# Fields that verbs, the server or words of every command set; a flag for them would only confuse.
_KEPT = ("spec.run", "spec.lease.cancelled", "spec.lease.priority_class")
_OF_SNAPSHOTS = (*(f"spec.origin.{name}" for name in VmOrigin.__struct_fields__),)
_NO_FLAG = {
    **dict.fromkeys(WORKLOADS, _KEPT),
    "vm": (*_KEPT, *_OF_SNAPSHOTS),
    "container": (*_KEPT, "spec.lease.preemptible"),  # it has a field of its own for that
    "token": ("spec.project",),
    "cluster": ("spec.values", "spec.sealed", "spec.ca", "spec.witness"),
    "rolebinding": ("spec.project",),
    "quota": ("spec.users", *(doc.path for doc in describe_fields(AccountLimits, "spec.per_user"))),
    "conversion": ("spec.confirm",),
    "recommendation": ("spec.assumed",),
    "volume": ("spec.values", "spec.sealed"),
    "function": ("spec.code", "spec.code_size", "spec.schedule"),
    "model": ("spec.file", "spec.fallback.value"),
    "job": (
        "spec.task.lease.cancelled",
        "spec.task.lease.preemptible",
        "spec.task.lease.priority_class",
        *(f"spec.task.{name}" for name in FIXED),
        *(f"spec.task.health_check.{name}" for name in HealthCheck.__struct_fields__),
    ),
}
_MORE_NAMES = {
    "spec.restart": ("restart-policy",),  # where `--restart` is an act
    "spec.keep": ("retention",),
    "spec.gang": ("group",),  # as some say
    "spec.env_secrets": ("env-secret",),
    "spec.strategy": ("placement-strategy",),  # where a strategy could be one of updates
}
# Fields with a shorter name than their path.
_SHORT = {
    "lease.mode": "lease",
    "lease.deadline_at": "deadline",
    "autonomy_seconds": "autonomy",
    "made_from": "from",
} | {f"lease.{name}": name for name in ("start", "duration", "preemptible", "priority")}
# How a value is written, by the field's last name, where its type doesn't show that.
FORMS = {
    "image": "IMAGE",
    "iso": "IMAGE",
    "made_from": "vm/NAME",
    "cpu_model": "MODEL",
    "networks": "NAME[:ADDRESS]",
    "publish": "HOST:GUEST[/udp]",
    "ports": "PORT[:TARGET][/udp]",
    "checks": "REPLICA=TYPE:TARGET",
    "weights": "LABEL=VALUE:PER_MILLE",
    "prefer": "EXPRESSION[;weight=W]",
    "strategy": "STRATEGY[:WEIGHT],…",
    "serverless": "STRATEGY[:WEIGHT],…",
    "rules": "KIND=VERB,…",
    "tolerate": "NAME[=VALUE]",
    "affinity_groups": "NAME[:preferred]",
    "anti_affinity_groups": "NAME[:preferred]",
    "spread": "KEY[:SKEW][:preferred]",
    "data_hints": "POOL:DATA|volume:NAME",
    "near": "talkers|device/NAME",
    "topics": "TOPIC",
    "gang": "NAME:COUNT",
    "resources": "NAME=AMOUNT",
    "gpu_models": "MODEL",
    "env_secrets": "NAME=SECRET/KEY",
    "mounts": "NAME:/PATH[:ro]",
    "command": "WORD",
    "args": "WORD",
    "user": "USER[:GROUP]",
    "runtime": "RUNTIME",
    "kind": "KIND",
    "add_capabilities": "CAPABILITY",
    "drop_capabilities": "CAPABILITY",
    "array": "FIRST-LAST|INDEX,…",
    "after": "NAME[:ended]",
    "schedule": "CRON",
    "time_zone": "ZONE",
    "aliases": "NAME=VERSION",
    "handler": "MODULE.FUNCTION",
    "url": "URL",
    "on": "alerts|KIND.REASON",
    "sha256": "HEX",
    "cidr": "CIDR",
    "domain": "DOMAIN",
    "ingress": "PROTOCOL[:PORTS] [from PEER]",
    "egress": "PROTOCOL[:PORTS] [to PEER]",
    "pool": "POOL",
    "volume": "VOLUME",
    "registry": "HOST[:PORT]",
    "workload": "KIND/NAME",
    "instead_of": "KIND/NAME",
    "new_name": "NAME",
    "changes": "FIELD=VALUE",
    "node": "NODE",
    "shared_with": "PROJECT",
}
_SHORT_KINDS = {"backuprepository": "REPOSITORY"}
_STRATEGIES = ("spec.strategy", "spec.serverless")
_LONG_TEXT = 4096  # a text that may be longer is taken from a file
_BOOLEAN, _MAP, _VALUES, _LISTS, _LIST = "true or false", "map", "map of values", "map of lists", "list of "
_WHOLE = ("list of expression", "list of word")  # a comma is a part of them


def flag_fields(kind: Kind) -> list[FieldDoc]:
    """The spec's fields that have a flag."""
    hidden = _NO_FLAG.get(kind.name, ())
    return [
        doc
        for doc in describe_fields(kind.spec)
        if doc.path not in hidden and doc.type != "fields" and "[]" not in doc.path
    ]


def make_flags(kind: Kind) -> list[click.Parameter]:
    """One option for every field, all of them optional: a file may give them instead."""
    long_texts = _long_texts(kind.spec)
    flags: list[click.Parameter] = []
    named = _named_kinds(kind)
    for doc in flag_fields(kind):
        flag = flag_name(doc)
        shared: dict[str, Any] = {"help": _help(doc), "default": None}
        if doc.path in _STRATEGIES:
            shared["shell_complete"] = complete_strategy
        elif doc.path in named or _takes_class(doc):
            shared["shell_complete"] = complete_name(named.get(doc.path, PRIORITY_CLASS.name))
        names = [f"--{name}" for name in (flag, *_MORE_NAMES.get(doc.path, ()))]
        if doc.type == _BOOLEAN:
            flags.append(click.Option([f"--{flag}/--no-{flag}", _parameter(doc)], **shared))
        elif _takes_many(doc):
            names = list(dict.fromkeys([f"--{flag}", *names[1:], f"--{_dashed(doc)}"]))
            metavar = "FILE" if doc.path in long_texts else _form(doc, named)
            flags.append(click.Option([*names, _parameter(doc)], multiple=True, metavar=metavar, **shared))
        elif doc.type == "time":
            flags.append(click.Option([*names, _parameter(doc)], type=Moment(), metavar="TIME", **shared))
        elif " | " in doc.type:
            choice = click.Choice(doc.type.split(" | "))
            flags.append(click.Option([*names, _parameter(doc)], type=choice, **shared))
        else:
            metavar = "FILE" if doc.path in long_texts else _form(doc, named)
            flags.append(click.Option([*names, _parameter(doc)], metavar=metavar, **shared))
    return flags


def _form(doc: FieldDoc, named: Mapping[str, str]) -> str:
    """The form of a value of the field in help, like NAME=SECRET/KEY."""
    name = doc.path.rpartition(".")[2]
    if _takes_class(doc):
        return "N|CLASS"
    if name in FORMS:
        return FORMS[name]
    if doc.type == "text" and doc.path in named:
        return _SHORT_KINDS.get(named[doc.path], named[doc.path].upper())
    if doc.type in (_MAP, _VALUES):
        return "KEY=VALUE"
    if doc.type.startswith(_LIST):
        return flag_name(doc).upper()
    return {"whole number": "N", "auto or number": "auto|N", "auto or duration": "auto|DURATION"}.get(
        doc.type, doc.type.upper().replace(" ", "-")
    )


def _takes_class(doc: FieldDoc) -> bool:
    """Whether its flag takes a number, or the name of the class that gives it."""
    return doc.path.endswith("lease.priority")


def _named_kinds(kind: Kind) -> dict[str, str]:
    """The fields that name other objects, and of which kind."""
    return {path: one.kind for one in kind.references for path in re.findall(r"spec\.[a-z_.]+", one.field)}


def read_flags(kind: Kind, given: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """``spec`` with the flags that were given put over it. Raises InvalidInput for a file that can't be read."""
    result = copy.deepcopy(dict(spec))
    long_texts = _long_texts(kind.spec)
    for doc in flag_fields(kind):
        value = given.get(_parameter(doc))
        if value is None or value == ():
            continue
        *way, last = doc.path.split(".")[1:]
        place = result
        for step in way:
            place[step] = place.get(step) or {}
            place = place[step]
        if _takes_class(doc):
            place[last] = number = _read_value(doc, value)
            place["priority_class"] = None
            if isinstance(number, str):
                place[last], place["priority_class"] = 0, number
        elif doc.path not in long_texts:
            place[last] = _read_value(doc, value)
        elif doc.type.startswith(_LIST):
            place[last] = [line for text in value for line in _read_lines(text, flag_name(doc))]
        else:
            place[last] = _read_text(value, flag_name(doc))
    return result


def read_assignments(kind: Kind, texts: Sequence[str]) -> dict[str, Any]:
    """``memory=8G``, ``cpu=2``: fields of a spec by the names of their flags. Raises UsageError."""
    given: dict[str, Any] = {}
    docs = {name: doc for doc in flag_fields(kind) for name in (flag_name(doc), _dashed(doc))}
    for text in texts:
        name, sign, value = text.partition("=")
        name = name.strip().lstrip("-").replace("_", "-")
        begun = [known for known in docs if name and known.startswith(name)]
        doc = docs.get(name) or docs.get(FIELDS.get(name, begun[0] if len(begun) == 1 else ""))
        if not sign or doc is None:
            meant = suggest(name, list(docs))
            raise click.UsageError(
                f"{text!r}: write FIELD=VALUE" + (f"; did you mean {meant}?" if meant and sign else "")
            )
        if not _takes_many(doc):
            refuse_twice(_parameter(doc), given, flag_name(doc))
        given[_parameter(doc)] = (*given.get(_parameter(doc), ()), value) if _takes_many(doc) else value
    return read_flags(kind, given, {})


def name_flag(kind: Kind, problem: WeftError) -> WeftError:
    """``problem``; if a field is missing, with the flag that sets it."""
    for doc in flag_fields(kind):
        within = doc.required and doc.path.startswith(
            f"{problem.field}."
        )  # of a set of fields that is missing altogether
        if (problem.field == doc.path or within) and problem.message == f"{problem.field} is missing":
            problem.hint = f"give --{flag_name(doc)} ({begin_small(doc.description)})"
    return problem


def flag_name(doc: FieldDoc) -> str:
    """``--network`` for the field networks: a list's flag is given once for each item."""
    name = _dashed(doc)
    if not (doc.type.startswith(_LIST) or doc.type == _LISTS) or not name.endswith("s") or name.endswith("ss"):
        return name
    return f"{name[:-3]}y" if name.endswith("ies") else name[:-1]


def _dashed(doc: FieldDoc) -> str:
    path = doc.path.partition(".")[2].removeprefix("task.")  # a job's task is written like a container
    path = _SHORT.get(path, path)
    return path.replace(".", "-").replace("_", "-")


def flag_parameter(path: str) -> str:
    """The command's parameter that stands for the field at ``path``."""
    return path.partition("[")[0].replace(".", "__")


def _takes_many(doc: FieldDoc) -> bool:
    return doc.type in (_MAP, _VALUES, _LISTS) or doc.type.startswith(_LIST)


def _parameter(doc: FieldDoc) -> str:
    return flag_parameter(doc.path)


def _help(doc: FieldDoc) -> str:
    default = "" if doc.default in (None, "", [], {}, False, 0) else f" [{_show_default(doc)}]"
    only = "; beyond it there is only a warning" if doc.path.startswith("spec.soft.") else ""  # a quota's other limits
    return f"{doc.description}{only}.{default}" if doc.description else default.strip()


def _show_default(doc: FieldDoc) -> str:
    if doc.type == "size":
        return f"{doc.default / 2**30:g}G" if doc.default % 2**30 == 0 else f"{doc.default / 2**20:g}M"
    if doc.type == "duration" and isinstance(doc.default, float):
        return _show_duration(doc.default)
    if doc.path.endswith("_ms"):
        return f"{doc.default}ms"
    if isinstance(doc.default, list):
        return ",".join(map(str, doc.default))
    return "yes" if doc.default is True else f"{doc.default:g}" if isinstance(doc.default, float) else str(doc.default)


def _show_duration(seconds: float) -> str:
    """``90`` → ``90s``, ``21600`` → ``6h``: in the largest unit of which it is a whole number."""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


def _read_value(doc: FieldDoc, value: Any) -> Any:
    if doc.type in (_MAP, _VALUES):
        pairs = {} if value == ("",) else read_pairs(value, flag_name(doc), _form(doc, {}))
        return pairs if doc.type == _MAP else {key: read_scalar(text) for key, text in pairs.items()}
    if doc.type == _LISTS:
        return _read_lists(value, flag_name(doc), _form(doc, {}))
    if doc.type in _WHOLE:
        words = [text for text in value if text]
        return (
            _split_command(words[0], f"--{flag_name(doc)}")
            if doc.path.endswith(".command") and len(words) == 1
            else words
        )
    if doc.type.startswith(_LIST):
        return [_number(doc.type, item) for text in value for item in text.split(",") if item]
    if value == "" and doc.default is None and not doc.required:
        return None  # as if it had never been set
    return _number(doc.type, value)


def _split_command(text: str, flag: str) -> list[str]:
    """The words of a command that is given as one text, as a shell would have them. Raises UsageError."""
    try:
        return shlex.split(text)
    except ValueError as problem:
        raise click.UsageError(f"{flag}: {text!r} can't be split into words: {problem}") from None


def _number(type_: str, value: Any) -> Any:
    """A number if the field takes one and the text is one; anything else is left for the field's own error."""
    if isinstance(value, str) and type_.removeprefix(_LIST) in ("whole number", "number"):
        for read in (int, float):
            with contextlib.suppress(ValueError):
                number = read(value)
                return number if math.isfinite(number) else value
    return value


def read_pairs(texts: tuple[str, ...], flag: str, form: str = "KEY=VALUE") -> dict[str, str]:
    """``a=1`` and ``b=2,c=3`` as one map. Raises UsageError for a part without a sign."""
    pairs: dict[str, str] = {}
    for text in texts:
        for part in text.split(","):
            key, sign, value = part.partition("=")
            if not sign or not key:
                raise click.UsageError(f"--{flag} {text}: write {form}")
            refuse_twice(key, pairs, f"--{flag}")
            pairs[key] = value
    return pairs


def refuse_twice(name: str, before: Container[str], flag: str) -> None:
    """Raise UsageError for a name that ``flag`` has given before: one of the two values would silently win."""
    if name in before:
        raise click.UsageError(f"{flag}: {name} is given twice; keep one of them")


def read_scalar(text: str) -> bool | int | float | str:
    """A number, true or false as JSON writes them, a text in quotes, and of anything else the text as it is."""
    try:
        return msgspec.json.decode(text, type=bool | int | float | str)
    except msgspec.MsgspecError:
        return text


def _read_lists(texts: tuple[str, ...], flag: str, form: str) -> dict[str, list[str]]:
    """``a=1,2`` and ``a=3`` as lists by their keys. Raises UsageError for a text without a sign."""
    lists: dict[str, list[str]] = {}
    for text in texts:
        key, sign, values = text.partition("=")
        if not sign or not key:
            raise click.UsageError(f"--{flag} {text}: write {form}")
        lists.setdefault(key, []).extend(value for value in values.split(",") if value)
    return lists


def _read_lines(value: str, flag: str) -> list[str]:
    """The lines of a file, such as public keys; a value of several words is such a line itself."""
    if " " in value.strip() and not Path(value).exists():
        return [value.strip()]
    return [line.strip() for line in _read_text(value, flag).splitlines() if line.strip() and not line.startswith("#")]


def _read_text(value: str, flag: str) -> str:
    if value.startswith(("#!", "#cloud-config\n")):
        return value
    try:
        return read_small(Path(value))
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror.lower() if isinstance(problem, OSError) and problem.strerror else "not text in UTF-8"
        raise InvalidInput(
            f"--{flag} {value}: {why}", field=flag, hint="give a readable file, or the text itself"
        ) from None


@functools.cache
def _long_texts(type_: type[msgspec.Struct]) -> set[str]:
    info = mi.type_info(type_)
    fields = info.fields if isinstance(info, mi.StructType) else ()
    return {f"spec.{f.encode_name}" for f in fields if _most_letters(f.type) > _LONG_TEXT}


def _most_letters(info: mi.Type) -> int:
    while isinstance(info, (mi.Metadata, mi.ListType)):
        info = info.type if isinstance(info, mi.Metadata) else info.item_type
    return (info.max_length or 0) if isinstance(info, mi.StrType) else 0
