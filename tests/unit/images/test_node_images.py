"""The agent's container images: what a layout consists of, that equal inputs are equal bytes, and what the agent needs of them."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.images.layout import Layout
from weft.images.node import build
from weft.images.node.build import (
    ARCHITECTURES,
    HERE,
    build_node_images,
    copy_weft,
    install_wheels,
    keep_tools,
    lay_out,
    make_config,
    unpack_packages,
)
from weft.objects.errors import DriverFailed, InvalidInput

ROOT = Path(__file__).resolve().parents[3]


def make_tree(root: Path, content: str = "x") -> Path:
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/run").write_text(content)
    (root / "usr/bin/run").chmod(0o755)
    (root / "usr/bin/same").hardlink_to(root / "usr/bin/run")
    (root / "bin").symlink_to("usr/bin")
    return root


def write(folder: Path, *trees: Path) -> Path:
    layout = Layout(folder)
    layers = [layout.add_layer(tree) for tree in trees]
    images = {
        variant: [layout.add_image(name, layers[:count], make_config(variant)) for name in ARCHITECTURES]
        for variant, count in (("production", 1), ("development", 2))
    }
    layout.finish(images)
    return folder


def read(folder: Path, descriptor: dict[str, Any]) -> bytes:
    """The blob that ``descriptor`` is of, which is as it says."""
    data: bytes = (folder / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
    assert (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}") == (descriptor["size"], descriptor["digest"])
    return data


def test_a_layout_leads_from_its_index_to_each_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", make_tree(tmp_path / "base"), make_tree(tmp_path / "tools", "y"))
    assert msgspec.json.decode((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = msgspec.json.decode((folder / "index.json").read_bytes())
    named = {one["annotations"]["org.opencontainers.image.ref.name"]: one for one in index["manifests"]}
    assert list(named) == ["production", "development"]
    for variant, count in (("production", 1), ("development", 2)):
        manifests = msgspec.json.decode(read(folder, named[variant]))["manifests"]
        assert [one["platform"] for one in manifests] == [
            {"architecture": name, "os": "linux"} for name in ARCHITECTURES
        ]
        for one, name in zip(manifests, ARCHITECTURES, strict=True):
            manifest = msgspec.json.decode(read(folder, one))
            config = msgspec.json.decode(read(folder, manifest["config"]))
            assert config["architecture"] == name and config["config"] == make_config(variant)
            tars = [gzip.decompress(read(folder, layer)) for layer in manifest["layers"]]
            diff_ids = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]
            assert len(tars) == count and config["rootfs"] == {"type": "layers", "diff_ids": diff_ids}
    layer = next((folder / "blobs" / "sha256").glob("*"))
    assert len(list(layer.parent.iterdir())) == 2 + 2 * 6 + 2, "a layer of several images is there once"


def test_equal_trees_are_equal_bytes_whenever_and_by_whomever_they_were_made(tmp_path: Path) -> None:
    first, second, third = make_tree(tmp_path / "a"), make_tree(tmp_path / "b"), make_tree(tmp_path / "c", "other")
    for path in (second, *second.rglob("*")):
        os.utime(path, (1, 1), follow_symlinks=False)
        if os.geteuid() == 0:
            os.chown(path, 1000, 1000, follow_symlinks=False)
    index = [
        (write(tmp_path / f"out-{tree.name}", tree) / "index.json").read_bytes() for tree in (first, second, third)
    ]
    assert index[0] == index[1] != index[2]


def test_the_layout_in_the_way_is_replaced_only_by_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write(tmp_path / "out", make_tree(tmp_path / "base"))
    before = (out / "index.json").read_bytes()
    monkeypatch.setattr(build, "require", lambda *given: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def make(root: Path, name: str, packages: Any, report: Any) -> None:
        if "busybox-static" not in packages:
            make_tree(root)
            (root / "etc").mkdir()
        elif name == "arm64":
            raise DriverFailed("no busybox")
        else:
            (root / "bin").mkdir(parents=True)
            (root / "bin/busybox").write_text("busybox")

    monkeypatch.setattr(build, "unpack_packages", make)
    monkeypatch.setattr(build, "install_wheels", lambda target, name: None)
    monkeypatch.setattr(build, "compile_modules", lambda *given: None)
    lines: list[str] = []
    with pytest.raises(DriverFailed, match="no busybox"):
        build_node_images(out, lines.append, ["amd64", "arm64"])
    assert (out / "index.json").read_bytes() == before
    build_node_images(out, lines.append, ["amd64"])
    found = [line for line in lines if line.startswith("amd64 production: ")]
    assert len(found) == 2 and found[0] == found[1] and "MiB, sha256:" in found[0]
    assert (out / "index.json").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"], "nothing of the builds is left"


def test_production_has_no_shell_and_development_has_one(tmp_path: Path) -> None:
    base, tools = tmp_path / "base", tmp_path / "tools"
    (base / "bin").mkdir(parents=True)
    for shell in ("sh", "dash"):
        (base / "bin" / shell).write_text("a shell")
    (base / "etc").mkdir()
    (base / "usr/bin").mkdir(parents=True)
    lay_out(base, "3.11")
    assert sorted(path.name for path in (base / "bin").iterdir()) == []
    assert os.readlink(base / "usr/bin/python3") == "python3.11" and os.readlink(base / "lib") == "usr/lib"
    (tools / "bin").mkdir(parents=True)
    (tools / "bin/busybox").write_text("busybox")
    (tools / "bin/other").write_text("not wanted")
    keep_tools(tools, base)
    assert {str(path.relative_to(tools)) for path in tools.rglob("*") if not path.is_dir()} == {
        "usr/bin/busybox", "usr/bin/sh", "bin/sh",
    }  # fmt: skip


def test_an_image_has_all_that_its_agent_imports(tmp_path: Path) -> None:
    """Beside the standard library: weft without the rooms that are left out, and the wheels in the list."""
    copy_weft(tmp_path)
    site = Path(msgspec.__file__).parents[1]
    for module in ("msgspec", "httptools", "zstandard"):
        (tmp_path / module).symlink_to(site / module)
    assert not (tmp_path / "weft/api").exists() and not list((tmp_path / "weft").rglob("__pycache__"))
    code = f"""
