"""Builds the Debian packages: ``python -m tools.packages.build [FOLDER]`` writes ``weft-{client,agent,server}_VERSION_ARCH.deb``,
and ``weft-doc_VERSION_all.deb``, the site of ``tools/site``.

Each of the others has a tree of its own below /usr/lib/weft: a virtual environment on Debian's Python, with weft and the packages
that it needs. So a machine's agent may be older than its server. Nothing is downloaded, and the same commit gives the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple

from tools.packages.manual import write_client_pages, write_process_page
from tools.packages.tree import ROOT, copy_distribution, copy_source, list_needed, strip

from weft import __version__
from weft.launch.reference import write_file

HERE = Path(__file__).parent
MAINTAINER = "The weft developers <developers@weft.invalid>"
PYTHON = "libc6 (>= 2.34), python3 (>= 3.11), python3 (<< 3.12)"  # also of the libraries in its packages
DOC = "doc"
SCRIPTS = ("postinst", "prerm", "postrm")


class Package(NamedTuple):
    summary: str
    description: str
    rooms: tuple[str, ...]  # of weft's source; ".": all
    extras: tuple[str, ...]
    depends: str
    recommends: str = ""
    suggests: str = ""
    section: str = "admin"


PACKAGES = {
    "client": Package(
        "command line of weft, a fabric for VMs, containers and jobs",
        "The weft program, with which people and scripts use a fabric: a cluster of machines that runs virtual machines, "
        "containers, functions and batch jobs. It brings no service.",
        (
            *("cli", "client", "kinds", "language", "objects", "protocol", "contracts", "trust"),
            *("launch/__init__.py", "launch/entry.py"),
        ),
        (),
        PYTHON,
        suggests="nix-bin, openssh-client",
    ),
    "agent": Package(
        "agent of weft, which runs the guests of one machine",
        "Makes this machine a node of a weft fabric, on which its virtual machines, containers, functions and jobs run. Guests "
        "go on while the agent is upgraded, restarted or removed.",
        (".",),
        ("agent",),
        f"{PYTHON}, conntrack, dnsmasq-base, e2fsprogs, iproute2, libseccomp2, mount, nftables, openssl, procps, "
        "weft-client",
        "bubblewrap, conmon, crun, fdisk, golang-github-containers-common, haproxy, netavark, ovmf, qemu-system-x86 (>= 1:9), "
        "qemu-utils (>= 1:9), seabios, zstd",
        "ceph-common, containerd, criu, ipmitool",
    ),
    "server": Package(
        "server of weft, a fabric for VMs, containers and jobs",
        "Answers people and nodes, keeps what they want in a store, places workloads on nodes and carries plans out. One of three "
        "may die.",
        (".",),
        ("server", "etcd"),
        f"{PYTHON}, adduser, libgcc-s1, libstdc++6, openssl, weft-client",
        "etcd-server, ipmitool, victoria-metrics",
        "python3-boto3",
    ),
    DOC: Package(
        "documents of weft, a fabric for VMs, containers and jobs",
        "Guide, reference and decisions as a site with a search, which is read without a network: "
        "/usr/share/doc/weft-doc/html/index.html.",
        (),
        (),
        "",
        suggests="weft-client, www-browser",
        section="doc",
    ),
}
OF_MACHINES = tuple(name for name in PACKAGES if name != DOC)  # those that run something


def build_packages(out: Path, names: Iterable[str] = OF_MACHINES, level: int = 2) -> list[Path]:
    """Write the packages into ``out``, which is made; older ones of the same name are replaced. ``level``: of compression."""
    out.mkdir(parents=True, exist_ok=True)
    when = int(os.environ.get("SOURCE_DATE_EPOCH") or _read_commit_time())
    return [_build(name, out, when, level) for name in names]


def _read_commit_time() -> str:
    run = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "0"


def _build(name: str, out: Path, when: int, level: int) -> Path:
    package = PACKAGES[name]
    began = time.monotonic()
    architecture = "all" if name == DOC else _ask("dpkg", "--print-architecture")
    target = out / f"weft-{name}_{__version__}_{architecture}.deb"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        if name == DOC:
            _fill_doc(root, when)
        else:
            _fill(root, name, package, when)
        size = _count_kib(root)
        _write_control(root, name, package, architecture, size)
        _age(root, when)
        part = target.with_suffix(".part")
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(when)}
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", f"-z{level}", "--threads-max=1", "--build", str(root), str(part)],
            check=True, stdout=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        part.replace(target)
    seconds = time.monotonic() - began
    print(
        f"✓ {target.name:<32} {target.stat().st_size >> 20:>3} MiB, installed {size >> 10:>3} MiB {seconds:6.1f} s",
        flush=True,
    )
    return target


def _fill(root: Path, name: str, package: Package, when: int) -> None:
    tree = root / "usr/lib/weft" / name
    packages = tree / "lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    copy_source(packages, package.rooms)
    for found in list_needed(package.extras):
        copy_distribution(packages, found)
    strip(packages)
    _write(tree / "pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = true\nversion = 3.11\n")
    (tree / "bin").mkdir()
    (tree / "bin/python3").symlink_to("/usr/bin/python3.11")
    program = root / "usr/bin/weft" if name == "client" else tree / "bin/weft"
    _write(program, (HERE / "client/weft").read_text().replace("/client/", f"/{name}/"), 0o755)
    man = root / "usr/share/man"
    if name == "client":
        for page, text in write_client_pages(__version__).items():
            _write_gz(man / "man1" / f"{page}.gz", text)
        for shell, place in COMPLETIONS.items():
            script = _ask(str(tree / "bin/python3"), str(program), "completion", shell)
            _write(root / "usr/share" / place, script.replace(str(root), "") + "\n")
    else:
        _write_gz(man / "man8" / f"weft-{name}.8.gz", write_process_page(name, __version__))
        _write(root / "lib/systemd/system" / f"weft-{name}.service", (HERE / name / f"weft-{name}.service").read_text())
        _write(root / "etc/weft" / f"{name}.yaml", write_file(name))
        _add_installer(root, name)
    if name == "server":
        _write(root / "usr/lib/sysusers.d/weft-server.conf", (HERE / "server/weft-server.sysusers").read_text())
    _document(root / f"usr/share/doc/weft-{name}", when)
    overrides = (HERE / "lintian-overrides").read_text().replace("NAME", name)
    _write(root / f"usr/share/lintian/overrides/weft-{name}", overrides)


def _fill_doc(root: Path, when: int) -> None:
    """The site, in a process of its own: what builds it is installed only for that (``tools/install docs``)."""
    folder = root / "usr/share/doc/weft-doc"
    subprocess.run(
        [sys.executable, "-m", "tools.site.build", folder / "html"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL
    )
    _document(folder, when)
    _write(folder / "copyright", (HERE / "doc/copyright").read_text())
    _write(root / "usr/share/doc-base/weft-doc.weft", (HERE / "doc/weft-doc.weft").read_text())


def _add_installer(root: Path, name: str) -> None:
    """What installs the packages of ``weft fabric upgrade``, see ``drivers/package``."""
    units = root / "lib/systemd/system"
    program = root / f"usr/lib/weft/{name}/install"
    _write(program, (HERE / "install").read_text().replace("ROLE", name), 0o755)
    for suffix in ("path", "service"):
        text = (HERE / f"weft-install.{suffix}").read_text().replace("ROLE", name)
        _write(units / f"weft-{name}-install.{suffix}", text)
    wants = units / "multi-user.target.wants"
    wants.mkdir()
    (wants / f"weft-{name}-install.path").symlink_to(f"../weft-{name}-install.path")


COMPLETIONS = {
    "bash": "bash-completion/completions/weft",
    "zsh": "zsh/vendor-completions/_weft",
    "fish": "fish/vendor_completions.d/weft.fish",
}


def _document(folder: Path, when: int) -> None:
    _write(folder / "copyright", (HERE / "copyright").read_text())
    entry = f"weft ({__version__}) unstable; urgency=medium\n\n  * See /usr/share/doc/weft-client/CHANGELOG.md.gz.\n\n"
    _write_gz(folder / "changelog.gz", f"{entry} -- {MAINTAINER}  {formatdate(when)}\n")
    if folder.name == "weft-client":
        _write_gz(folder / "CHANGELOG.md.gz", (ROOT / "CHANGELOG.md").read_text())


def _write_control(root: Path, name: str, package: Package, architecture: str, size: int) -> None:
    fields = {
        "Package": f"weft-{name}",
        "Version": __version__,
        "Architecture": architecture,
        "Maintainer": MAINTAINER,
        "Installed-Size": str(size),
        "Depends": package.depends,
        "Recommends": package.recommends,
        "Suggests": package.suggests,
        "Section": package.section,
        "Priority": "optional",
        "Description": f"{package.summary}\n{_fold(package.description)}",
    }
    text = "".join(f"{field}: {value}\n" for field, value in fields.items() if value)
    folder = root / "DEBIAN"
    _write(folder / "control", text)
    for script in SCRIPTS:
        if (HERE / name / script).exists():
            _write(folder / script, (HERE / name / script).read_text(), 0o755)
    files = [
        file
        for file in sorted(root.rglob("*"))
        if file.is_file() and not file.is_symlink() and folder not in file.parents
    ]
    kept = [f"/{file.relative_to(root)}" for file in files if file.is_relative_to(root / "etc")]
    if kept:
        _write(folder / "conffiles", "\n".join(kept) + "\n")
    sums = (
        f"{hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()}  {file.relative_to(root)}\n"
        for file in files
    )
    _write(folder / "md5sums", "".join(sums))


def _fold(text: str) -> str:
    lines, words = list[str](), text.split()
    line = ""
    for word in words:
        if len(line) + len(word) > 76:
            lines.append(line)
            line = ""
        line = f"{line} {word}"
    return "\n".join([*lines, line])


def _count_kib(root: Path) -> int:
    """The size when it is installed, as dpkg counts it."""
    files = (file for file in root.rglob("*") if file.is_file() and not file.is_symlink())
    return sum(-(-file.stat().st_size // 1024) for file in files) + sum(1 for file in root.rglob("*") if file.is_dir())


def _age(root: Path, when: int) -> None:
    for file in (root, *root.rglob("*")):
        os.utime(file, (when, when), follow_symlinks=False)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _write_gz(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _ask(*argv: str) -> str:
    environment = {"PATH": os.defpath, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(argv, check=True, capture_output=True, text=True, env=environment).stdout.strip()


if __name__ == "__main__":
    os.umask(0o022)
    build_packages(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "dist", PACKAGES)
