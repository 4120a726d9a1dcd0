"""Builds the agent's container images: an OCI layout with the agent for amd64, arm64 and riscv64, each as ``production``, which has
no shell, and as ``development``, with busybox's.

Reads Debian packages from where this machine's apt has them, wheels from the Python package index, each known by its sha256, and
weft's own source. Nothing of another architecture is run: packages and wheels are only unpacked. mmdebstrap needs root. Writes the
layout in one rename.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import weft
from weft.images.layout import ImageManifest, Layer, Layout
from weft.images.parts import require
from weft.images.turn import take_turn, work_beside
from weft.objects.errors import DriverFailed, InvalidInput
from weft.objects.quantity import format_bytes

Report = Callable[[str], None]


class Architecture(NamedTuple):
    suite: str  # of Debian
    python: str
    platforms: tuple[str, ...]  # of wheels
    wheels: tuple[str, ...] = ("requirements.txt", "requirements-zstandard.txt")
    packages: tuple[str, ...] = ()  # of Debian, for what the index has no wheels of


def _list_platforms(machine: str, *glibc: int) -> tuple[str, ...]:
    return tuple(f"manylinux_2_{minor}_{machine}" for minor in glibc)


ARCHITECTURES = {
    "amd64": Architecture("bookworm", "3.11", (*_list_platforms("x86_64", 28, 17, 5), "manylinux2014_x86_64")),
    "arm64": Architecture("bookworm", "3.11", (*_list_platforms("aarch64", 28, 17), "manylinux2014_aarch64")),
    "riscv64": Architecture(
        "trixie", "3.13", _list_platforms("riscv64", 39, 35, 31), ("requirements.txt",), ("python3-zstandard",)
    ),  # Debian 12 doesn't have it
}
PRODUCTION, DEVELOPMENT = "production", "development"
# What the agent runs: openssl makes its key, the others containers and their networks.
PACKAGES = ("openssl", "crun", "iproute2", "nftables", "dnsmasq-base", "conntrack", "util-linux", "mount")
FOR_DEVELOPMENT = ("busybox-static",)
HERE = Path(__file__).parent
WITHOUT = (
    "api",
    "controllers",
    "scheduler",
    "gateway",
    "images",
    "drivers/device",
    "drivers/model",
    "__pycache__",
)  # what an agent never imports
STATE = "/var/lib/weft"
_REMOVED = (
    "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/binfmts", "usr/share/info", "var/cache",
    "var/lib/apt", "var/lib/dpkg", "var/lib/python", "var/log", "etc/apt", "etc/dpkg", "etc/hostname",
    "etc/resolv.conf", "etc/fstab",
)  # fmt: skip
_MOUNTED = ("proc", "sys", "dev", "tmp", "run", STATE.removeprefix("/"))
_SHELLS = ("sh", "dash", "bash")
_LINKED = (
    "bin",
    "sbin",
    "lib",
)  # newer releases have them in usr; the links come with a package that isn't needed else
_NEEDED = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "apt-get": "apt"}
_NEEDED_BYTES = 2 << 30
_START = "#!/usr/bin/python3\nfrom weft.launch.entry import main\n\nmain()\n"
_MISSING_PACKAGE = re.compile(r"Unable to locate package (\S+)|Package '?([\w.+-]+)'? has no installation candidate")
_APT_ERROR = re.compile(r"\bE: (.*)")
_MISSING_WHEEL = re.compile(r"No matching distribution found for ([^\s(]+)")


def build_node_images(out: Path, report: Report, architectures: Sequence[str] = tuple(ARCHITECTURES)) -> None:
    """Write the layout ``out``, a folder; an older one is replaced. Raises InvalidInput, DriverFailed."""
    unknown = sorted(set(architectures) - ARCHITECTURES.keys())
    if unknown or not architectures:
        given = ", ".join(unknown) or "none"
        raise InvalidInput(f"no image is built for architecture {given}", hint=f"there are {', '.join(ARCHITECTURES)}")
    require("agent", _NEEDED)
    if os.geteuid() != 0:
        raise DriverFailed("image agent can't be built: only root can unpack a system's files", hint="run it with sudo")
    with take_turn(out, report), work_beside(out, "agent") as work:
        free = shutil.disk_usage(work).free
        if free < _NEEDED_BYTES:
            raise DriverFailed(
                f"image agent can't be built: {free >> 20} MiB free in {out.parent}, {_NEEDED_BYTES >> 20} needed"
            )
        layout, images = Layout(work / "layout"), dict[str, list[ImageManifest]]()
        for name in dict.fromkeys(architectures):
            layers = _build_layers(layout, work / name, name, report)
            for variant, taken in ((PRODUCTION, layers[:-1]), (DEVELOPMENT, layers)):
                manifest = layout.add_image(name, taken, make_config(variant))
                images.setdefault(variant, []).append(manifest)
                report(f"{name} {variant}: {format_bytes(manifest.total)}, {manifest.digest}")
            shutil.rmtree(work / name)
        layout.finish(images)
        if out.exists():
            out.rename(work / "former")
        (work / "layout").rename(out)


def make_config(variant: str) -> dict[str, object]:
    """How a container of the image starts."""
    return {
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONUNBUFFERED=1"],
        # Without the columns of each instruction, which tracebacks alone show: half a MB.
        "Entrypoint": ["/usr/bin/python3", "-X", "no_debug_ranges", "/usr/local/bin/weft"],
        "Cmd": ["agent", "--help"],
        "Volumes": {STATE: {}},
        "Labels": {
            "org.opencontainers.image.title": "weft agent",
            "org.opencontainers.image.version": f"0.1.0-{variant}",
        },
    }


def _build_layers(layout: Layout, work: Path, name: str, report: Report) -> list[Layer]:
    """Debian's, weft's, and the one that only development has."""
    one = ARCHITECTURES[name]
    base, own, tools = work / "base", work / "own", work / "tools"
    python = [f"python{one.python}-minimal", f"libpython{one.python}-stdlib"]
    work.mkdir()
    report(f"{name}: packages of {one.suite}")
    unpack_packages(base, name, (*python, *one.packages, *PACKAGES), report)
    lay_out(base, one.python)
    report(f"{name}: wheels and weft")
    lay_out_agent(own, name)
    for root, folder in ((base, f"usr/lib/python{one.python}"), (own, "usr")):
        compile_modules(root, folder, one.python)
    report(f"{name}: tools for development")
    unpack_packages(tools, name, FOR_DEVELOPMENT, report)
    keep_tools(tools, base)
    return [layout.add_layer(root) for root in (base, own, tools)]


def unpack_packages(root: Path, name: str, packages: Sequence[str], report: Report) -> None:
    """Unpack Debian's ``packages`` and what they depend on into ``root``: with the suite's security updates, or, where their lists
    can't be used, without, and say so. Raises DriverFailed, which names a package that isn't there."""
    suite = ARCHITECTURES[name].suite
    main, security = find_sources(suite)
    refused = _unpack(root, name, packages, suite, [main, *security])
    if refused and security and not _MISSING_PACKAGE.search(refused):
        shutil.rmtree(root, ignore_errors=True)
        report(f"{name}: without the security updates of {suite}: {refused}")
        refused = _unpack(root, name, packages, suite, [main])
    if refused:
        found = _MISSING_PACKAGE.search(refused)
        problem = (
            f"{suite} has no package {found[1] or found[2]} for {name}" if found else f"packages of {suite}: {refused}"
        )
        raise DriverFailed(
            f"image agent can't be built: {problem}",
            hint="check the mirror in /etc/apt, run apt-get update, and try again",
        )


def _unpack(root: Path, name: str, packages: Sequence[str], suite: str, sources: Sequence[str]) -> str:
    """Why it failed; "" if it didn't."""
    done = subprocess.run(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
         "mmdebstrap", "--mode=root", "--variant=extract", "--format=directory", f"--architectures={name}",
         f"--include={','.join(packages)}", suite, str(root), *sources],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return ""
    first = _MISSING_PACKAGE.search(done.stderr) or _APT_ERROR.search(done.stderr)
    return (
        first[0].removeprefix("E: ")
        if first
        else done.stderr.strip()[-300:] or f"mmdebstrap ended with {done.returncode}"
    )


