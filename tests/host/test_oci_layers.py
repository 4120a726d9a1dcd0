"""Layers as strangers write them, unpacked for real: what overlayfs shows of them, and that no trick leads out or stays."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_lab import LAYER, Made, entry, files, leftovers, node, pack, public_folder, tar, write_layout

from weft.drivers.image.oci.unpack.process import Limits
from weft.objects.errors import InvalidInput, TooLarge, WeftError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
DIR, LINK, HARD, CHAR, FIFO = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE


@pytest.fixture
def place() -> Iterator[Path]:
    with public_folder() as folder:
        yield folder


async def pull(place: Path, layers: list[bytes], packing: str = "plain", **more: object) -> list[Path]:
    """The roots of an image with these layers, the uppermost first."""
    image = Made(layers, packing)
    layout = write_layout(place / f"layout{len(list(place.iterdir()))}", {"t": image})
    store = node(place / "state", **more)
    return [Path(path) for path in store.root(await store.pull(f"oci:{layout}:t"))]


def merged(place: Path, roots: list[Path], look: str) -> str:
    """What ``look`` (a shell command, run in the overlay of ``roots``) prints."""
    target = place / "merged"
    target.mkdir(exist_ok=True)
    script = (
        f"mount -t overlay o -o lowerdir={':'.join(map(str, roots))}:{place}/none {target} && cd {target} && {look}"
    )
    (place / "none").mkdir(exist_ok=True)
    return subprocess.run(["unshare", "-m", "sh", "-ec", script], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd"])
async def test_kinds_owners_modes_times_and_attributes_are_kept(place: Path, packing: str) -> None:
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0).decode("utf-8", "surrogateescape")
    layer = tar(
        [
            entry("./", DIR, mode=0o711, uid=3, gid=4),
            entry("bin/", DIR, mtime=1000),
            (entry("bin/su", mode=0o4755, uid=0, gid=5, mtime=1234), b"su"),
            (
                entry(
                    "bin/ping", pax_headers={"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.a": "b"}
                ),
                b"p",
            ),
            entry("bin/ping2", HARD, linkname="bin/ping"),
            entry("etc/link", LINK, linkname="../../../../etc/passwd", uid=7),
            entry("run/pipe", FIFO, mode=0o640),
            (entry("tmp/" + "long" * 60, uid=2_000_000, gid=2_000_001), b"x" * 3_000_000),
            (entry("/absolute/file"), b"here"),
        ]
    )
    (root,) = await pull(place, [layer], packing)
    facts = root.stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid) == (0o711, 3, 4)
    su = (root / "bin/su").stat()
    assert (stat.S_IMODE(su.st_mode), su.st_gid, su.st_mtime) == (0o4755, 5, 1234)
    assert (root / "bin").stat().st_mtime == 1000
    assert os.getxattr(root / "bin/ping", "security.capability")[:1] == b"\x01"
    assert os.getxattr(root / "bin/ping", "user.a") == b"b"
    assert (root / "bin/ping2").samefile(root / "bin/ping")
    assert os.readlink(root / "etc/link") == "../../../../etc/passwd" and (root / "etc/link").lstat().st_uid == 7
    assert stat.S_ISFIFO((root / "run/pipe").stat().st_mode)
    assert next((root / "tmp").iterdir()).stat().st_size == 3_000_000
    assert next((root / "tmp").iterdir()).stat().st_uid == 2_000_000
    assert (root / "absolute/file").read_text() == "here"


async def test_deletions_hide_what_lower_layers_have(place: Path) -> None:
    below = files(a="1", b="1", d__one="1", d__two="1", e__x="1", f__x="1", etc__passwd="u:x:5:6::/home/u:/bin/sh\n")
    above = tar(
        [
            entry(".wh.a"),
            entry("d/", DIR),
            entry("d/.wh..wh..opq"),
            (entry("d/three"), b"3"),
            entry(".wh.e"),
            (entry("e/y"), b"2"),  # the name is there again, without what lay below
            (entry("f/y"), b"2"),
            entry(".wh.f"),
            entry(".wh..wh.plnk"),
        ]
    )
    roots = await pull(place, [below, above])
    assert merged(place, roots, "find . -type f | sort").split() == [
        "./b",
        "./d/three",
        "./e/y",
        "./etc/passwd",
        "./f/y",
    ]


async def test_a_folder_that_upper_layers_have_no_entry_for_stays_as_the_nearest_lower_layer_has_it(
    place: Path,
) -> None:
    lower = tar(
        [
            entry("tmp/", DIR, mode=0o1777, mtime=1000),
            entry("home/", DIR),
            entry("home/app/", DIR, uid=1000, gid=1000, mode=0o750),
            entry("home/app/cache/", DIR, uid=1000, gid=1000, mode=0o700, pax_headers={"SCHILY.xattr.user.a": "b"}),
            (entry("home/app/cache/old"), b"old"),
            entry("var/spool/", DIR, gid=50, mode=0o2775),
            entry("gone/", DIR, uid=5, mode=0o700),
            entry("emptied/", DIR, uid=6, mode=0o700),
            entry("changed/", DIR, uid=7, mode=0o700),
            entry("linked/", DIR, uid=8, mode=0o700),
            entry("usr/", DIR, uid=9, mode=0o711),
        ]
    )
    middle = tar([(entry(name), b"a") for name in ("tmp/a", "home/app/cache/b", "var/spool/c", "changed/d")])
    upper = tar(
        [
            *((entry(name), b"a") for name in ("tmp/b", "new/e", "gone/.wh.x", "emptied/.wh..wh..opq", "emptied/f")),
            entry("changed/", DIR, uid=70, mode=0o770),
            entry("to", LINK, linkname="usr"),
            entry("usr/", DIR, uid=90, mode=0o755),
            (entry("to/inner/g"), b"a"),
            entry(".wh.linked", mode=0),
        ]
    )
    roots = await pull(place, [lower, middle, upper])
    names = "tmp home/app home/app/cache var/spool gone emptied changed new usr usr/inner"
    attribute = f'{sys.executable} -c \'import os; print(os.getxattr("home/app/cache", "user.a"))\''
    look = f"stat -c '%n %a %u:%g' {names}; stat -c %Y tmp; {attribute}; ls home/app/cache; ! ls linked"
    seen = merged(place, roots, look)
    assert seen.splitlines()[:11] == [
        "tmp 1777 0:0",
        "home/app 750 1000:1000",
        "home/app/cache 700 1000:1000",
        "var/spool 2775 0:50",
        "gone 700 5:0",
        "emptied 755 0:0",
        "changed 770 70:0",
        "new 755 0:0",
        "usr 755 90:0",
        "usr/inner 755 0:0",
        "1000",
    ]
    assert seen.endswith("b'b'\nb\nold\n") and len(roots) == 4
    again = node(place / "state")
    layout = write_layout(place / "again", {"t": Made([lower, middle, upper], "plain")})
    assert [Path(path) for path in again.root(await again.pull(f"oci:{layout}:t"))] == roots


async def test_an_image_whose_layers_have_entries_for_all_their_folders_gets_no_layer_more(place: Path) -> None:
    layers = [files(etc__a="a"), tar([entry("etc/", DIR), (entry("etc/b"), b"b"), (entry("opt/c"), b"c")])]
    assert len(await pull(place, layers)) == 2


async def test_a_folder_is_not_looked_for_behind_a_link_of_another_layer(place: Path) -> None:
    lower, upper = tar([entry("a", LINK, linkname="/etc")]), tar([(entry("a/ssl/x"), b"x")])
    roots = await pull(place, [lower, upper])
    assert len(roots) == 2 and merged(place, roots, "stat -c '%a %u' a/ssl") == "755 0\n"


async def test_of_a_layer_that_comes_twice_the_uppermost_counts(place: Path) -> None:
    one, other = files(a="one", b="one"), files(a="other")
    roots = await pull(place, [one, other, one])
    assert len(roots) == 2
    assert merged(place, roots, "cat a b") == "oneone"


async def test_later_entries_replace_earlier_ones_and_never_write_through_a_link(place: Path) -> None:
    layer = tar(
        [
            (entry("a"), b"first"),
            entry("b", HARD, linkname="a"),
            (entry("b"), b"second"),
            entry("l", LINK, linkname="a"),
            (entry("l"), b"third"),
            (entry("d/x"), b""),
            (entry("d"), b"now a file"),
            (entry("f"), b"file"),
            entry("f", DIR),
            (entry("f/x"), b"in it"),
        ]
    )
    (root,) = await pull(place, [layer])
    assert [(root / name).read_text() for name in ("a", "b", "l", "d", "f/x")] == [
        "first", "second", "third", "now a file", "in it",
    ]  # fmt: skip


async def test_device_nodes_are_left_out(place: Path) -> None:
    layer = tar(
        [entry("dev/null", CHAR, devmajor=1, devminor=3), entry("sda", tarfile.BLKTYPE, devmajor=8), (entry("a"), b"1")]
    )
    (root,) = await pull(place, [layer])
    assert sorted(path.name for path in root.rglob("*")) == ["a"]


async def test_what_lies_behind_a_link_stays_in_the_layer(place: Path) -> None:
    victim = place / "victim"
    victim.mkdir()
    (victim / "file").write_text("untouched")
    layer = tar(
        [
            entry("abs", LINK, linkname=str(victim)),
            entry("up", LINK, linkname="../../../../../../../../../.." + str(victim)),
            entry(str(victim).lstrip("/"), DIR),
            (entry("abs/file"), b"taken"),
            (entry("up/other"), b"taken"),
        ]
    )
    (root,) = await pull(place, [layer])
    assert (victim / "file").read_text() == "untouched" and sorted(p.name for p in victim.iterdir()) == ["file"]
    inside = root / str(victim).lstrip("/")
    assert sorted(path.name for path in inside.iterdir()) == ["file", "other"]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([(entry("../out"), b"x")], "leads out"),
        ([(entry("a/../../out"), b"x")], "leads out"),
        ([entry("h", HARD, linkname="../../../../etc/shadow")], "leads out"),
        ([entry("h", HARD, linkname="/etc/shadow")], "doesn't have"),
        ([entry("l", LINK, linkname="/etc"), entry("h", HARD, linkname="l/shadow")], "doesn't have"),
        ([entry("h", HARD, linkname="in-a-lower-layer")], "doesn't have"),
        ([entry("d/", DIR), entry("h", HARD, linkname="d")], "not a file"),
        ([entry(".wh.x"), entry("h", HARD, linkname="x")], "doesn't have"),
        ([entry(".wh...")], "deletes an invalid name"),
        ([entry("d/.wh..")], "deletes an invalid name"),
        ([entry("gone", LINK, linkname="nowhere"), (entry("gone/x"), b"1")], "dangling link"),
        ([entry("loop", LINK, linkname="loop"), (entry("loop/x"), b"1")], "symbolic links"),
        ([(entry("f"), b"1"), (entry("f/x"), b"1")], "not a directory"),
        ([entry("", LINK, linkname="/")], "root"),
        ([entry("x", pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/etc"})], "no layer may set"),
        ([entry("x", pax_headers={"SCHILY.xattr.user.overlay.metacopy": "y"})], "no layer may set"),
        ([entry("x", pax_headers={"SCHILY.xattr.security.capability": "nonsense"})], "capabilities"),
        ([entry("x", pax_headers={"comment": "y" * (2 << 20)})], "header of"),
        ([entry("n" * 300)], "too long"),
        ([entry("x" * (1 << 21) )], "header of"),
        ([entry("x", pax_headers={"uid": "5000000000"})], "not user and group ids"),
        ([entry("x", b"Q")], "unknown type"),
    ],
)  # fmt: skip
async def test_tricks_are_refused_and_leave_nothing(
    place: Path, entries: list[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        await pull(place, [tar(entries)])
    assert caught.value.token in ("hostileLayer", "badLayer") and caught.value.hint
    assert leftovers(place / "state") == []


def sparse_bomb() -> bytes:
    """A few bytes that say they are a terabyte of holes."""
    member = entry("hole", pax_headers={"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "hole",
                   "GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,1"})  # fmt: skip
    return tar([(member, b"x")])


async def test_bombs_are_defused(place: Path) -> None:
    limits = Limits(entries=1000, bytes=200 << 20, ratio=100)
    zeros = tar([(entry("z"), bytes(150 << 20))])
    for layer, packing in ((zeros, "gzip"), (zeros, "zstd"), (sparse_bomb(), "plain")):
        with pytest.raises(TooLarge, match=r"times|more than"):
            await pull(place, [layer], packing, limits=limits)
    many = tar(entry(f"f{number}") for number in range(1100))
    with pytest.raises(TooLarge, match="1000 entries"):
        await pull(place, [many], limits=limits)
    large = tar([(entry("z"), os.urandom(3 << 20))])
    with pytest.raises(TooLarge, match="more than 2097152 bytes"):
        await pull(place, [large], limits=Limits(bytes=2 << 20))
    assert leftovers(place / "state") == []


async def test_sparse_files_keep_their_holes(place: Path) -> None:
    source = place / "source"
    source.mkdir()
    with (source / "disk").open("wb") as file:
        file.seek(50 << 20)
        file.write(b"end")
    for form in ("gnu", "pax"):
        layer = subprocess.run(
            ["tar", "-C", source, f"--format={form}", "-Sc", "disk"], capture_output=True, check=True
        ).stdout
        assert len(layer) < 1 << 20
        (root,) = await pull(place, [layer])
        facts = (root / "disk").stat()
        assert facts.st_size == (50 << 20) + 3 and facts.st_blocks * 512 < 4 << 20
        assert (root / "disk").read_bytes()[-3:] == b"end"


@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd"])
async def test_layers_that_are_cut_off_or_none_are_told_apart_from_good_ones(place: Path, packing: str) -> None:
    whole = tar([(entry("a"), os.urandom(400_000)), (entry("b"), b"1")])
    packed = pack(whole, packing)
    tries = [packed[: len(packed) // 2], b"no archive at all" * 100, packed[:-2000] + b"x" * 2000]
    for broken in tries[: 2 if packing == "plain" else 3]:  # what follows a plain tar's end is the digest's matter
        with pytest.raises(WeftError) as caught:
            await pull_raw(place, broken, packing)
        assert caught.value.token in ("badLayer", "wrongDigest"), caught.value.message
    assert leftovers(place / "state") == []


async def pull_raw(place: Path, blob: bytes, packing: str) -> None:
    """An image with the blob ``blob`` as it is."""
    image = Made([blob], "plain")
    kind = LAYER if packing == "plain" else f"{LAYER}+{packing}"
    manifest = image.blobs.pop(image.manifest).decode().replace(LAYER, kind).encode()
    image.descriptor = image._put(manifest, image.media_type)
    layout = write_layout(place / f"raw{len(list(place.iterdir()))}", {"t": image})
    await node(place / "state").pull(f"oci:{layout}:t")


async def test_a_tree_deeper_than_a_path_may_be_long_can_be_removed_again(place: Path) -> None:
    step = "/".join(["d" * 200] * 15)
    entries = [entry(step, DIR), entry("s1", LINK, linkname=step), entry(f"s1/{step}", DIR)]
    entries += [entry("s2", LINK, linkname=f"s1/{'d' * 200}"), entry(f"s2/{step}", DIR)]
    entries += [entry(".wh..")]
    with pytest.raises(InvalidInput, match="deletes an invalid name"):
        await pull(place, [tar(entries)])
    assert leftovers(place / "state") == []


TRIES = """
import ctypes, os, signal, socket, sys
sys.path[:0] = {path!r}
from weft.drivers.image.oci.unpack.confinement import confine
def attempt(what):
    try:
        what()
    except OSError as problem:
        return problem.strerror
    return "done"
