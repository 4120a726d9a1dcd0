"""Parts of image recipes: Debian's kernel, modules, C programs, archives and the bundle.

Reads Debian's package archive and runs the local compiler and tools; writes only where its caller says. The same inputs
give the same bytes: the one time stamp is EPOCH.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from weft.objects.errors import DriverFailed
from weft.objects.image.bundle import MANIFEST_NAME, BundleManifest

AGENT = Path(__file__).parent / "agent" / "agent.c"
MACHINE = Path(__file__).with_name("machine.h")  # for all that is PID 1 in a machine
EPOCH = 1_700_000_000  # the one time stamp of every file in an image
META_PACKAGE = "linux-image-cloud-amd64"
LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"


def require(image: str, needed: Mapping[str, str]) -> None:
    """Raises DriverFailed that names the Debian packages of the programs in ``needed`` which aren't here."""
    missing = sorted({package for tool, package in needed.items() if shutil.which(tool) is None})
    if missing:
        raise DriverFailed(
            f"image {image} can't be built: programs are missing", hint=f"apt-get install {' '.join(missing)}"
        )


def digest_recipe(*folders: Path) -> str:
    """SHA-256 (hex) over every source file of the recipe in ``folders``, and those that recipes share: tells a cached
    image whose recipe has changed."""
    digest = hashlib.sha256()
    sources = [path for folder in (*folders, AGENT.parent) for path in sorted(folder.iterdir())]
    for path in [*sources, Path(__file__), MACHINE]:
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def fetch_kernel(cache_dir: Path) -> Path:
    """The unpacked newest cloud kernel package; downloads it unless the cache has it, works offline if it has any.

    It appears in the cache in one rename, so another build never sees a part of it, and a download that was cut off
    leaves nothing that counts.
    """
    package = _kernel_package()
    known = [path for path in cache_dir.glob(f"{package or 'linux-image-*-cloud-amd64'}_*") if path.is_dir()]
    if known:
        return max(known, key=lambda path: path.stat().st_mtime)
    if not package:
        raise DriverFailed(
            f"an image can't be built: apt knows no {META_PACKAGE}", hint="run apt-get update, then try again"
        )
    with tempfile.TemporaryDirectory(prefix="kernel-", dir=cache_dir) as pending:
        fetch = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
        run(fetch, "download the kernel", Path(pending))
        (archive,) = Path(pending).glob(f"{package}_*.deb")
        run(["dpkg-deb", "-x", str(archive), f"{pending}/tree"], "unpack the kernel")
        tree = cache_dir / archive.stem
        try:
            os.replace(f"{pending}/tree", tree)
        except OSError:  # another build was faster; its tree is as good
            if not tree.exists():
                raise
    return tree


def _kernel_package() -> str | None:
    shown = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", META_PACKAGE], capture_output=True, text=True, check=False
    )
    found = re.search(r"^Depends:.*?(linux-image-[0-9][^ ,]*)", shown.stdout, re.MULTILINE)
    return found.group(1) if found else None


def compile_program(source: Path, target: Path) -> Path:
    """Compile one static C program. Raises DriverFailed with the compiler's words."""
    flags = ["-std=gnu17", "-Os", "-static", "-Wall", "-Wextra", "-Wl,--build-id=none", "-s"]
    run(["gcc", *flags, "-o", str(target), str(source)], f"compile {source.name}")
    return target


def write_kernel(tree: Path, target: Path) -> None:
    """The kernel as a bare ELF where the ``lz4`` program can unpack it, else the compressed one. The ELF boots by PVH
    and spares an emulated CPU the unpacking: 0.25 s of a boot of 1.4 s."""
    (compressed,) = (tree / "boot").glob("vmlinuz-*")
    image = compressed.read_bytes()
    setup_bytes = (image[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[setup_bytes + offset : setup_bytes + offset + length]
    if shutil.which("lz4") and payload.startswith(LZ4_LEGACY_MAGIC):
        # The payload ends with its unpacked size, which lz4 takes for a broken block after it has written everything.
        unpacked = subprocess.run(["lz4", "-dcq"], input=payload, capture_output=True, check=False).stdout
        if unpacked.startswith(b"\x7fELF") and len(unpacked) == struct.unpack("<I", payload[-4:])[0]:
            target.write_bytes(unpacked)
            return
    target.write_bytes(image)


def pack_cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    """A newc archive of (path, mode, content), all owned by root, padded to a page."""
    out = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (number, mode, 0, 0, links, EPOCH, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out + bytes(-len(out) % 4096))


def copy_modules(tree: Path, names: Sequence[str], target: Path, *, required: bool = True) -> list[Path]:
    """Copies without signature, types and debug parts: checking those costs an emulated CPU milliseconds per module."""
    found = {path.name: path for path in (tree / "lib/modules").rglob("*.ko")}
    target.mkdir(parents=True, exist_ok=True)
    copies = []
    for name in names:
        source = found.get(f"{name}.ko")
        if source is None:
            if required:
                raise DriverFailed(f"an image can't be built: kernel {tree.name} has no module {name}")
            continue
        run(["strip", "--strip-debug", "-R", ".BTF", "-o", str(target / source.name), str(source)], f"strip {name}")
        copies.append(target / source.name)
    return copies


def write_bundle(target: Path, manifest: BundleManifest, members: dict[str, Path]) -> None:
    """One tar, the manifest first."""
    manifest_path = target.with_name(MANIFEST_NAME)
    manifest_path.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, path in {MANIFEST_NAME: manifest_path, **members}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = path.stat().st_size, 0o644, EPOCH
            with open(path, "rb") as file:
                archive.addfile(info, file)


def run(
    argv: list[str],
    step: str,
    folder: Path | None = None,
    *,
    env: dict[str, str] | None = None,
    text: str | None = None,
) -> None:
    done = subprocess.run(argv, cwd=folder, env=env, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DriverFailed(f"an image can't be built: {step}: {done.stderr.strip()[-500:]}", details={"step": step})


def run_in_own_mounts(argv: list[str], step: str) -> None:
    """Run like ``run``, with mounts and processes of its own (it takes root): they are gone once it ends or this process does,
    killed or not. Needs util-linux."""
    walls = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    run(["setpriv", "--pdeathsig", "KILL", "unshare", *walls, *argv], step)
