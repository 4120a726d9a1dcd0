"""Makes an image that VMs boot of a container image: pulls it, makes its layers a disk, and puts our kernel and init beside it.

``plan_bundles`` returns the function that the images controller calls; it runs this module as a process for each image:

    python -m weft.launch.image.oci_bundle WORK MICROVM_DIR URL DIGEST TARGET [PLAIN-REGISTRY …]

One at a time per WORK, held by a lock. It writes how many bytes are here, a line each, and at last what went wrong as one line of
JSON, if anything did. Layers stay in WORK as far as its budget goes. Killed at any moment it leaves only files that the next one
removes. Registry credentials come as JSON on standard input, and are stored nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.image import OciConfig, OciImage, RegistryCredentials
from weft.drivers.container.end import read_signal
from weft.drivers.image.oci.fetch.registry import RegistrySettings
from weft.drivers.image.oci.store import OciImages
from weft.drivers.linux.programs import run_on_disk
from weft.drivers.runtime.qemu.image_disk import MAKING_SECONDS, PACKAGES, ImageDisks
from weft.images.microvm.build import pack_image
from weft.images.parts import write_bundle
from weft.kinds.image import OCI
from weft.objects.errors import DriverFailed, WeftError
from weft.objects.image.bundle import BundleManifest

BUDGET_BYTES = 4 << 30
LEAST_MEMORY_BYTES = 64 << 20
KERNEL, INITRD, DISK = "kernel", "initrd", "disk.qcow2"
CMDLINE = "quiet loglevel=3 reboot=t panic=-1 random.trust_cpu=on"
PR_SET_PDEATHSIG = 1
_SECONDS = 0.5

MakeBundle = Callable[[str, str, RegistryCredentials | None, Path, Callable[[int], None], threading.Event], str]


class Puller(msgspec.Struct, omit_defaults=True):
    """Registry credentials; all empty: anonymous."""

    username: str = ""
    password: str = ""
    token: str = ""


class FetchError(msgspec.Struct, omit_defaults=True):
    """The fault of a fetch."""

    reason: str
    message: str
    hint: str | None = None


def plan_bundles(work: Path, microvm_dir: Path, plain: Sequence[str], allowed: Sequence[str] = ()) -> MakeBundle:
    """A function that makes bundles with layers kept in ``work``. Registries must be public (see
    ``contracts/confinement/public_address.py``), but for those in ``plain`` or ``allowed``. It takes URL, digest (or ""),
    credentials, the file to write, a callback for the bytes so far, and a stop event; it returns the file's SHA-256, or raises
    DriverFailed and removes the file."""

    def make(
        url: str,
        digest: str,
        credentials: RegistryCredentials | None,
        target: Path,
        on_progress: Callable[[int], None],
        stop: threading.Event,
    ) -> str:
        argv = [sys.executable, "-I", "-m", "weft.launch.image.oci_bundle"]
        places = " ".join(place for place in allowed if not place.startswith("/"))
        argv += [str(work), str(microvm_dir), url, digest, str(target), places, *plain]
        try:
            _watch(argv, _write_puller(credentials), on_progress, stop)
            with target.open("rb") as file:
                os.fsync(file.fileno())
                return hashlib.file_digest(file, "sha256").hexdigest()
        except BaseException as problem:
            target.unlink(missing_ok=True)
            if isinstance(problem, OSError):
                raise DriverFailed(
                    f"{url} can't be converted to a disk: {problem.strerror}", reason="fetchFailed"
                ) from problem
            raise

    return make


def _write_puller(credentials: RegistryCredentials | None) -> bytes:
    given = credentials or RegistryCredentials()
    return msgspec.json.encode(Puller(given.username, given.password, given.token))


def _watch(argv: Sequence[str], puller: bytes, on_progress: Callable[[int], None], stop: threading.Event) -> None:
    """Run it to its end; raises DriverFailed with its error, or when ``stop`` is set."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(puller)

        def end() -> None:
            while process.poll() is None:
                if stop.wait(_SECONDS):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own
                    return

        watcher = threading.Thread(target=end, daemon=True)
        watcher.start()
        last = b""
        try:
            for line in process.stdout:
                last = line.strip()
                if last.isdigit():
                    on_progress(int(last))
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            watcher.join()
    if stop.is_set():
        raise DriverFailed("aborted: the image was deleted, or the server is stopping", reason="fetchFailed")
    if code != 0:
        try:
            error = msgspec.json.decode(last, type=FetchError)
        except msgspec.DecodeError:
            error = FetchError("fetchFailed", f"the program that converts it to a disk exited with {code}")
        raise DriverFailed(error.message, reason=error.reason, hint=error.hint, details={"step": "image"})


