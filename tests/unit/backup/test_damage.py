"""Damage is found and named, harms only the backups that need what is damaged, and never makes a clean-up delete."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.backup.lab import Lab, load, random_chunks, store

from weft.objects.errors import BackupAltered, DriverFailed, Unavailable


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(bytes(data))


def test_a_flipped_bit_anywhere_in_a_pack_is_found_and_the_other_backup_is_sound(lab: Lab) -> None:
    first = store(lab.repo, random_chunks(20, 1))
    pack = lab.packs()[0]
    data = random_chunks(20, 2)
    second = store(lab.repo, data)
    for at in (8, 20, 700, pack.stat().st_size // 2, pack.stat().st_size - 1):
        flip(pack, at)
        other = lab.open(f"at{at}")
        report = other.verify()
        assert report.damaged == [first.id] and report.sound == [second.id], at
        assert all(damage.backups == (first.id,) for damage in report.damages)
        assert pack.name in {damage.name for damage in report.damages}
        assert load(other, second) == data
        flip(pack, at)
    assert len(lab.open("again").verify().sound) == 2


def test_a_pack_that_was_cut_off_is_named_and_harms_its_backup_alone(lab: Lab) -> None:
    first, data = store(lab.repo, random_chunks(20, 1)), random_chunks(20, 2)
    pack, second = lab.packs()[0], store(lab.repo, data)
    whole = pack.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 9, 0):
        pack.write_bytes(whole[:length])
        report = lab.repo.verify()
        assert report.damaged == [first.id] and report.sound == [second.id], length
        assert pack.name in {damage.name for damage in report.damages}
        with pytest.raises(BackupAltered, match=pack.name):
            load(lab.open(f"at{length}"), first)
        assert load(lab.repo, second) == data


@pytest.mark.parametrize("left", [1400 << 10, 9, 0])
def test_a_pack_and_its_index_that_were_cut_off_together_stop_no_other_backup(lab: Lab, left: int) -> None:
    lost, data = random_chunks(40, 1), random_chunks(20, 2)
    first = store(lab.repo, lost)
    pack, second = lab.packs()[0], store(lab.repo, data)
    index = lab.place / "index" / pack.name
    whole = pack.read_bytes(), index.read_bytes()
    pack.write_bytes(whole[0][:left])
    index.write_bytes(b"")
    other = lab.open()
    assert load(other, second) == data
    store(other, lost)
    assert load(other, first) == lost, "what was lost is stored again"
    assert pack.name in {damage.name for damage in other.verify().damages}
    for _ in range(3):
        with pytest.raises(BackupAltered, match=f"{pack.name} is damaged, and so is its index"):
            other.prune(grace=0)
    assert pack.exists()
    pack.write_bytes(whole[0])
    index.write_bytes(whole[1])
    assert other.verify().damages == []
    other.prune(grace=0)
    assert load(lab.open("again"), first) == lost


def test_files_and_folders_that_are_not_weft_s_are_left_out_and_left_alone(lab: Lab) -> None:
    """As desktops and storage servers put them into every folder."""
    first, data = store(lab.repo, random_chunks(4, 1)), random_chunks(4, 2)
    lab.repo.prune(grace=0)
    foreign = list[Path]()
    for folder in ("backups", "packs", "index", "leases", "locks", "condemned", "damaged", "trash", "tmp"):
        for name in (".DS_Store", "desktop.ini", ".nfs00000000000000010000002"):
            (lab.place / folder).mkdir(exist_ok=True)
            foreign.append(lab.place / folder / name)
            if folder != "tmp":
                foreign[-1].write_bytes(b"x")
        (lab.place / folder / "@eaDir").mkdir()
        (lab.place / folder / "@eaDir" / "thumb").write_bytes(b"x")
    other = lab.open()
    second = store(other, data)
    assert {one.id for one in other.backups().backups} == {first.id, second.id} and not other.backups().damages
    assert load(other, second) == data and other.verify().damages == []
    for _ in range(3):
        other.prune([first.id], grace=0)
        lab.clock.at += 2 * 3600
    assert not (lab.place / "backups" / first.id).exists() and len(lab.packs()) == 5
    assert all(path.exists() for path in foreign if path.parent.name != "tmp")
    assert load(lab.open("again"), second) == data


def test_a_verification_reads_the_manifest_from_the_repository_not_what_the_node_remembers(lab: Lab) -> None:
    first, second = store(lab.repo, random_chunks(4, 1)), store(lab.repo, random_chunks(4, 2))
    manifest = lab.place / "backups" / first.id
    whole = manifest.read_bytes()
    for harm in (whole[:30] + bytes([whole[30] ^ 1]) + whole[31:], b"", whole[:-1]):
        manifest.write_bytes(harm)
        for names in ([first.id], None):
            report = lab.repo.verify(names)
            assert report.damaged == [first.id] and report.sound == ([] if names else [second.id])
            assert [(one.what, one.name) for one in report.damages] == [("manifest", first.id)]


def test_a_missing_pack_is_named_and_a_full_backup_heals_it(lab: Lab) -> None:
    data = random_chunks(20, 1)
    first = store(lab.repo, data)
    lab.packs()[0].unlink()
    other = lab.open()
    report = other.verify()
    assert report.damaged == [first.id] and report.damages
    with pytest.raises(DriverFailed, match="no pack has it"):
        load(other, first)
    second = store(other, data)
    assert load(other, second) == data
    assert load(other, first) == data


def test_a_pack_index_that_is_cut_or_missing_is_read_from_the_pack_and_mended(lab: Lab) -> None:
    data = random_chunks(20, 1)
    made = store(lab.repo, data)
    index = next((lab.place / "index").iterdir())
    whole = index.read_bytes()
    for harm in (lambda: index.write_bytes(whole[:-40]), lambda: index.write_bytes(b""), index.unlink):
        harm()
        other = lab.open(str(id(harm)))
        assert load(other, made) == data
        other.prune()
        assert index.read_bytes() == whole


def test_an_index_that_is_lost_later_is_written_again_by_a_check_a_backup_or_a_verification(lab: Lab) -> None:
    """On the node that knows its pack already, too."""
    data = random_chunks(20, 1)
    made = store(lab.repo, data)
    index = next((lab.place / "index").iterdir())
    whole = index.read_bytes()

    def verify() -> None:
        report = lab.repo.verify([made.id])
        assert (report.sound, report.damaged) == ([made.id], [])
        assert [(one.what, one.name, one.backups) for one in report.damages] == [("index", index.name, (made.id,))]
        assert "the pack is whole, so that nothing is lost" in report.damages[0].message

    for harm in (index.unlink, lambda: index.write_bytes(b"")):
        for act in (lab.repo.prune, lambda: store(lab.repo, data), verify):
            harm()
            act()
            assert index.read_bytes() == whole
    index.write_bytes(bytes(len(whole)))  # only who reads it can know
    verify()
    assert index.read_bytes() == whole and lab.repo.verify().damages == []
    assert list((lab.place / "leases").iterdir()) == []


def test_a_damaged_manifest_is_named_and_stops_the_clean_up(lab: Lab) -> None:
    first, data = store(lab.repo, random_chunks(4, 1)), random_chunks(4, 2)
    second = store(lab.repo, data)
    flip(lab.place / "backups" / first.id, 30)
    other = lab.open()
    listing = other.backups()
    assert [one.id for one in listing.backups] == [second.id]
    assert [damage.name for damage in listing.damages] == [first.id]
    assert load(other, second) == data
    for _ in range(3):
        with pytest.raises(BackupAltered, match=first.id):
            other.prune(grace=0)
    assert len(lab.packs()) == 2


def test_a_manifest_under_another_name_is_refused(lab: Lab) -> None:
    first, second = store(lab.repo, random_chunks(4, 1)), store(lab.repo, random_chunks(4, 2))
    (lab.place / "backups" / first.id).write_bytes((lab.place / "backups" / second.id).read_bytes())
    with pytest.raises(BackupAltered):
        lab.open().backup(first.id)


def test_a_damaged_header_is_told_from_a_wrong_key(lab: Lab) -> None:
    header = lab.place / "weft-backup"
    header.write_bytes(header.read_bytes().replace(b'"created":1', b'"created":2'))
    with pytest.raises(BackupAltered, match="header"):
        lab.open()


def test_a_listing_without_a_backup_stops_the_clean_up(lab: Lab) -> None:
    first = store(lab.repo, random_chunks(4, 1))
    lab.repo.prune(grace=0)
    manifest = lab.place / "backups" / first.id
    manifest.rename(lab.place / "aside")
    for _ in range(3):
        with pytest.raises(Unavailable, match=first.id):
            lab.repo.prune(grace=0)
    assert lab.packs()
    (lab.place / "aside").rename(manifest)
    lab.repo.prune(grace=0)
    assert load(lab.repo, first) == random_chunks(4, 1)


def test_of_twenty_backups_each_damage_is_named_and_the_others_come_back(lab: Lab) -> None:
    """A flipped bit, a pack that is gone with chunks, and a cut index."""
    data = [random_chunks(3, number) for number in range(20)]
    made, packs, before = [], list[Path](), set[Path]()
    for one in data:
        made.append(store(lab.repo, one))
        packs.append(max(set(lab.packs()) - before, key=lambda path: path.stat().st_size))
        before = set(lab.packs())
    flip(packs[3], packs[3].stat().st_size // 2)
    packs[8].unlink()
    index = lab.place / "index" / packs[12].name
    index.write_bytes(index.read_bytes()[:-40])
    other = lab.open()
    report = other.verify()
    assert set(report.damaged) == {made[3].id, made[8].id} and len(report.sound) == 18
    named = {one.backups: one for one in report.damages}
    assert named.keys() == {(made[number].id,) for number in (3, 8, 12)}
    assert (named[(made[3].id,)].what, named[(made[3].id,)].name) == ("pack", packs[3].name)
    assert (named[(made[12].id,)].what, named[(made[12].id,)].name) == ("index", packs[12].name)
    for number, one in enumerate(made):
        if number not in (3, 8):
            assert load(other, one) == data[number]
    with pytest.raises(BackupAltered):  # while chunks are missing, nothing is deleted
        other.prune()
