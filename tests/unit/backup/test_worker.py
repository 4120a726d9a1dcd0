"""The process that works on a repository: real qcow2 disks, served by qemu-nbd, go into a folder and come back."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.backup.lab import random_chunks

from weft.backup.format import CHUNK
from weft.backup.index.catalogue import with_catalogue
from weft.backup.process.job import BASE_GONE, Job, JobDisk, JobLine
from weft.backup.process.worker import BackupWorker
from weft.contracts.clock import SystemClock
from weft.drivers.volume.directory.qemu_img import describe_chain
from weft.drivers.volume.disk_server import serve_disk
from weft.objects.errors import Forbidden, NotFound, Unavailable, WeftError

KEY = "0f" * 32
SIZE = 2 * 1024 * 1024 + 512  # not whole chunks


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder / "place"
        self.place.mkdir()
        self.told: list[JobLine] = []
        self.id = self.run("check").repository_id

    def job(self, act: Any, **more: Any) -> Job:
        return Job(
            **{"act": act, "url": f"dir://{self.place}", "key": KEY, "cache": str(self.folder / "cache"), **more}
        )

    def run(self, act: Any, **more: Any) -> JobLine:
        return BackupWorker(self.job(act, **more), SystemClock(), self.told.append).run()

    def disk(self, name: str, data: bytes) -> Path:
        raw, path = self.folder / "raw", self.folder / f"{name}.qcow2"
        raw.write_bytes(data)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
        return path

    async def copy(self, backup: str, disk: Path, extents: list[tuple[int, int, bool]], **more: Any) -> JobLine:
        whole = more.pop("is_whole", True)
        async with serve_disk(describe_chain([(str(disk), "qcow2")]), read_only=True) as socket:
            disks = [JobDisk("root", socket, SIZE, extents, whole)]
            return await asyncio.to_thread(lambda: self.run("copy", backup=backup, disks=disks, kind="vm", **more))

    async def fetch(self, backup: str) -> bytes:
        """The backup, fetched to an empty disk."""
        path = self.folder / "fetched.qcow2"
        size = str(-(-SIZE // 512) * 512)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True)
        async with serve_disk(describe_chain([(str(path), "qcow2")]), read_only=False) as socket:
            line = await asyncio.to_thread(
                lambda: self.run("fetch", backup=backup, disks=[JobDisk("root", socket, SIZE)])
            )
        assert (line.ended, line.disks) == ("done", {"root": SIZE})
        raw = self.folder / "raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True)
        return raw.read_bytes()[:SIZE]

    def packs(self) -> list[Path]:
        return sorted(path for path in (self.place / "packs").rglob("*") if path.is_file())


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


FIRST = (random_chunks(6, 1) + bytes(20 * CHUNK) + random_chunks(7, 2))[: SIZE - 512] + b"e" * 512
WHOLE = [(0, 6 * CHUNK, False), (26 * CHUNK, SIZE - 26 * CHUNK, False)]


async def test_a_disk_is_copied_and_comes_back_to_the_byte(lab: Lab) -> None:
    line = await lab.copy("b1", lab.disk("d", FIRST), WHOLE, name="default/monday", manifest={"of": "vm/web"})
    assert (line.ended, line.repository_id, line.disks, line.full_because) == ("done", lab.id, {"root": SIZE}, "")
    assert line.bytes >= 12 * CHUNK and line.stored_bytes >= 12 * CHUNK and line.unique_bytes >= 12 * CHUNK
    assert await lab.fetch("b1") == FIRST
    assert lab.run("verify", backup="b1").ended == "done"
    checked = lab.run("check", repository_id=lab.id)
    assert (checked.backups, checked.free > 0) == (1, True)
    assert checked.bytes >= 12 * CHUNK


async def test_a_copy_that_is_repeated_stores_nothing_more(lab: Lab) -> None:
    disk = lab.disk("d", FIRST)
    first = await lab.copy("b1", disk, WHOLE)
    packs = lab.packs()
    again = await lab.copy("b1", disk, WHOLE)
    assert (again.bytes, again.repository_id, lab.packs()) == (first.bytes, lab.id, packs)
    assert lab.run("check").backups == 1


async def test_an_increment_stores_what_changed_and_both_come_back(lab: Lab) -> None:
    first = await lab.copy("b1", lab.disk("d1", FIRST), WHOLE)
    changed = random_chunks(1, 3)
    second_data = FIRST[: 2 * CHUNK] + changed + bytes(CHUNK) + FIRST[4 * CHUNK :]
    extents = [(2 * CHUNK, CHUNK, False), (3 * CHUNK, CHUNK, True)]
    second = await lab.copy("b2", lab.disk("d2", second_data), extents, base="b1", is_whole=False)
    assert second.full_because == ""
    assert CHUNK <= second.stored_bytes < 3 * CHUNK < first.stored_bytes
    assert (await lab.fetch("b1"), await lab.fetch("b2")) == (FIRST, second_data)
    again = await lab.copy("b2", lab.folder / "d2.qcow2", extents, base="b1", is_whole=False)
    assert again.full_because == ""


async def test_a_whole_copy_that_had_a_base_says_that_it_is_full_and_stores_nothing_twice(lab: Lab) -> None:
    disk = lab.disk("d", FIRST)
    await lab.copy("b1", disk, WHOLE)
    line = await lab.copy("b2", disk, WHOLE, base="b1")
    assert line.full_because == "the backup before it could not be continued"
    assert line.stored_bytes < CHUNK


async def test_a_base_that_is_gone_is_said_and_leaves_no_backup(lab: Lab) -> None:
    with pytest.raises(NotFound, match=r"not in dir://.* any more") as gone:
        await lab.copy("b2", lab.disk("d", FIRST), [(0, CHUNK, False)], base="b1", is_whole=False)
    assert gone.value.token == BASE_GONE
    assert lab.run("check").backups == 0


async def test_a_flipped_byte_is_found_and_named(lab: Lab) -> None:
    await lab.copy("b1", lab.disk("d", FIRST), WHOLE)
    pack = max(lab.packs(), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    line = lab.run("verify", backup="b1")
    assert (line.ended, line.reason, line.message) == ("failed", "backupDamaged", line.damaged[0])
    assert any(pack.name in one for one in line.damaged) and len(line.damaged) <= 20


async def test_a_manifest_that_rotted_in_the_repository_is_damage_on_every_node(lab: Lab) -> None:
    await lab.copy("b1", lab.disk("d", FIRST), WHOLE)
    manifest = next((lab.place / "backups").iterdir())
    manifest.write_bytes(b"")
    for cache in ("cache", "another node's"):
        line = lab.run("verify", backup="b1", cache=str(lab.folder / cache))
        assert (line.ended, line.reason) == ("failed", "backupDamaged"), cache
        assert line.damaged and manifest.name in line.message


async def test_a_backup_whose_manifest_is_damaged_or_gone_can_be_deleted_on_every_node(lab: Lab) -> None:
    """And deleting it accepts what is missing: space is freed again."""
    for number, harm in enumerate((lambda path: path.write_bytes(b"x"), Path.unlink), 1):
        await lab.copy(f"b{number}", lab.disk("d", FIRST), WHOLE)
        made = max((lab.place / "backups").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        await lab.copy(f"other{number}", lab.disk("e", FIRST[::-1]), WHOLE)
        assert lab.run("check").message == ""
        harm(made)
        elsewhere = {"cache": str(lab.folder / f"node{number}")}
        checked = lab.run("check", **elsewhere)
        assert checked.ended == "done" and checked.message.startswith("no space was freed: ")
        assert made.name in checked.message
        assert lab.run("forget", backup=f"other{number}", **elsewhere).ended == "done", "others can be deleted"
        assert lab.run("forget", backup=f"b{number}", **elsewhere).ended == "done"
        assert list((lab.place / "backups").iterdir()) == []
        assert lab.run("check").message == ""


async def test_what_is_missing_is_accepted_while_another_backup_is_damaged(lab: Lab) -> None:
    manifests = []
    for name in ("b1", "b2"):
        await lab.copy(name, lab.disk("d", FIRST), WHOLE)
        manifests += [path for path in (lab.place / "backups").iterdir() if path not in manifests]
    lab.run("check")
    manifests[0].unlink()
    manifests[1].write_bytes(b"x")
    elsewhere = {"cache": str(lab.folder / "another node's")}
    assert lab.run("forget", backup="b1", **elsewhere).ended == "done"
    left = lab.run("check", **elsewhere).message
    assert manifests[1].name in left and manifests[0].name not in left
    assert lab.run("forget", backup="b2", **elsewhere).ended == "done"
    assert lab.run("check", **elsewhere).message == ""


async def test_a_damaged_manifest_is_written_again_by_a_node_that_remembers_it(lab: Lab) -> None:
    await lab.copy("b1", lab.disk("d", FIRST), WHOLE)
    manifest = next((lab.place / "backups").iterdir())
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-1])
    assert lab.run("check").message == ""
    assert manifest.read_bytes() == whole


async def test_a_backup_is_forgotten_once_or_twice_and_others_stay(lab: Lab) -> None:
    disk = lab.disk("d", FIRST)
    await lab.copy("b1", disk, WHOLE)
    await lab.copy("b2", disk, WHOLE)
    for _ in range(2):
        assert lab.run("forget", backup="b1").ended == "done"
    with pytest.raises(NotFound, match="any more") as gone:
        lab.run("fetch", backup="b1")
    assert gone.value.token == "backupGone"
    verdict = lab.run("verify", backup="b1")  # no restore may choose it
    assert (verdict.ended, verdict.reason, verdict.damaged) == ("failed", "backupDamaged", [verdict.message])
    assert "is not in dir://" in verdict.message
    assert await lab.fetch("b2") == FIRST


@pytest.mark.parametrize(
    ("wrong", "token", "said"),
    [
        ({"key": "ab" * 32}, "repositoryKey", "the key does not open"),
        ({"repository_id": "c" * 32}, "otherRepository", f"not {'c' * 32}"),
    ],
)
def test_a_wrong_key_or_another_repository_is_refused_and_nothing_written(
    lab: Lab, wrong: dict[str, Any], token: str, said: str
) -> None:
    before = sorted(lab.place.rglob("*"))
    for act in ("check", "verify", "forget"):
        with pytest.raises(Forbidden, match=said) as refused:
            lab.run(act, backup="b1", **wrong)
        text = f"{refused.value} {refused.value.hint} {refused.value.details} {lab.job(act, **wrong)!r}"
        assert refused.value.token == token and "ab" * 32 not in text and KEY not in text
    assert sorted(lab.place.rglob("*")) == before


def test_only_a_check_that_expects_none_makes_a_repository(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    for act, id_, opens_only in (
        ("verify", "", False),
        ("forget", "", False),
        ("check", lab.id, False),
        ("check", "", True),
    ):
        with pytest.raises(NotFound, match="holds no backup repository"):
            lab.run(act, url=f"dir://{empty}", repository_id=id_, opens_only=opens_only)
        assert list(empty.iterdir()) == []
    with pytest.raises(WeftError):
        lab.run("check", url=f"dir://{tmp_path}/not-mounted")
    assert not (tmp_path / "not-mounted").exists()


def test_as_a_process_it_says_in_one_line_why_it_failed_and_never_its_key(lab: Lab) -> None:
    job = lab.job("verify", key="ab" * 32, credentials=("AK", "hunter2"))
    ended = subprocess.run(
        [sys.executable, "-m", "weft.backup.process.worker"],
        input=msgspec.json.encode(job),
        capture_output=True,
        check=True,
    )
    line = msgspec.json.decode(ended.stdout, type=JobLine)
    assert (line.ended, line.reason) == ("failed", "repositoryKey")
    assert "use the key that the repository was created with" in line.message
    for secret in (b"ab" * 32, b"hunter2"):
        assert secret not in ended.stdout + ended.stderr


async def test_the_next_backup_stores_again_what_is_damaged_and_mends_the_one_before(lab: Lab) -> None:
    disk, changed = lab.disk("d", FIRST), [(0, CHUNK, False)]
    await lab.copy("b1", disk, WHOLE)
    pack = max(lab.packs(), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    await lab.copy("b2", disk, changed, base="b1", is_whole=False)
    assert lab.run("verify", backup="b2").damaged, "nobody had found the damage yet"
    third = await lab.copy("b3", disk, changed, base="b2", is_whole=False)
    assert third.full_because == "" and third.stored_bytes > 10 * CHUNK
    for backup in ("b3", "b2", "b1"):
        assert lab.run("verify", backup=backup).ended == "done"
        assert await lab.fetch(backup) == FIRST


async def test_a_damaged_index_keeps_no_other_backup_from_being_made_or_removed(lab: Lab) -> None:
    disk = lab.disk("d", FIRST)
    await lab.copy("b1", disk, WHOLE)
    manifest = next((lab.place / "backups").iterdir())
    await lab.copy("b2", lab.disk("e", FIRST[::-1]), WHOLE)
    manifest.write_bytes(manifest.read_bytes()[:-1])
    lab.folder.joinpath("cache").rename(lab.folder / "another node's")
    line = lab.run("check")
    assert line.ended == "done" and line.message.startswith("no space was freed: ")
    assert (await lab.copy("b3", disk, WHOLE)).ended == "done"
    assert lab.run("forget", backup="b2").ended == "done"
    assert "any more" in lab.run("verify", backup="b2").message


async def test_a_lost_index_of_a_whole_pack_is_a_note_and_no_damage(lab: Lab) -> None:
    await lab.copy("b1", lab.disk("d", FIRST), WHOLE)
    for harm in (Path.unlink, lambda path: path.write_bytes(bytes(path.stat().st_size))):
        index = min((lab.place / "index").iterdir())
        harm(index)
        line = lab.run("verify", backup="b1")
        assert (line.ended, line.reason, line.damaged) == ("done", "", []) and line.unique_bytes > 0
        assert index.name in line.message and "nothing is lost" in line.message
        assert lab.run("verify", backup="b1").message == "", "it is written again"


async def test_a_cut_pack_of_one_backup_keeps_no_other_from_being_verified_or_taken_in(lab: Lab) -> None:
    made = await lab.copy("b1", lab.disk("d", FIRST), WHOLE)
    before = lab.packs()
    await lab.copy("b2", lab.disk("e", FIRST[::-1]), WHOLE)
    for pack in set(lab.packs()) - set(before):
        pack.write_bytes(pack.read_bytes()[: pack.stat().st_size // 2])
    for cache in ("cache", "another node's"):
        elsewhere = {"cache": str(lab.folder / cache)}
        verdict, taken = (lab.run(act, backup="b1", **elsewhere) for act in ("verify", "adopt"))
        assert (verdict.ended, taken.ended, verdict.damaged) == ("done", "done", []), cache
        assert (taken.bytes, taken.stored_bytes) == (made.bytes, made.stored_bytes) and taken.bytes < SIZE, "holes"
    third = await lab.copy("b3", lab.folder / "d.qcow2", WHOLE)
    assert (third.ended, third.bytes) == ("done", made.bytes)
    assert lab.run("verify", backup="b2").damaged


async def test_a_catalogue_that_is_damaged_inside_is_made_again(lab: Lab) -> None:
    await lab.copy("b1", lab.disk("d", FIRST), WHOLE)
    catalogue = lab.folder / "cache" / f"{lab.id}.db"
    for act in ("verify", "check", "forget"):
        with contextlib.closing(sqlite3.connect(catalogue)) as db:
            pages = dict(db.execute("SELECT name, rootpage FROM sqlite_master").fetchall())
            (size,) = db.execute("PRAGMA page_size").fetchone()
        data = bytearray(catalogue.read_bytes())
        for name in ("chunk", "frame", "frame_pack"):
            data[(pages[name] - 1) * size : pages[name] * size] = b"\xee" * size
        catalogue.write_bytes(data)
        assert lab.run(act, backup="b1").ended == "done", act
    assert lab.run("check").backups == 0


def test_a_node_without_space_for_its_catalogue_says_so(tmp_path: Path) -> None:
    def work(opened: Callable[[str], None]) -> None:
        db = sqlite3.connect(tmp_path / "r.db")
        opened("r")
        try:
            db.execute("PRAGMA max_page_count = 3")
            db.execute("CREATE TABLE t (a)")
            db.execute("INSERT INTO t VALUES (?)", (bytes(1 << 20),))
        finally:
            db.close()

    with pytest.raises(Unavailable, match="has no space for the catalogue") as refused:
        with_catalogue(tmp_path, work)
    assert refused.value.token == "spoolFull" and str(tmp_path) in str(refused.value)
