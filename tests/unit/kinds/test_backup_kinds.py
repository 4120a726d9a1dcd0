"""Backups and their repositories: what is refused, with the field and the remedy, and never with a value."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kinds.backup import BACKUP, BackupSpec, check_backup
from weft.kinds.backup_policy import BACKUP_POLICY, BackupPolicySpec
from weft.kinds.backup_repository import BackupRepositorySpec, check_repository
from weft.kinds.node import NodeSpec
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, KINDS
from weft.kinds.volume import VolumeStatus
from weft.objects.errors import InUse, InvalidInput
from weft.objects.identity import Ref
from weft.objects.schema import read_strict

SECRET = "hunter2-hunter2"
ACCESS = {"access_key": "AK", "secret_key": SECRET}
BUCKET = "s3://backups?endpoint=https://s3.example.com"


@pytest.mark.parametrize(
    "spec",
    [
        {"url": "dir:///srv/backups"},
        {"url": "dir:///srv/my backups/a", "values": {"key": "0a" * 32}},
        {"url": "dir:///srv/backups", "values": {"key": "0A" * 32}},
        {"url": BUCKET, "values": ACCESS},
        {"url": "s3://backups?endpoint=http://10.0.0.1:9000&region=eu&prefix=weft/a", "values": ACCESS},
        {"url": BUCKET, "values": ACCESS, "immutable": True},
        {"url": BUCKET, "sealed": {"key": "x", "access_key": "x", "secret_key": "x"}},
    ],
)
def test_places_for_backups_are_accepted(spec: dict[str, Any]) -> None:
    check_repository(BackupRepositorySpec(**spec))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"url": ""}, "spec.url"),
        ({"url": "/srv/backups"}, "spec.url"),
        ({"url": "file:///srv/backups"}, "spec.url"),
        ({"url": "https://[::1/backups"}, "spec.url"),
        ({"url": f"https://AK:{SECRET}@s3.example.com/backups"}, "spec.url"),
        ({"url": f"s3://AK:{SECRET}@backups?endpoint=https://s3.example.com", "values": ACCESS}, "spec.url"),
        ({"url": f"s3://[AK:{SECRET}@backups"}, "spec.url"),
        ({"url": f"s3://backups?secret_key={SECRET}", "values": ACCESS}, "spec.url"),
        ({"url": f"s3://backups?endpoint=https://AK:{SECRET}@s3.example.com", "values": ACCESS}, "spec.url"),
        ({"url": "s3://?endpoint=https://s3.example.com", "values": ACCESS}, "spec.url"),
        ({"url": "s3://backups/folder?endpoint=https://s3.example.com", "values": ACCESS}, "spec.url"),
        ({"url": f"{BUCKET}#part", "values": ACCESS}, "spec.url"),
        ({"url": "dir://srv/backups"}, "spec.url"),
        ({"url": "dir:///"}, "spec.url"),
        ({"url": "dir:srv"}, "spec.url"),
        ({"url": "dir:///srv/../etc"}, "spec.url"),
        ({"url": "dir:///srv/a\0b"}, "spec.url"),
        ({"url": "dir:///srv/backups?endpoint=x"}, "spec.url"),
        ({"url": "dir:///srv/backups", "immutable": True}, "spec.immutable"),
        ({"url": "dir:///srv/backups", "values": {"key": SECRET}}, "spec.values.key"),
        ({"url": "dir:///srv/backups", "values": {"key": "0G" * 32}}, "spec.values.key"),
        ({"url": "dir:///srv/w3\t7"}, "spec.url"),
        ({"url": "dir:///srv/backups\n"}, "spec.url"),
        ({"url": "dir:///srv/backups", "values": {"key": ""}}, "spec.values.key"),
        ({"url": "dir:///srv/backups", "values": {"password": SECRET}}, "spec.values.password"),
        ({"url": "dir:///srv/backups", "values": {"not a key": SECRET}}, "spec.values"),
        ({"url": BUCKET}, "spec.values"),
        ({"url": BUCKET, "values": {"secret_key": SECRET}}, "spec.values"),
        ({"url": BUCKET, "values": {"access_key": SECRET, "key": "0a" * 32}}, "spec.values"),
    ],
)
def test_a_wrong_repository_is_refused_without_a_word_of_its_secrets(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_repository(BackupRepositorySpec(**spec))
    problem = refused.value
    assert problem.field == field and problem.hint
    said = f"{problem} {problem.hint} {problem.field} {problem.details} {problem.__cause__}"
    values = {SECRET, *(value for value in spec.get("values", {}).values() if len(value) > 2)}
    assert not [value for value in values if value in said], said


@pytest.mark.parametrize("of", ["", "vm", "vm/", "/web", "vm/web/x", "job/web", "project/", "VM/web"])
def test_a_backup_of_something_else_is_refused(of: str) -> None:
    with pytest.raises(InvalidInput, match="nothing that backups are made of") as refused:
        check_backup(BackupSpec(of=of, to="safe"))
    assert (refused.value.field, refused.value.hint) == (
        "spec.of",
        "write vm/web or volume/data or container/db or project/shop",
    )


@pytest.mark.parametrize("keep", [-1.0, 36601 * 86400.0, float("nan"), float("inf")])
def test_a_backup_is_kept_for_a_time_that_exists(keep: float) -> None:
    check_backup(BackupSpec(of="vm/web", to="safe", keep=36600 * 86400.0))
    with pytest.raises(InvalidInput) as refused:
        check_backup(BackupSpec(of="vm/web", to="safe", keep=keep))
    assert refused.value.field == "spec.keep"


def test_what_a_backed_up_object_refers_to_is_backed_up_with_its_project() -> None:
    left = {
        (kind.name, reference.kind)
        for kind in KINDS
        for reference in kind.references
        if kind.in_backups and BY_NAME[reference.kind].scope == "project" and not BY_NAME[reference.kind].in_backups
    }
    # Of the past, of a time that ends, and made by weft itself.
    assert {to for _, to in left} <= {"snapshot", "reservation", "functionversion"}


def test_a_volume_that_a_vm_has_is_backed_up_with_the_vm_and_no_backup_of_it_is_made() -> None:
    check = next(one.suffices for one in BACKUP.references if one.kind == "volume")
    assert check is not None
    spec = BackupSpec(of="volume/orders", to="safe")
    for holder in (None, Ref("container", "db", "u", "default")):
        check(spec, {"orders": VolumeStatus(attached_to=holder)})
    with pytest.raises(InUse, match="volume/orders is attached to vm/shop") as refused:
        check(spec, {"orders": VolumeStatus(attached_to=Ref("vm", "shop", "u", "default"))})
    assert refused.value.hint == "weft backup create vm/shop"


@pytest.mark.parametrize("kind", [BACKUP, BACKUP_POLICY])
def test_a_time_to_be_kept_names_its_unit_and_programs_give_seconds(kind: Kind) -> None:
    spec = {"to": "safe", "of": ["vm/web"] if kind is BACKUP_POLICY else "vm/web"}
    for text in ("30", "365", " 7 "):
        with pytest.raises(InvalidInput, match="has no unit") as refused:
            read_strict({**spec, "keep": text}, kind.spec)
        assert f"or {text.strip()}d" in str(refused.value.hint)
    kept = [read_strict({**spec, "keep": value}, kind.spec).keep for value in ("30d", 2592000, 2592000.0, "0")]
    assert kept == [2592000.0] * 3 + [0.0]


def test_the_time_between_two_backups_and_a_nodes_autonomy_name_their_unit_too() -> None:
    of_web = {"to": "safe", "of": ["vm/web"]}
    for given, spec, name in ((of_web, BackupPolicySpec, "every"), ({}, NodeSpec, "autonomy_seconds")):
        with pytest.raises(InvalidInput, match=f"{name}: 300 has no unit"):
            read_strict({**given, name: "300"}, spec)
        read = [getattr(read_strict({**given, name: value}, spec), name) for value in ("5m", 300, "0")]
        assert read == [300.0, 300.0, 0.0], "0 is none, and programs give seconds"
