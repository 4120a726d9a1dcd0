"""SnapshotStore: a machine in which a function's runtime has come up and holds its first request, as memory and devices on disk.

One folder each below ``Host.state_dir/functions/templates``: RAM, STATE, initrd, and template.json, written last, which names
all that it depends on. Whatever doesn't match (another QEMU, kernel, CPU or recipe, a damaged file) is made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.function import Recipe, Roots
from weft.contracts.durable_file import sync_folder, write_durably
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.runtime.qemu.function.capture import capture_machine
from weft.drivers.runtime.qemu.function.checksums import Checks, inspect_file
from weft.drivers.runtime.qemu.function.config import choose_memory, compose_config, pack_config
from weft.drivers.runtime.qemu.function.disks import CODE, ROOT, CheckedDisks
from weft.drivers.runtime.qemu.function.fingerprint import find_boot, identify, identify_node
from weft.drivers.runtime.qemu.function.record import Template
from weft.drivers.runtime.qemu.function.translate import plan_machine
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import DriverFailed

MOST_TEMPLATES = 64
MOST_AT_ONCE = 2  # are captured: a boot is all work
FILES = ("RAM", "STATE", "initrd")
_MARGIN_BYTES = 64 << 20


class SnapshotStore:
    """Those of this node; ``there`` are their recipes' digests, and ``changed`` is called when those are others."""

    def __init__(
        self,
        folder: Path,
        facts: QemuHostFacts,
        cgroups: ControlGroups,
        clock: Clock,
        prefix: str,
        changed: Callable[[], None],
    ) -> None:
        self._folder = folder / "templates"
        self._facts = facts
        self._cgroups = cgroups
        self._clock = clock
        self._prefix = prefix
        self._changed = changed
        self.there: set[str] = set()
        self._checks = Checks()
        self.disks = CheckedDisks(folder / "disks", self._checks)
        self._locks: dict[str, asyncio.Lock] = {}
        self._capturing = asyncio.Semaphore(MOST_AT_ONCE)

    def folder(self, digest: str) -> Path:
        return self._folder / digest.replace(":", "-").replace("/", "-")[:80]

    async def find(self, recipe: Recipe, roots: Roots) -> Template | None:
        """The one that is there, whole, and made of just this. It is checked anew each time, so every change is noticed."""
        template = await asyncio.to_thread(self._read, recipe.digest)
        if template is None or template.key != await asyncio.to_thread(identify, recipe, roots, self._facts):
            return None
        folder = self.folder(recipe.digest)
        files = [*(folder / name for name in FILES), *map(self.disks.path, template.disks)]
        for file in files:
            if not await self._checks.holds(file):
                return None
        contents = [self._checks.digest(self.disks.path(key)) for key in template.disks]
        return template if contents == template.contents else None

    async def ensure(self, recipe: Recipe, roots: Roots) -> tuple[Template, bool]:
        """The template, and whether it had to be made. Raises DriverFailed."""
        async with self._locks.setdefault(recipe.digest, asyncio.Lock()):
            if (template := await self.find(recipe, roots)) is not None:
                self._note(recipe.digest)
                return template, False
            await self._drop(recipe.digest)
            await self._drop_oldest()
            async with self._capturing:
                template = await self._make(recipe, roots)
            self._note(recipe.digest)
            return template, True

    async def forget(self, digest: str) -> None:
        async with self._locks.setdefault(digest, asyncio.Lock()):
            await self._drop(digest)
        self._locks.pop(digest, None)
        await self._drop_disks()

    async def take_over(self) -> None:
        """Adopt the snapshots of an earlier agent, and end those it was making when it was killed. Snapshots of another QEMU or
        CPU are ignored; they are made again on demand."""
        for path in [*self._folder.glob(".*"), *self._folder.parent.joinpath("disks").glob(".*")]:
            await asyncio.to_thread(_remove, path)
        self.there |= await asyncio.to_thread(self._find_fitting)
        self._changed()

    def _find_fitting(self) -> set[str]:
        node, found = identify_node(self._facts), set[str]()
        for note in self._folder.glob("[!.]*/template.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                template = msgspec.json.decode(note.read_bytes(), type=Template)
                if template.node == node and note.parent == self.folder(template.recipe):
                    found.add(template.recipe)
        return found

    def _note(self, digest: str) -> None:
        if digest not in self.there:
            self.there.add(digest)
            self._changed()

    async def _drop(self, digest: str) -> None:
        if digest in self.there:
            self.there.discard(digest)
            self._changed()
        await asyncio.to_thread(_remove, self.folder(digest))

    def _read(self, digest: str) -> Template | None:
        path = self.folder(digest) / "template.json"
        try:
            os.utime(path)
            return msgspec.json.decode(path.read_bytes(), type=Template)
        except (OSError, msgspec.MsgspecError):
            return None

    async def _make(self, recipe: Recipe, roots: Roots) -> Template:
        kernel, initrd = find_boot(recipe, roots)
        key = await asyncio.to_thread(identify, recipe, roots, self._facts)
        disks = [await self.disks.ensure(_root_key(recipe, roots), roots.root, ROOT)]
        if roots.code:
            disks.append(await self.disks.ensure(_code_key(recipe), [roots.code], CODE))
        machine = plan_machine(self._facts, choose_memory(recipe), recipe.cpu, len(disks))
        contents = [self._checks.digest(disk) for disk in disks]
        node, stems = identify_node(self._facts), [disk.stem for disk in disks]
        template = Template(key, recipe.digest, machine, kernel, stems, contents, recipe.cpu, node)
        config = compose_config(recipe, roots, now_ns=int(self._clock.now() * 1e9), seed=secrets.token_bytes(32))
        folder = self.folder(recipe.digest)
        work = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            await asyncio.to_thread(_lay_out, work, machine.memory, Path(initrd), pack_config(config))
            await capture_machine(
                work,
                template,
                disks,
                self._facts,
                self._cgroups,
                self._clock,
                self._prefix,
                recipe,
                roots.egress_endpoint,
            )
            await asyncio.to_thread(_finish, work, folder, template)
            for name in FILES:
                self._checks.trust(folder / name)
        except OSError as problem:
            raise DriverFailed(
                f"{recipe.what}: its snapshot can't be written: {problem.strerror or problem}",
                reason="noSpace" if problem.errno == 28 else None,
                details={"step": "capture"},
            ) from problem
        finally:
            await asyncio.to_thread(_remove, work)
        return template

    async def _drop_oldest(self) -> None:
        """Remove the least recently used when there are too many."""
        notes = sorted(self._folder.glob("[!.]*/template.json"), key=lambda path: path.stat().st_mtime)
        for note in notes[: max(0, len(notes) + 1 - MOST_TEMPLATES)]:
            for digest in [digest for digest in self.there if self.folder(digest) == note.parent]:
                await self._drop(digest)
            await asyncio.to_thread(_remove, note.parent)
        await self._drop_disks()

    async def _drop_disks(self) -> None:
        if any(lock.locked() for lock in self._locks.values()):
            return  # one that is being made may be about to use a disk that no template has yet
        used: set[str] = set()
        for note in self._folder.glob("[!.]*/template.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                used.update(msgspec.json.decode(note.read_bytes(), type=Template).disks)
        await asyncio.to_thread(self.disks.forget, used)

    @contextlib.contextmanager
    def open(self, template: Template) -> Iterator[tuple[dict[str, int], list[int]]]:
        """The descriptors that a clone's QEMU inherits of it, by name, and the disks. Raises OSError."""
        folder = self.folder(template.recipe)
        opened: list[int] = []

        def open_file(path: Path | str) -> int:
            opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            return opened[-1]

        try:
            named = {name.lower(): open_file(folder / name) for name in FILES}
            named["kernel"] = open_file(template.kernel)
            yield named, [open_file(self.disks.path(key)) for key in template.disks]
        finally:
            for descriptor in opened:
                os.close(descriptor)


def _root_key(recipe: Recipe, roots: Roots) -> str:
    return _safe(recipe.image or (recipe.base.sha256 if recipe.base else "".join(roots.root)), "root2")


def _code_key(recipe: Recipe) -> str:
    return _safe(recipe.code.sha256 if recipe.code else recipe.digest, "code")


def _safe(text: str, what: str) -> str:
    return f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


def _lay_out(work: Path, memory: int, initrd: Path, config: bytes) -> None:
    work.parent.mkdir(parents=True, exist_ok=True)
    work.parent.parent.chmod(0o700)  # there are environments in here
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    free = shutil.disk_usage(work).free
    if free < memory + _MARGIN_BYTES:
        raise DriverFailed(
            f"a snapshot of {memory >> 20} MiB doesn't fit: {free >> 20} MiB free in {work.parent}",
            reason="noSpace",
            hint="free some space in the node's state folder",
            details={"step": "capture"},
        )
    (work / "initrd").write_bytes(initrd.read_bytes() + config)
    (work / "initrd").chmod(0o444)  # QEMU opens it once more; the folder keeps everyone else out


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _finish(work: Path, folder: Path, template: Template) -> None:
    for name in FILES:
        path = work / name
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fchown(descriptor, 0, 0)
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        Checks.note(path).write_bytes(inspect_file(path))
    write_durably(work / "template.json", msgspec.json.encode(template))
    work.replace(folder)
    sync_folder(folder.parent)
