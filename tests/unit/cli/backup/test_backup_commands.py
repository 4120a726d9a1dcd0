"""What people meet at the command line of backups: options that say what they do, and refusals that name what was given."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from weft.api.auth.authorise import authorise_write
from weft.cli.backup.storage import restore
from weft.cli.command.exit_codes import OK
from weft.cli.command.flag_names import name_flags
from weft.cli.command.options import Duration
from weft.cli.verbs.act import _input_options
from weft.cli.verbs.backup import _require_pool, _restore
from weft.cli.verbs.backup_files import _ask, _take, _written, describe_missing
from weft.contracts.clock import SystemClock
from weft.kinds.backup import BACKUP
from weft.kinds.fields.backup_verification import VerifyBackupInput, find_verify_failure
from weft.objects.errors import Forbidden, InvalidInput, NotFound
from weft.objects.schema import read_strict
from weft.trust.credentials import Actor


def test_each_option_of_a_verification_says_what_it_does() -> None:
    verb = BACKUP.verb("verify")
    assert verb is not None
    said = {one.name: one.help for one in _input_options(verb) if isinstance(one, click.Option)}
    assert set(said) == {"boot", "check", "within"} and all(said.values())


def test_what_only_a_boot_obeys_is_refused_without_one() -> None:
    backup = {"name": "monday", "spec": {"of": "vm/shop"}, "status": {"phase": "Ready"}}
    verb = BACKUP.verb("verify")
    assert verb is not None and verb.act is not None
    for given in (VerifyBackupInput(check="true"), VerifyBackupInput(within=5)):
        with pytest.raises(InvalidInput) as refused:
            verb.act(backup, given)
        assert refused.value.hint == "give --boot, too"
    assert verb.act(backup, VerifyBackupInput(boot=True, within=5))["verify_within"] == 5


def test_how_long_a_guest_may_take_is_given_with_a_unit_by_people_and_in_seconds_by_programs() -> None:
    for given, seconds in (("5s", 5.0), ("2m", 120.0), (5, 5.0)):
        assert read_strict({"boot": True, "within": given}, VerifyBackupInput, "input").within == seconds
    with pytest.raises(InvalidInput, match="within: 5 has no unit"):
        read_strict({"boot": True, "within": "5"}, VerifyBackupInput, "input")


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (["pack p at 9", "chunk c"], "make a new backup"),
        (["manifest b"], "weft delete backup/monday"),
        (["the backup is not in dir:///srv/safe any more"], "weft delete backup/monday"),
    ],
)
def test_a_new_backup_is_advised_where_it_mends_the_damage(damaged: list[str], said: str) -> None:
    obj = {"name": "monday", "status": {"verify": {"result": "damaged", "damaged": damaged}}}
    failure = find_verify_failure(obj, "backup/monday")
    assert failure is not None and said in (failure.hint or "")


def test_a_restore_to_a_point_in_time_names_the_pool_that_was_not_meant_so() -> None:
    given: dict[str, Any] = {"point_in_time": None, "new_name": None}
    session: Any = SimpleNamespace(client=SimpleNamespace(list=lambda _: SimpleNamespace(items=[])), clock=None)
    with pytest.raises(click.UsageError, match="--pool nosuch names all that was backed up of a pool"):
        restore(session, ["vm/db"], "nosuch", given)
    with pytest.raises(NotFound) as missing:
        restore(session, [], "nosuch", given)
    assert missing.value.field == "pool"


@pytest.mark.parametrize("given", ["30", "365", "1.5", " 7 "])
def test_how_long_a_backup_is_kept_takes_a_unit(given: str) -> None:
    keep = Duration(unit=True)
    with pytest.raises(click.BadParameter, match=f"has no unit; write {given.strip()}s, .* or {given.strip()}d"):
        keep.convert(given, None, None)
    assert (keep.convert("30d", None, None), keep.convert("30s", None, None)) == (30 * 86400, 30)
    assert keep.convert("0", None, None) == 0, "what that means says who asks for it"


def test_a_file_that_cannot_be_written_is_named_as_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent/note'") as failed, _written(tmp_path / "absent" / "note", 0o644):
        pass
    assert failed.value.filename == str(tmp_path / "absent" / "note")
    with pytest.raises(click.UsageError, match="is a folder"), _written(tmp_path, 0o644):
        pass
    assert os.listdir(tmp_path) == []


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for text in (b"one", b"two"):
        with _written(tmp_path / "link", 0o644) as descriptor:
            os.write(descriptor, text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == text
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_a_pool_that_no_node_has_is_refused_before_anything_is_made() -> None:
    pools = SimpleNamespace(items=[{"name": "n1-local", "marks": {"pool": "local"}}, {"marks": {"pool": "ceph"}}])
    session: Any = SimpleNamespace(client=SimpleNamespace(list=lambda _: pools))
    for known in ("local", "ceph"):
        _require_pool(session, known)
    with pytest.raises(NotFound, match="no node has a storage pool nosuch") as refused:
        _require_pool(session, "nosuch")
    assert "ceph, local" in str(refused.value.hint)


def test_a_note_of_what_was_left_out_is_a_line_of_its_own(tmp_path: Path) -> None:
    said: list[str] = []
    session: Any = SimpleNamespace(notify=said.append)
    with _written(tmp_path / "note", 0o644) as descriptor:
        _take(session, 2, b"left out 1 device", descriptor)
        _take(session, 1, b"text", descriptor)
    assert (said, (tmp_path / "note").read_bytes()) == (["left out 1 device"], b"text")


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with _written(pipe, 0o644) as descriptor:
            os.write(descriptor, b"shop")
        assert os.read(reader, 9) == b"shop" and stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_path_that_is_not_utf_8_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(click.UsageError, match="is not UTF-8"):
        _ask("read", os.fsdecode(b"/h/\xff\xfe"), "root", None)
    assert _ask("read", "/h/ü", "root", None)["path"] == "/h/ü"


def test_who_may_not_read_files_of_a_backup_is_told_so_in_a_sentence() -> None:
    with pytest.raises(Forbidden, match="can't read files of a backup"):
        authorise_write(Actor("person", "eve", "t1"), BACKUP, "default", "files")


def test_an_error_about_a_field_of_a_policy_names_the_option_of_storage_backup() -> None:
    options = [
        click.Option(["--schedule"]),
        click.Option(["--destination", "--to", "to"]),
        click.Option(["--keep-daily"]),
    ]
    command = click.Context(click.Command("storage", params=list(options)))
    for field, flag in (("schedule", "--schedule"), ("to", "--destination"), ("keep_daily", "--keep-daily")):
        problem = InvalidInput(f"spec.{field}: 'x' is wrong", field=f"spec.{field}", hint=f"look at spec.{field}")
        told = name_flags(command, problem)
        assert (told.message, told.hint, told.field) == (
            f"{flag}: 'x' is wrong",
            f"look at {flag}",
            f"spec.{field}",
        )


def test_who_restores_a_container_s_backup_waits_for_all_its_volumes_and_is_told_how_to_create_the_container(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = {"phase": "Ready", "state": "unproven", "taken_at": 0.0, "disks": {"data": {}, "logs": {}}}
    status["workload_spec"] = {"mounts": ["data:/srv", "logs:/var/log/app:ro"]}
    backup = {"name": "db-1", "spec": {"of": "container/db", "to": "safe"}, "status": status}

    class Client:
        def get(self, kind: str, name: str) -> dict[str, Any]:
            return backup if kind == "backup" else {"kind": kind, "name": name, "uid": name}

        def list(self, kind: str) -> Any:
            return SimpleNamespace(items=[backup] if kind == "backup" else [])

        def verb(self, *_: Any) -> dict[str, Any]:
            said.append("restored")
            return {"kind": "volume", "name": "db2-data", "uid": "u"}

    said: list[str] = []
    session: Any = SimpleNamespace(
        client=Client(), notify=said.append, detach=True, is_data=False, in_project="", given_project=""
    )
    made = ["volume/db2-data  created", "volume/db2-logs  created"]
    session.clock, given = SystemClock(), {"point_in_time": None, "new_name": "db2"}
    expected = [
        "container/db itself is in no backup: only its volumes are restored, and no container is created",
        "restored",
        "no container was created; next: weft container create db2 --image IMAGE --mount db2-data:/srv "
        "--mount db2-logs:/var/log/app:ro",
    ]
    words = {"instant": False, "pool": None, "image": None, "into": None, "keep_existing": False, "dry_run": False}
    assert _restore(session, BACKUP, ("db-1",), "db2", **words) == OK
    assert said == expected and [line.partition(";")[0] for line in capsys.readouterr().out.splitlines()] == made
    said.clear()
    assert restore(session, ["container/db"], None, given) == OK
    assert said == expected and capsys.readouterr().out.count("restored to") == 2


def test_a_path_that_is_not_in_a_backup_is_told_with_the_backup_and_what_lists_its_folder() -> None:
    missing = NotFound("/root/no file is not there", field="path")
    told = describe_missing(missing, "mon", _ask("read", "/root/no file", "root", None), "")
    assert told.message == "backup/mon: /root/no file is not there"
    assert told.hint == "weft backup ls mon /root shows what is there"
    told = describe_missing(missing, "mon", _ask("read", "/a b/c", "data", 2), " -p shop")
    assert told.hint == "weft backup ls mon '/a b' --disk data --partition 2 -p shop shows what is there"
