"""How the objects of a backed-up project are created again: what comes first, what gets another name, what is left alone. Pure."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from weft.kinds.backup import SET
from weft.kinds.fields.backup_verification import DAMAGED, FAILED
from weft.kinds.fields.cells import dig
from weft.kinds.parts.snapshot.backed_up import BackedUpObject, BackedUpProject
from weft.kinds.registry import BY_NAME
from weft.objects.errors import AlreadyExists
from weft.objects.identity import cut_name
from weft.objects.schema import read_strict

Object = Mapping[str, Any]
Key = tuple[str, str]  # kind and name
# What only the object of then could have, as of any copy, and what a restore sets by itself.
_OF_ONE = ("lease", "gang", "reservation", "node", "user_data", "aliases")
_OF_DISKS = ("volumes", "disk", "boot", "pool")
_SHOWN = 5


class ObjectRestore(msgspec.Struct, frozen=True):
    """``create`` it; ``restore`` it from ``backup``, with its volumes; it ``comes`` with another; ``share`` that of the project
    which was backed up; ``keep`` what is there; ``leave`` it out."""

    how: Literal["create", "restore", "comes", "share", "keep", "leave"]
    kind: str
    old: str
    name: str
    note: str = ""
    manifest: dict[str, Any] = {}
    backup: Object | None = None
    volumes: dict[str, str] = {}  # new names by old ones

    @property
    def what(self) -> str:
        return f"{self.kind}/{self.name}"


def choose_data(backups: Iterable[Object], of_objects: Object) -> dict[str, Object]:
    """The backup with the data of each thing, by KIND/NAME: that of the same whole, else the one made nearest to it."""
    whole, at = (of_objects.get("labels") or {}).get(SET), _taken(of_objects)
    chosen: dict[str, tuple[bool, float, Object]] = {}
    for one in backups:
        of, state = str(dig(one, "spec.of")), dig(one, "status.state")
        is_good = dig(one, "status.phase") == "Ready" and state not in (DAMAGED, FAILED)
        if not is_good or one.get("deleting_since") or dig(one, "spec.to") != dig(of_objects, "spec.to"):
            continue
        rank = ((one.get("labels") or {}).get(SET) != whole or not whole, abs(_taken(one) - at), one)
        if of not in chosen or rank[:2] < chosen[of][:2]:
            chosen[of] = rank
    return {of: one for of, (_, _, one) in chosen.items()}


def _taken(backup: Object) -> float:
    return float(dig(backup, "status.taken_at") or 0.0)


def plan_restore(
    held: BackedUpProject,
    data: Mapping[str, Object],
    existing: Mapping[Key, Object],
    *,
    prefix: str,
    keep: bool,
    lent: Collection[Key] = (),
) -> list[ObjectRestore]:
    """The steps in order. ``existing``: the specs of what the project has, by kind and name. ``prefix``: of new names. ``keep``:
    leave what is there as it is. ``lent``: what the project that was backed up still has, and may share with another. Raises
    AlreadyExists for what is there and is another."""
    names = {(one.kind, one.name): _name(one, prefix) for one in held.objects}
    shared = {key for key in names if key in lent and key not in existing}
    names |= {key: f"{held.project}/{key[1]}" for key in shared}
    objects = [_rename_within(one, names) for one in _sort(held.objects)]
    there = {(one.kind, one.name) for one in objects if (one.kind, names[one.kind, one.name]) in existing}
    same = {key for key in there if _is_same(key[0], existing[key[0], names[key]], _find(objects, key))}
    others = sorted(f"{kind}/{names[kind, name]}" for kind, name in there - same if not prefix or _is_renamed(kind))
    if others and not keep:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise AlreadyExists(
            f"there already: {', '.join(others[:_SHOWN])}{more}",
            field="name",
            hint="--keep-existing leaves them as they are; --new-name PREFIX creates what runs or has data as PREFIX-NAME; "
            "--into PROJECT restores into another project",
            details={"by": others},
        )
    comes = _find_what_comes(objects, data, there)
    steps: list[ObjectRestore] = []
    for one in objects:
        key = one.kind, one.name
        if key in there:
            note = "it is there, and the same" if key in same else "it is there, and stays as it is"
            steps.append(ObjectRestore("keep", *key, names[key], note))
        elif key in shared:
            steps.append(ObjectRestore("share", *key, names[key]))
        else:
            steps += _plan_one(one, names, data, comes)
    return steps


def _plan_one(
    one: BackedUpObject, names: Mapping[Key, str], data: Mapping[str, Object], comes: Mapping[str, str]
) -> list[ObjectRestore]:
    key = one.kind, one.name
    name, backup = names[key], data.get(f"{one.kind}/{one.name}")
    spec, left = _leave_out(one)
    manifest = {"kind": one.kind, "name": name, "labels": one.labels, "spec": spec}
    snapshots = BY_NAME[one.kind].snapshots
    if BY_NAME[one.kind].in_backups == "named" and not is_fetched(spec):
        return [ObjectRestore("leave", *key, name, f"its content is in no backup: weft image add {one.name} FILE")]
    if snapshots == "volume" and one.name in comes:
        return [ObjectRestore("comes", *key, name, f"with {comes[one.name]}")]
    volumes = {
        disk: names.get(("volume", disk), disk)
        for disk in (dig(backup, "status.disks", {}) if backup is not None else {})
        if disk != "root"
    }
    if snapshots == "mounts" and backup is not None:
        first = ObjectRestore(
            "restore", "volume", one.name, next(iter(sorted(volumes.values())), ""), "its volumes", {}, backup, volumes
        )
        made = [first] if volumes and set(volumes) <= comes.keys() else []
        return [*made, ObjectRestore("create", *key, name, "", manifest)]
    if one.has_data and backup is None:
        return [ObjectRestore("leave", *key, name, "no good backup has its data")]
    if one.has_data and backup is not None:
        fields = {field: value for field, value in spec.items() if field not in _OF_DISKS}
        given = {"new_name": name, "volumes": volumes if snapshots == "machine" else {}, "labels": one.labels}
        given |= {"pool": one.spec["pool"]} if one.spec.get("pool") else {}
        return [
            ObjectRestore(
                *("restore", *key, name, left),
                {**given, "spec": fields} if snapshots == "machine" else given,
                backup,
                volumes,
            )
        ]
    return [ObjectRestore("create", *key, name, left, manifest)]


def _leave_out(one: BackedUpObject) -> tuple[dict[str, Any], str]:
    """Its spec without what only the one of then could have, and that in words."""
    left = [name for name in _OF_ONE if one.spec.get(name)]
    spec = {name: value for name, value in one.spec.items() if name not in _OF_ONE}
    return spec, f"without {', '.join(left)}" if left else ""


def is_fetched(image: Mapping[str, Any]) -> bool:
    """Whether weft can fetch it again: it wasn't uploaded, nor read from a server's own disk."""
    return str(image.get("url") or "").startswith(("http://", "https://", "oci://", "docker://"))


def _find_what_comes(
    objects: Sequence[BackedUpObject], data: Mapping[str, Object], there: Collection[Key]
) -> dict[str, str]:
    """The volumes that are restored with what has them: by name, with what."""
    comes = dict[str, str]()
    for one in objects:
        backup = data.get(f"{one.kind}/{one.name}")
        if BY_NAME[one.kind].snapshots not in ("machine", "mounts") or backup is None or (one.kind, one.name) in there:
            continue
        for disk in dig(backup, "status.disks", {}) or {}:
            if disk != "root" and ("volume", disk) not in there:
                comes[disk] = f"{one.kind}/{one.name}"
    return comes


def _is_renamed(kind: str) -> bool:
    return BY_NAME[kind].in_backups in ("renamed", "unended")


def _name(one: BackedUpObject, prefix: str) -> str:
    return cut_name(f"{prefix}-{one.name}") if prefix and _is_renamed(one.kind) else one.name


def _find(objects: Sequence[BackedUpObject], key: Key) -> BackedUpObject:
    return next(one for one in objects if (one.kind, one.name) == key)


def _is_same(kind: str, existing: Object, one: BackedUpObject) -> bool:
    """Whether what is there is as it was then. Of a secret nobody can tell, and data may be another."""
    if BY_NAME[kind].admission.seals or _is_renamed(kind):
        return False
    if BY_NAME[kind].in_backups == "named":
        return True
    type_ = BY_NAME[kind].spec
    hidden = {*BY_NAME[kind].admission.kept_fields, "values", "sealed"}
    own = {name: value for name, value in existing.items() if name not in hidden}
    return bool(read_strict(own, type_, "spec") == read_strict(one.spec, type_, "spec"))


def _sort(objects: Sequence[BackedUpObject]) -> list[BackedUpObject]:
    """Sort the objects: what others refer to comes first; of those that refer to each other, in the order of their names."""
    left = {(one.kind, one.name): one for one in sorted(objects, key=lambda one: (one.kind, one.name))}
    needs = {key: {need for need in list_needs(one) if need in left and need != key} for key, one in left.items()}
    found: list[BackedUpObject] = []
    while left:
        ready = [key for key in left if not needs[key] & left.keys()] or [next(iter(left))]
        found += [left.pop(key) for key in ready]
    return found


def list_needs(one: BackedUpObject) -> list[Key]:
    """List what its spec names, as far as it can be read."""
    kind = BY_NAME[one.kind]
    spec = read_strict(one.spec, kind.spec, "spec")
    marks = kind.marks() if kind.marks is not None else None  # a backup has none
    return [(ref.kind, name) for ref in kind.references for name in ref.list_names(one.name, spec, marks)]


def _rename_within(one: BackedUpObject, names: Mapping[Key, str]) -> BackedUpObject:
    """It, with the new names of what it names."""
    spec = copy.deepcopy(one.spec)
    renamed = {key: names[key] for key in list_needs(one) if names.get(key, key[1]) != key[1]}
    for (kind, old), new in renamed.items():
        spec = _replace(spec, kind, old, new)
    return msgspec.structs.replace(one, spec=spec)


def bring_topics(manifest: dict[str, Any], source: str, project: str) -> dict[str, Any]:
    """It, with the topics of devices that invoke it in ``project`` rather than in ``source``: it can name no other's."""
    topics = dig(manifest, "spec.topics")
    if not topics or source == project:
        return manifest
    before, after = f"weft/{source}/", f"weft/{project}/"
    brought = [after + one.removeprefix(before) if one.startswith(before) else one for one in topics]
    return {**manifest, "spec": {**manifest["spec"], "topics": brought}}


def _replace(value: Any, kind: str, old: str, new: str) -> Any:
    """``old`` as a whole word of a spec: alone, as KIND/NAME, or before a colon, as mounts have it."""
    if isinstance(value, dict):
        return {name: _replace(one, kind, old, new) for name, one in value.items()}
    if isinstance(value, list):
        return [_replace(one, kind, old, new) for one in value]
    if not isinstance(value, str):
        return value
    head, colon, rest = value.partition(":")
    if head in (old, f"{kind}/{old}"):
        return f"{head.removesuffix(old)}{new}{colon}{rest}"
    return value
