"""The Debian packages, installed with dpkg in a copy of this machine's root that is thrown away (an overlay)."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.packages.build import DOC, OF_MACHINES, build_packages

from weft.kinds.parts.capabilities import DEFAULT_CAPABILITIES, MORE_CAPABILITIES

pytestmark = pytest.mark.host
MOST_MIB = {"client": 15, "agent": 110, "server": 110}  # installed
MOST_EXPOSED = {
    "server": 40,
    "agent": 95,
}  # tenths, by systemd-analyze security; an agent makes namespaces and mounts as root
MOUNT = """
set -e
mount -t tmpfs tmpfs "$1"; cd "$1"; mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount --rbind /dev root/dev; mount -t proc proc root/proc; mount -t tmpfs tmpfs root/run
cp "$2"/*.deb root/root/
exec chroot root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root bash -c "$3"
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packages")
    build_packages(out, level=0)
    return out


@pytest.fixture
def machine(packages: Path, tmp_path: Path) -> Iterator[object]:
    """Runs a shell's lines on a machine that has the packages in /root."""
    (tmp_path / "place").mkdir()

    def run(lines: str) -> subprocess.CompletedProcess[str]:
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", MOUNT, "mount"]
        argv += [str(tmp_path / "place"), str(packages), f"set -e\n{lines}"]
        return subprocess.run(argv, capture_output=True, text=True, timeout=300)

    if os.geteuid() != 0:
        pytest.skip("needs root")
    yield run


def read_fields(package: Path) -> dict[str, str]:
    text = subprocess.run(["dpkg-deb", "--field", package], check=True, capture_output=True, text=True).stdout
    return dict(re.findall(r"^([\w-]+): (.*)$", text, re.MULTILINE))


def test_the_packages_are_installed_used_and_purged(machine) -> None:
    run = machine("""
        dpkg --unpack /root/weft-client*.deb; dpkg --configure weft-client
        weft --version
        weft server config || true
        dpkg -i /root/weft-server*.deb /root/weft-agent*.deb >/dev/null
        weft server config --state /var/lib/weft/server | grep -c listen
        weft agent --help | head -1
        install -d -o weft -g weft -m 700 /var/lib/weft/server
        ip link set lo up 2>/dev/null || true
        setpriv --reuid weft --regid weft --clear-groups --no-new-privs --bounding-set=-all \\
            /usr/lib/weft/server/bin/weft server --state /var/lib/weft/server --metrics off \\
            --listen 127.0.0.1:28443 --gateway 127.0.0.1:28444 --functions 127.0.0.1:28445 2>/root/log &
        for _ in $(seq 300); do [ -e /var/lib/weft/server/context.json ] && break; sleep 0.1; done
        for _ in $(seq 100); do
            weft network list --context /var/lib/weft/server/context.json --no-header 2>/root/answer && break; sleep 0.2
        done || { cat /root/log /root/answer >&2; exit 1; }
        for _ in $(seq 100); do
            weft server list --context /var/lib/weft/server/context.json --no-header | grep controllers && break; sleep 0.2
        done || { cat /root/log >&2; exit 1; }
        ! grep Traceback /root/log >&2
        kill %1; wait
        find /usr/lib/weft -name '__pycache__' | head -1 | wc -l
        dpkg -r weft-agent weft-server weft-client >/dev/null
        ls /etc/weft | xargs; ls -d /usr/lib/weft || true
        dpkg -P weft-agent weft-server >/dev/null; ls -d /etc/weft || true; ls -d /var/lib/weft/server
    """)
    assert run.returncode == 0, run.stderr + run.stdout
    lines = run.stdout.splitlines()
    assert "weft 0.1.0" in lines and "1" in lines, run.stdout
    assert "error: weft server isn't installed on this machine\ninstall the package weft-server" in run.stderr
    assert any(line.startswith("usage: weft agent") for line in lines)
    assert any(line.split()[:2] == ["s1", "Ready"] and "controllers" in line for line in lines), run.stdout + run.stderr
    assert any(line.startswith("default ") for line in lines), run.stdout + run.stderr
    assert lines[-2:] == ["agent.yaml server.yaml", "/var/lib/weft/server"], "purging keeps what people have stored"
    assert "cannot access '/usr/lib/weft'" in run.stderr and "cannot access '/etc/weft'" in run.stderr


def test_what_an_upgrade_lays_down_is_installed_by_root_s_program(machine) -> None:
    """As systemd starts it; with systemd itself: test_packaged_machine.py."""
    run = machine("""
        dpkg -i /root/weft-client*.deb /root/weft-agent*.deb >/dev/null
        echo '# ours' >>/etc/weft/agent.yaml
        cd /var/lib/weft/install/agent; stat -c %a .
        cp /root/weft-client_*.deb weft-client_amd64.deb; cp /root/weft-agent_*.deb weft-agent_amd64.deb
        { echo uid/1; sha256sum *.deb; } >wanted
        /usr/lib/weft/agent/install; cat ../agent.outcome; ls
        { echo uid/2; echo "$(printf %064d 0)  weft-client_amd64.deb"; } >wanted
        /usr/lib/weft/agent/install; cat ../agent.outcome
        tail -1 /etc/weft/agent.yaml; ls /var/tmp | grep -c weft-install || true
    """)
    assert run.returncode == 0, run.stderr + run.stdout
    assert run.stdout.splitlines() == [
        *("700", "uid/1", "ok", "weft-agent_amd64.deb", "weft-client_amd64.deb"),
        *("uid/2", "the packages aren't the ones that were uploaded", "# ours", "0"),
    ]


@pytest.mark.parametrize("name", OF_MACHINES)
def test_a_package_says_what_it_is_and_stays_small(packages: Path, name: str) -> None:
    (package,) = packages.glob(f"weft-{name}_*.deb")
    fields = read_fields(package)
    assert fields["Package"] == f"weft-{name}" and fields["Version"] == "0.1.0"
    assert int(fields["Installed-Size"]) <= MOST_MIB[name] << 10
    listed = subprocess.run(["dpkg-deb", "--contents", package], check=True, capture_output=True, text=True).stdout
    assert "root/root" in listed and not re.search(r"__pycache__|\.pyc\b", listed)
    if name == "client":
        assert "numpy" not in listed and "uvloop" not in listed and "weft/scheduler" not in listed


def test_the_same_commit_gives_the_same_package(packages: Path, tmp_path: Path) -> None:
    (first,), (second,) = packages.glob("weft-client_*.deb"), build_packages(tmp_path, ["client"], level=0)
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_a_service_is_confined(name: str) -> None:
    unit = f"tools/packages/{name}/weft-{name}.service"
    argv = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED[name]}", unit]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout[-300:]


def test_the_agent_s_service_forbids_nothing_that_guests_would_inherit() -> None:
    """Its guests are its descendants: a filter of system calls, devices or capabilities is theirs, too."""
    unit = Path("tools/packages/agent/weft-agent.service").read_text()
    inherited = ("LockPersonality", "Memory", "NoNew", "Private", "Protect", "Restrict", "SystemCall", "Device")
    assert [line for line in unit.splitlines() if line.startswith(inherited)] == []
    (bounded,) = re.findall(r"^CapabilityBoundingSet=~(.*)$", unit, re.MULTILINE)
    kept = {f"CAP_{name}" for name in (*DEFAULT_CAPABILITIES, *MORE_CAPABILITIES)}
    assert kept.isdisjoint(bounded.split())
    assert "KillMode=process" in unit and "Delegate=yes" in unit


@pytest.mark.long
@pytest.mark.parametrize("name", OF_MACHINES)
def test_lintian_finds_no_error(packages: Path, name: str) -> None:
    (package,) = packages.glob(f"weft-{name}_*.deb")
    argv = ["lintian", "--allow-root", "--fail-on", "error", package]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs what make docs needs: tools/install docs")
    (package,) = build_packages(tmp_path_factory.mktemp("documents"), [DOC], level=0)
    return package


def test_the_documents_are_a_package_for_any_machine(documents: Path, tmp_path: Path) -> None:
    fields = read_fields(documents)
    assert documents.name == "weft-doc_0.1.0_all.deb"
    assert (fields["Package"], fields["Architecture"], fields.get("Depends")) == ("weft-doc", "all", None)
    subprocess.run(["dpkg-deb", "--extract", documents, tmp_path], check=True)
    index = re.findall(r"^Index: (.*)$", (tmp_path / "usr/share/doc-base/weft-doc.weft").read_text(), re.MULTILINE)
    assert "Virtual machines" in (tmp_path / index[0].lstrip("/")).read_text()
    pages = [path.read_text() for path in (tmp_path / index[0].lstrip("/")).parent.rglob("*.html")]
    fetched = r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]*)"
    assert [found for page in pages for found in re.findall(fetched, page)] == [] and len(pages) > 400
    owner = {line.split()[1] for line in list_contents(documents)}
    modes = {line.split()[0] for line in list_contents(documents)}
    assert (owner, modes) == ({"root/root"}, {"drwxr-xr-x", "-rw-r--r--"})


def list_contents(package: Path) -> list[str]:
    run = subprocess.run(["dpkg-deb", "--contents", package], check=True, capture_output=True, text=True)
    return run.stdout.splitlines()


@pytest.mark.long
def test_the_same_commit_gives_the_same_documents(documents: Path, tmp_path: Path) -> None:
    (second,) = build_packages(tmp_path, [DOC], level=0)
    assert hashlib.sha256(documents.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()


@pytest.mark.long
def test_lintian_finds_nothing_in_the_documents(documents: Path) -> None:
    run = subprocess.run(["lintian", "--allow-root", documents], capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout) == (0, "")
