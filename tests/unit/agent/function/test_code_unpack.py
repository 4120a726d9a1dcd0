"""Archives of functions' code and of a runtime's root: what is laid out, and what is refused with nothing written elsewhere."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from weft.agent.function import unpack
from weft.agent.function.unpack import lay_out_code, lay_out_root, stays_within
from weft.objects.errors import DriverFailed


def zipped(folder: Path, *members: tuple[str, bytes, int]) -> Path:
    path = folder / "code.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            packed.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def test_files_folders_and_links_within_are_laid_out_readable(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path,
        ("app.py", b"x", stat.S_IFREG | 0o600),
        ("lib/run", b"y", stat.S_IFREG | 0o4711),
        ("lib/link", b"../app.py", stat.S_IFLNK | 0o777),
    )
    target = tmp_path / "task"
    target.mkdir(mode=0o700)
    lay_out_code(archive, target)
    modes = {
        str(p.relative_to(target)): stat.S_IMODE(p.lstat().st_mode) for p in target.rglob("*") if not p.is_symlink()
    }
    assert modes == {"app.py": 0o644, "lib": 0o755, "lib/run": 0o755} and stat.S_IMODE(target.stat().st_mode) == 0o755
    assert (target / "lib/link").read_text() == "x"


@pytest.mark.parametrize(
    "members",
    [
        [("../out", b"x", stat.S_IFREG | 0o644)],
        [("/etc/out", b"x", stat.S_IFREG | 0o644)],
        [("a/../../out", b"x", stat.S_IFREG | 0o644)],
        [("out", b"/etc/passwd", stat.S_IFLNK | 0o777)],
        [("d/out", b"../../x", stat.S_IFLNK | 0o777)],
        [("fifo", b"", stat.S_IFIFO | 0o644)],
        [("dev", b"", stat.S_IFCHR | 0o644)],
        [("a", b"x", stat.S_IFREG | 0o644), ("a/b", b"x", stat.S_IFREG | 0o644)],
        [("l", b"d", stat.S_IFLNK | 0o777), ("l/x", b"x", stat.S_IFREG | 0o644)],
    ],
    ids="parent absolute winding link-absolute link-out fifo device file-as-folder through-link".split(),
)
def test_hostile_archives_are_refused(tmp_path: Path, members: list[tuple[str, bytes, int]]) -> None:
    target = tmp_path / "in" / "task"
    target.mkdir(parents=True)
    with pytest.raises(DriverFailed) as caught:
        lay_out_code(zipped(tmp_path, *members), target)
    assert caught.value.token == "Function.BadCode"
    assert not (tmp_path / "out").exists() and not (tmp_path / "in" / "out").exists()


def test_a_bomb_is_stopped_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MOST_CODE_BYTES", 1 << 20)
    target = tmp_path / "task"
    target.mkdir()
    archive = zipped(tmp_path, ("a", bytes(600_000), 0o100644), ("b", bytes(600_000), 0o100644))
    with pytest.raises(DriverFailed, match="unpacks to more than"):
        lay_out_code(archive, target)
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(DriverFailed, match="can't be unpacked"):
        lay_out_code(archive, tmp_path / "other")


def test_links_are_followed_by_their_words_alone() -> None:
    path = Path
    assert stays_within(path("a/b/l"), "../../x") and stays_within(path("l"), "x/../y")  # type: ignore[arg-type]
    assert not stays_within(path("l"), "..") and not stays_within(path("a/l"), "x/../../../y")  # type: ignore[arg-type]


def tarred(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        for info, content in members:
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    out.seek(0)
    return out


def entry(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, aim: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, aim
    return info


def test_a_root_keeps_modes_but_setuid_and_links_as_they_are(tmp_path: Path) -> None:
    lay_out_root(
        tarred(
            (entry("./bin", tarfile.DIRTYPE, 0o755), b""),
            (entry("./bin/su", mode=0o4755), b"su"),
            (entry("./lib64", tarfile.SYMTYPE, aim="/usr/lib64"), b""),
        ),
        tmp_path,
    )
    assert stat.S_IMODE((tmp_path / "bin/su").stat().st_mode) == 0o755
    assert str((tmp_path / "lib64").readlink()) == "/usr/lib64"


@pytest.mark.parametrize(
    "members",
    [
        [(entry("./l", tarfile.SYMTYPE, aim="/etc"), b""), (entry("./l/x"), b"x")],
        [(entry("./h", tarfile.LNKTYPE, aim="/etc/passwd"), b"")],
        [(entry("./n", tarfile.CHRTYPE), b"")],
        [(entry("../x"), b"x")],
    ],
    ids="through-link hard-link device parent".split(),
)
def test_a_hostile_root_is_refused(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with pytest.raises(DriverFailed):
        lay_out_root(tarred(*members), tmp_path)
