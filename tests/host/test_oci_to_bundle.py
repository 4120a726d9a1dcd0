"""A container image made a bundle that VMs boot, from a real registry: given up or killed half-way it leaves nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.registry import push_busybox, serve

from weft.controllers.image.file import inspect
from weft.images.microvm.build import ensure_microvm
from weft.launch.image.oci_bundle import plan_bundles
from weft.objects.errors import DriverFailed

pytestmark = pytest.mark.host
CACHE = Path(__file__).resolve().parents[2] / ".weft" / "cache"
KILLED = """
import sys, threading
from pathlib import Path
from weft.launch.image.oci_bundle import plan_bundles
work, microvm_dir, url, target = sys.argv[1:]
make = plan_bundles(Path(work), Path(microvm_dir), [], ["127.0.0.1"])
make(url, "", None, Path(target), lambda count: print(count, flush=True), threading.Event())
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    if shutil.which("docker-registry") is None or shutil.which("skopeo") is None:
        pytest.skip("needs docker-registry and skopeo")
    folder = tmp_path_factory.mktemp("registry")
    with serve(folder, "127.0.0.1") as place:
        push_busybox(folder, f"{place}/big:1", ["sh"], {"etc/big": os.urandom(12 << 20).hex()})
        yield folder, f"{place}/big:1"


def find_left(state: Path) -> list[str]:
    """Processes that have to do with it, and what is there of its outcome; other work that is left goes with the next start."""
    found = subprocess.run(["pgrep", "-af", str(state)], capture_output=True, text=True, check=False).stdout
    return [*found.splitlines(), *(path.name for path in state.glob("out"))]


def test_given_up_or_killed_it_leaves_nothing_and_is_made_the_next_time(tmp_path: Path, big: tuple[Path, str]) -> None:
    folder, image = big
    state, target = tmp_path / "state", tmp_path / "state" / "out"
    state.mkdir()
    microvm_dir = ensure_microvm(CACHE)
    make = plan_bundles(state / "oci", microvm_dir, [], ["127.0.0.1"])
    stop, seen = threading.Event(), list[int]()

    def on_progress(count: int) -> None:
        seen.append(count)
        stop.set()

    with pytest.raises(DriverFailed, match="the image was deleted"):
        make(f"oci://{image}", "", None, target, on_progress, stop)
    assert seen and find_left(state) == []

    argv = [sys.executable, "-c", KILLED, str(state / "oci"), str(microvm_dir), f"oci://{image}", str(target)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline()
        parent.kill()
    deadline = time.monotonic() + 60
    while find_left(state) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert find_left(state) == []

    sha256 = make(f"oci://{image}", "", None, target, lambda _: None, threading.Event())
    assert not list(state.glob("oci/.making*"))
    facts = inspect(target)
    assert len(sha256) == 64 and facts.format == "bundle" and facts.agent and facts.digest.startswith("sha256:")
    assert facts.virtual_size > 8 << 30

    push_busybox(folder, image, ["sh"], {"etc/small": "other"})  # its tag means another one from now on
    make(f"oci://{image}", facts.digest, None, target, lambda _: None, threading.Event())
    assert inspect(target).digest == facts.digest
    make(f"oci://{image}", "", None, target, lambda _: None, threading.Event())
    assert inspect(target).digest not in ("", facts.digest)