import importlib, pkgutil, sys
sys.path.append({str(tmp_path)!r})
import weft.agent, weft.drivers, weft.launch.agent
for room in (weft.agent, weft.drivers, weft.launch.agent):
    for found in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except ModuleNotFoundError as problem:
                if problem.name not in ("grpc", "google"):
                    raise
                print(found.name)
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    without = done.stdout.split()  # images have no client for containerd
    assert [
        name
        for name in without
        if not name.startswith(("weft.drivers.runtime.oci.containerd", "weft.drivers.runtime.oci.kata"))
    ] == []


def test_the_wheels_are_those_of_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text().replace("\\\n", "")
    pinned = {line.split()[0]: sorted(line.split()[1:]) for line in lock.splitlines() if line and line[0] not in "# -"}
    for file in HERE.glob("requirements*.txt"):
        for line in file.read_text().replace("\\\n", "").splitlines()[1:]:
            name, *hashes = line.split()
            assert pinned[name] == sorted(hashes), f"{name}: take it from requirements.lock"


def test_a_wheel_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DriverFailed) as raised:
        install_wheels(tmp_path, "riscv64")
    assert (
        "has no wheel of httptools==" in raised.value.message and "for riscv64 and Python 3.13" in raised.value.message
    )


@pytest.fixture
def mmdebstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, which notes its arguments, and does as the script ``act`` beside it says."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "mmdebstrap").write_text(f'#!/bin/sh\necho "$*" >>{folder}/asked\n. {folder}/act\n')
    (folder / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(build, "find_sources", lambda suite: ("deb m trixie main", ["deb s trixie-security main"]))
    return folder


@pytest.mark.parametrize(
    "words", ["E: Unable to locate package crun", "E: Package 'crun' has no installation candidate"]
)
def test_a_package_that_is_missing_is_named(mmdebstrap: Path, tmp_path: Path, words: str) -> None:
    (mmdebstrap / "act").write_text(f'echo "{words}\nE: mmdebstrap failed to run" >&2; exit 1\n')
    with pytest.raises(DriverFailed) as raised:
        unpack_packages(tmp_path / "root", "riscv64", ["crun"], print)
    assert raised.value.message == "image agent can't be built: trixie has no package crun for riscv64"


def test_security_updates_whose_lists_cannot_be_used_are_left_out_and_told(mmdebstrap: Path, tmp_path: Path) -> None:
    refuse = "echo 'I: update\nE: the list is expired\nE: mmdebstrap failed to run' >&2; exit 1"
    (mmdebstrap / "act").write_text(f'case "$*" in *trixie-security*) {refuse};; esac\n')
    lines: list[str] = []
    unpack_packages(tmp_path / "root", "riscv64", ["crun", "mount"], lines.append)
    assert lines == ["riscv64: without the security updates of trixie: the list is expired"]
    first, second = (mmdebstrap / "asked").read_text().splitlines()
    assert first.endswith("deb m trixie main deb s trixie-security main") and second.endswith("deb m trixie main")
    assert "--architectures=riscv64 --include=crun,mount trixie" in second


def test_what_else_apt_says_is_passed_on(mmdebstrap: Path, tmp_path: Path) -> None:
    (mmdebstrap / "act").write_text("echo 'E: no way to the network' >&2; exit 1\n")
    with pytest.raises(DriverFailed, match="packages of bookworm: no way to the network"):
        unpack_packages(tmp_path / "root", "arm64", ["crun"], lambda what: None)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no image is built for architecture m68k") as raised:
        build_node_images(tmp_path / "out", print, ["amd64", "m68k"])
    assert raised.value.hint == "there are amd64, arm64, riscv64"


def test_packages_come_from_debian_s_own_site_also_where_apt_has_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apt-get").write_text(
        """#!/bin/sh
echo "mirror://a bookworm main Debian
mirror://b bookworm-security main Debian
mirror://c bookworm-backports main Debian Backports
mirror://d stable main Acme
mirror://e bookworm main Acme"
"""
    )
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert build.find_sources("trixie") == (
        "deb mirror://a trixie main",
        ["deb mirror://b trixie-security main"],
    )


def test_an_architecture_without_an_image_and_an_interrupt_are_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    main = importlib.import_module("weft.images.node.__main__")
    monkeypatch.setattr(main, "build_node_images", interrupt)
    monkeypatch.setattr(sys, "argv", ["node", "--architecture=arm46"])
    assert main.main() == 2
    assert capsys.readouterr().err == "error: no image is made for 'arm46'; architectures: amd64, arm64, riscv64\n"
    monkeypatch.setattr(sys, "argv", ["node", "--architecture=arm64"])
    assert main.main() == 130 and capsys.readouterr().err == "interrupted\n"