libc = ctypes.CDLL(None, use_errno=True)
def call(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
confine({root!r}, 1 << 20)
print("root", os.listdir("/"), os.listdir("/.."))
print("others", os.getpid(), attempt(lambda: os.kill({pid}, 0)))
print("disk", attempt(lambda: os.mknod("disk", 0o60600, os.makedev(8, 0))))
print("whiteout", attempt(lambda: os.mknod("gone", 0o20600, os.makedev(0, 0))))
print("trusted", attempt(lambda: os.setxattr("/", "trusted.overlay.redirect", b"x")))
print("mount", attempt(lambda: call(libc.mount(b"x", b"/", b"tmpfs", 0, None))))
print("chroot", attempt(lambda: os.chroot(".")))
print("user", attempt(lambda: os.setuid(33)))
print("network", attempt(lambda: socket.socket().connect(("127.0.0.1", {port}))))
print("large", attempt(lambda: os.truncate(os.open("big", os.O_CREAT | os.O_RDWR), 2 << 20)))
"""


async def test_the_process_that_unpacks_has_nothing_but_its_layer(place: Path) -> None:
    root = place / "root"
    root.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = {"path": sys.path, "root": str(root), "pid": os.getpid(), "port": server.getsockname()[1]}
        program = TRIES.format(**told)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    refused = "Operation not permitted"
    assert said == {
        "root": "[] []",
        "others": "1 No such process",
        "disk": refused,
        "whiteout": "done",
        "trusted": refused,
        "mount": refused,
        "chroot": refused,
        "user": refused,
        "network": "Network is unreachable",
        "large": "File too large",
    }, done.stderr