def find_sources(suite: str) -> tuple[str, list[str]]:
    """Lines for apt: the suite's packages, and their security updates if this machine has such, from where its own apt has its."""
    shown = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT) $(ORIGIN)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    known = [line.split() for line in shown.stdout.splitlines()]
    sites = {words[1]: words[0] for words in known if words[2:] == ["main", "Debian"]}  # other origins have suites, too
    security = next((site for release, site in sites.items() if release.endswith("-security")), None)
    main = next((site for release, site in sites.items() if re.fullmatch(r"[a-z]+", release)), None)
    if main is None:
        raise DriverFailed(
            "image agent can't be built: apt has no lists of Debian's packages",
            hint="run apt-get update, then try again",
        )
    return f"deb {main} {suite} main", [f"deb {security} {suite}-security main"] if security is not None else []


def lay_out(root: Path, python: str) -> None:
    """Make the unpacked packages a root: what nobody reads goes, and so do shells; what is mounted over is there."""
    _clear(root, python)
    for name in _MOUNTED:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for name in _LINKED:
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for folder in ("bin", "usr/bin"):
        for shell in _SHELLS:
            (root / folder / shell).unlink(missing_ok=True)
    (root / "usr/bin/python3").unlink(missing_ok=True)
    (root / "usr/bin/python3").symlink_to(f"python{python}")
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/usr/bin/python3\nnobody:x:65534:65534:nobody:/:/usr/bin/python3\n"
    )
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")


