"""Packages of weft in a folder: read without dpkg, refused by name."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from weft.cli.fabric.packages import find_packages, read_package
from weft.objects.errors import InvalidInput


def make_package(path: Path, control: str, compression: str = "xz") -> Path:
    """A package with this control file, and no data."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{compression}") as archive:
        member = tarfile.TarInfo("./control")
        member.size = len(control.encode())
        archive.addfile(member, io.BytesIO(control.encode()))
    parts = {"debian-binary": b"2.0\n", f"control.tar.{compression}": packed.getvalue(), "data.tar.xz": b""}
    with path.open("wb") as out:
        out.write(b"!<arch>\n")
        for name, data in parts.items():
            out.write(
                f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
            )
    return path


def put(folder: Path, name: str, release: str = "0.2.0", architecture: str = "amd64") -> Path:
    control = f"Package: {name}\nVersion: {release}\nArchitecture: {architecture}\nDepends: {name} (= 1)\n"
    return make_package(folder / f"{name}_{release}_{architecture}.deb", control)


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_what_a_package_says_of_itself_is_read(tmp_path: Path, compression: str) -> None:
    text = "Package: weft-agent\nVersion: 0.2.0\nArchitecture: arm64\nDescription: agent\n Version: 6\n"
    path = make_package(tmp_path / "weft-agent.deb", text, compression)
    found = read_package(path)
    assert (found.name, found.release, found.architecture) == ("weft-agent", "0.2.0", "arm64")
    assert (found.sha256, found.size) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)


def test_a_folder_gives_the_packages_of_one_release_and_nothing_else(tmp_path: Path) -> None:
    for name in ("weft-client", "weft-agent", "weft-server", "weft-doc"):
        put(tmp_path, name)
    put(tmp_path, "weft-agent", architecture="arm64")
    (tmp_path / "notes.txt").touch()
    assert [(one.name, one.architecture) for one in find_packages(tmp_path)] == [
        ("weft-agent", "amd64"),
        ("weft-agent", "arm64"),
        ("weft-client", "amd64"),
        ("weft-server", "amd64"),
    ]


def test_what_is_missing_or_too_much_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such folder"):
        find_packages(tmp_path / "none")
    put(tmp_path, "weft-client")
    with pytest.raises(InvalidInput, match="weft-agent and weft-server are missing"):
        find_packages(tmp_path)
    put(tmp_path, "weft-agent")
    put(tmp_path, "weft-server", "0.3.0")
    with pytest.raises(InvalidInput, match=r"it has packages of weft 0\.2\.0 and 0\.3\.0"):
        find_packages(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"!<arch>\n",
        b"!<arch>\n" + b"x" * 60,
        b"!<arch>\n" + f"{'control.tar.xz':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{4:<10}`\n".encode() + b"junk",
        b"!<arch>\n" + f"{'control.tar.xz':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{9999999999:<10}`\n".encode(),
        b"!<arch>\n" + f"{'data':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{9999999999:<10}`\n".encode(),
    ],
)
def test_a_file_that_is_no_package_is_refused_by_its_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "weft-agent.deb"
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match=r"weft-agent\.deb: ") as refused:
        read_package(path)
    assert (refused.value.field, refused.value.hint) == ("--to", "make deb builds packages")


def test_a_package_without_a_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="its control file has no Version"):
        read_package(make_package(tmp_path / "weft-agent.deb", "Package: weft-agent\n"))
