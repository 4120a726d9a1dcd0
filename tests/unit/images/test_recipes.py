"""The images weft builds itself: their names, and what makes two recipes differ."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from weft.images import parts, recipes
from weft.images.debian.root import lay_out
from weft.images.recipes import Recipe, Report
from weft.images.turn import work_beside
from weft.kinds.image import OWN
from weft.objects.errors import DriverFailed, NotFound


def test_every_recipe_is_known_where_its_image_may_be_missing() -> None:
    assert tuple(sorted(recipes.RECIPES)) == OWN


def test_a_bundle_is_named_after_its_recipe_and_every_source_of_it_counts(tmp_path: Path) -> None:
    source = Path(recipes.__file__).parent / "debian"
    assert recipes.find_bundle("debian-12", tmp_path).name == f"debian-12-{parts.digest_recipe(source)[:12]}.tar"
    copy = tmp_path / "debian"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert parts.digest_recipe(copy) == parts.digest_recipe(source)
    (copy / "root.py").write_text((copy / "root.py").read_text() + "\n")
    assert parts.digest_recipe(copy) != parts.digest_recipe(source)


def test_what_all_recipes_share_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest agent, with all its parts, and what every first program is put together from."""
    before = parts.digest_recipe()
    agent, machine = tmp_path / "agent", tmp_path / "machine.h"
    shutil.copytree(parts.AGENT.parent, agent)
    shutil.copy(parts.MACHINE, machine)
    monkeypatch.setattr(parts, "AGENT", agent / "agent.c")
    monkeypatch.setattr(parts, "MACHINE", machine)
    assert parts.digest_recipe() == before
    for file in (agent / "command.h", machine):
        was = parts.digest_recipe()
        file.write_text(file.read_text() + "\n")
        assert parts.digest_recipe() != was


def test_a_bundle_that_is_there_is_not_built_again(tmp_path: Path) -> None:
    bundle = recipes.find_bundle("debian-12", tmp_path)
    bundle.write_bytes(b"built")
    assert recipes.ensure_bundle("debian-12", tmp_path, print) == bundle and bundle.read_bytes() == b"built"


def test_one_that_is_built_by_another_is_waited_for_and_not_built_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    told: list[str] = []
    builds: list[Path] = []

    def build(out: Path, cache: Path, say: Report) -> None:
        builds.append(out)
        begun.set()
        assert go_on.wait(20)
        out.write_bytes(b"built")

    def hear(word: str) -> None:
        told.append(word)
        go_on.set()

    monkeypatch.setitem(recipes.RECIPES, "tiny", Recipe("tiny", build))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(recipes.ensure_bundle, "tiny", tmp_path, told.append)
        assert begun.wait(20)
        second = pool.submit(recipes.ensure_bundle, "tiny", tmp_path, hear)
        assert first.result(20) == second.result(20)
    assert len(builds) == 1 and told == ["waiting for another build of it"]
    assert list(tmp_path.iterdir()) == [builds[0]]


def test_a_build_that_failed_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(out: Path, cache: Path, say: Report) -> None:
        raise DriverFailed("no")

    monkeypatch.setitem(recipes.RECIPES, "tiny", Recipe("tiny", fail))
    with pytest.raises(DriverFailed, match="no"):
        recipes.ensure_bundle("tiny", tmp_path, print)
    monkeypatch.setitem(recipes.RECIPES, "tiny", Recipe("tiny", lambda out, cache, say: out.touch()))
    assert [recipes.ensure_bundle("tiny", tmp_path, print)] == list(tmp_path.iterdir())


def test_an_unknown_recipe_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        recipes.find_bundle("windows", tmp_path)
    assert caught.value.hint == "there are busybox, debian-12, python3-11, tiny"


def test_missing_programs_are_named_by_their_packages() -> None:
    with pytest.raises(DriverFailed) as caught:
        parts.require("debian-12", {"no-such-program": "some-package", "sh": "dash"})
    assert caught.value.hint == "apt-get install some-package"


def test_a_tree_is_laid_out_without_keys_names_or_identities_of_its_own(tmp_path: Path) -> None:
    for name in ("etc/ssh", "lib/systemd/system", "etc/systemd/system"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/ssh/ssh_host_ed25519_key").write_text("secret")
    (tmp_path / "etc/hostname").write_text("builder")
    unit = "[Unit]\nBefore=sysinit.target network.target nss-lookup.target\n[Install]\nWantedBy=sysinit.target\n"
    (tmp_path / "lib/systemd/system/systemd-resolved.service").write_text(unit)
    lay_out(tmp_path)
    assert not (tmp_path / "etc/hostname").exists() and list((tmp_path / "etc/ssh").glob("ssh_host_*")) == []
    assert (tmp_path / "etc/machine-id").read_text() == ""
    assert "sysinit" not in (tmp_path / "etc/systemd/system/systemd-resolved.service").read_text()


def test_a_download_of_the_kernel_that_was_cut_off_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = "linux-image-6.1.0-1-cloud-amd64"
    programs, content, cache = tmp_path / "bin", tmp_path / "content", tmp_path / "cache"
    for folder in (programs, content / "DEBIAN", content / "boot", cache):
        folder.mkdir(parents=True)
    (content / "DEBIAN/control").write_text(
        f"Package: {package}\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody\nDescription: a kernel\n"
    )
    (content / "boot/vmlinuz").write_bytes(os.urandom(100_000))
    archive = tmp_path / f"{package}_1_amd64.deb"
    subprocess.run(["dpkg-deb", "-b", str(content), str(archive)], check=True, capture_output=True)
    (programs / "apt-cache").write_text(f"#!/bin/sh\necho 'Depends: {package} (= 1)'\n")
    (programs / "apt-get").write_text(f"#!/bin/sh\nhead -c 40000 {archive} > {archive.name}; exit 1\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(DriverFailed, match="download the kernel"):
        parts.fetch_kernel(cache)
    (programs / "apt-get").write_text(f"#!/bin/sh\ncp {archive} .\n")
    assert (parts.fetch_kernel(cache) / "boot/vmlinuz").read_bytes() == (content / "boot/vmlinuz").read_bytes()
    (programs / "apt-get").write_text("#!/bin/sh\nexit 1\n")
    assert [path.name for path in cache.iterdir()] == [parts.fetch_kernel(cache).name]


def test_builds_of_one_name_that_begin_and_end_at_once_take_nothing_away_from_each_other(tmp_path: Path) -> None:
    """Two variants of an image are two targets in one folder, and whoever begins looks for what was left there."""

    def build(index: int) -> None:
        for round_ in range(10):
            with work_beside(tmp_path / f"{index}.tar", "twin") as work:
                for file in range(60):
                    (work / f"{round_}-{file}").write_text(str(index))
                assert len([*work.iterdir()]) == 60

    with ThreadPoolExecutor(6) as builders:
        for built in [builders.submit(build, index) for index in range(6)]:
            built.result()
    assert [*tmp_path.iterdir()] == []