async def make_bundle(
    work: Path,
    microvm_dir: Path,
    url: str,
    digest: str,
    target: Path,
    plain: Sequence[str],
    allowed: Sequence[str],
    report: Callable[[int], None],
    puller: Puller,
) -> None:
    """Write the bundle ``target``. Raises WeftError."""
    known = RegistryCredentials(puller.username, puller.password, puller.token) if puller != Puller() else None
    _check(microvm_dir)
    registries = {place: RegistrySettings(plain_http=True) for place in plain}
    state = str(work.parent)  # the store keeps its layers below it, in WORK
    host = Host("server", "", state, state, "", "", "", "", Capacity(1, 0, 0))
    named = [urlsplit(f"//{place}").hostname or place for place in plain]
    images = OciImages(host, registries=registries, budget_bytes=BUDGET_BYTES, reach=[*allowed, *named])
    try:
        seen = 0

        def on_progress(here: int, _: int) -> None:
            nonlocal seen
            if here - seen >= 1 << 20:
                seen = here
                report(here)

        reference = url.removeprefix(OCI)
        own = reference.startswith("oci-archive:")  # one that the server itself keeps
        image = await images.pull(reference, digest, credentials=known, progress=on_progress, own_file=own)
        _check_free_space(target, image)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=work) as name:
            await _pack(Path(name), images.root(image), image, microvm_dir, target)
        await images.forget([image.digest])
    finally:
        await images.close()


async def _pack(folder: Path, layers: Sequence[str], image: OciImage, microvm_dir: Path, target: Path) -> None:
    raw = Path(await ImageDisks(folder / "root").ensure_root(layers))
    disk, initrd, bundle = folder / DISK, folder / INITRD, folder / "bundle"
    convert = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(raw), str(disk)]
    await run_on_disk(convert, "qemu-utils", seconds=MAKING_SECONDS)
    await asyncio.to_thread(raw.unlink)
    initrd.write_bytes((microvm_dir / "initrd-vm").read_bytes() + pack_image(describe_image(image.config)))
    manifest = BundleManifest(
        disk=DISK,
        disk_format="qcow2",
        kernel=KERNEL,
        initrd=INITRD,
        cmdline=CMDLINE,
        agent=True,
        seed="machine",
        min_memory_bytes=LEAST_MEMORY_BYTES,
        digest=image.digest,
    )
    await asyncio.to_thread(write_bundle, bundle, manifest, {KERNEL: microvm_dir / KERNEL, INITRD: initrd, DISK: disk})
    bundle.replace(target)


def describe_image(config: OciConfig) -> list[tuple[str, str]]:
    """The records that ``images/microvm/vm.c`` reads. Pure."""
    records = [*(("entrypoint", word) for word in config.entrypoint), *(("cmd", word) for word in config.cmd)]
    records += [("env", pair) for pair in config.env if pair.partition("=")[0] and "=" in pair]
    records += [("user", config.user)] if config.user else []
    records += [("cwd", config.workdir)] if config.workdir else []
    return [*records, ("stop", str(read_signal(config.stop_signal or "SIGTERM")))]


def _check(microvm_dir: Path) -> None:
    missing = sorted({package for tool, package in PACKAGES.items() if shutil.which(tool) is None})
    if missing:
        raise DriverFailed(
            "the server lacks programs to convert container images to disks",
            reason="fetchFailed",
            hint=f"on the server's machine: apt-get install {' '.join(missing)}",
        )
    if os.geteuid() != 0:
        raise DriverFailed(
            "converting a container image to a disk needs root", reason="fetchFailed", hint="run weft server as root"
        )
    if not all((microvm_dir / name).is_file() for name in (KERNEL, "initrd-vm")):
        raise DriverFailed(
            f"{microvm_dir} has no kernel for VMs of container images",
            reason="fetchFailed",
            hint="on the server's machine: run python -m weft.images microvm; name its folder with weft server --microvm-dir",
        )


def _check_free_space(target: Path, image: OciImage) -> None:
    facts = os.statvfs(target.parent)
    if facts.f_bavail * facts.f_frsize < 3 * image.size_bytes + (1 << 30):
        raise DriverFailed(
            "the image doesn't fit on the server's disk",
            reason="noSpace",
            hint="free space there, or delete images; weft tries again",
        )


def main(argv: Sequence[str]) -> int:
    work, microvm_dir, url, digest, target, allowed, *plain = argv
    puller = msgspec.json.decode(sys.stdin.buffer.read() or b"{}", type=Puller)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _leave)
    folder = Path(work)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    for left in folder.glob(".making-*"):
        shutil.rmtree(left, ignore_errors=True)

    def report(count: int) -> None:
        print(count, flush=True)

    try:
        places = allowed.split()
        asyncio.run(make_bundle(folder, Path(microvm_dir), url, digest, Path(target), plain, places, report, puller))
    except WeftError as problem:
        print(msgspec.json.encode(FetchError(problem.token, problem.message, problem.hint)).decode(), flush=True)
        return 1
    return 0


def _leave(*_: object) -> None:
    """Killed at once, with its children: nothing half-done counts."""
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