def _clear(root: Path, python: str) -> None:
    library = f"usr/lib/python{python}"
    rests = (f"{library}/{name}" for name in ("test", "lib2to3", "pydoc_data", "idlelib", "tkinter"))
    for name in (*_REMOVED, *rests, *(str(path.relative_to(root)) for path in root.glob("usr/lib/*/gconv"))):
        if (root / name).is_dir():
            shutil.rmtree(root / name)
        else:
            (root / name).unlink(missing_ok=True)


def keep_tools(root: Path, base: Path) -> None:
    """Leave of the unpacked tools only what ``base`` doesn't have: busybox, under the names of its shell and its own."""
    program = next(path for path in (root / "usr/bin/busybox", root / "bin/busybox") if path.exists())
    data = program.read_bytes()
    shutil.rmtree(root)
    folder = root / "usr/bin"
    folder.mkdir(parents=True)
    (folder / "busybox").write_bytes(data)
    (folder / "busybox").chmod(0o755)
    (folder / "sh").symlink_to("busybox")
    if not (base / "bin").is_symlink():
        (root / "bin").mkdir()
        (root / "bin/sh").symlink_to("/usr/bin/busybox")


def lay_out_agent(root: Path, name: str) -> None:
    """weft's own source, and the wheels that its agent needs, where Debian's Python finds both."""
    one = ARCHITECTURES[name]
    modules = root / f"usr/local/lib/python{one.python}/dist-packages"
    modules.mkdir(parents=True)
    install_wheels(modules, name)
    copy_weft(modules)
    script = root / "usr/local/bin/weft"
    script.parent.mkdir(parents=True)
    script.write_text(_START)
    script.chmod(0o755)
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path == script else 0o644)  # whatever the clone's umask was


def copy_weft(target: Path) -> None:
    """weft's source, without what no agent has."""
    own = Path(weft.__file__).parent
    unwanted = {own / name for name in WITHOUT}

    def leave_out(folder: str, names: list[str]) -> list[str]:
        return [each for each in names if each == "__pycache__" or Path(folder) / each in unwanted]

    shutil.copytree(own, target / "weft", ignore=leave_out)


def install_wheels(target: Path, name: str) -> None:
    """Raises DriverFailed, which names a wheel that isn't there."""
    one = ARCHITECTURES[name]
    abi = f"cp{one.python.replace('.', '')}"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--require-hashes",
         "--no-deps", "--only-binary=:all:", f"--python-version={one.python}", "--implementation=cp", f"--abi={abi}",
         "--abi=abi3", "--abi=none",
         *(f"--platform={platform}" for platform in one.platforms), "--no-compile", "--root-user-action=ignore",
         f"--target={target}", *(f"--requirement={HERE / file}" for file in one.wheels)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return
    missing = _MISSING_WHEEL.search(done.stderr)
    if missing is not None:
        what = f"the package index has no wheel of {missing[1]} for {name} and Python {one.python}"
        raise DriverFailed(f"image agent can't be built: {what}", hint="check the index that pip is configured for")
    raise DriverFailed(f"image agent can't be built: install wheels: {done.stderr.strip()[-500:]}")


def compile_modules(root: Path, folder: str, python: str) -> None:
    """Compile the modules below ``folder``, if this Python is of the image's version: a container's root is often read-only."""
    if python != f"{sys.version_info.major}.{sys.version_info.minor}":
        return
    done = subprocess.run(
        [sys.executable, "-I", "-m", "compileall", "-f", "-q", "-j1", "--invalidation-mode", "unchecked-hash", "-s", str(root),
         "-p", "/", str(root / folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise DriverFailed(f"image agent can't be built: compile Python's modules: {done.stdout.strip()[-500:]}")
