"""Upgrades one server when its turn comes: every server does so for itself, also one that doesn't lead.

Reads upgrades, and the server's files; has the machine install the packages, which restarts the server. What became of that is in
the server's heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
import shutil

import weft
from weft.client.server.files import ServerFiles
from weft.contracts.clock import Clock
from weft.contracts.machine.packages import PackageInstaller
from weft.informer.cache import Cache
from weft.informer.view import Item, View
from weft.kinds.parts.function_code import CODE_FOLDER
from weft.kinds.parts.packages import NEEDED, choose_packages
from weft.kinds.upgrade import UpgradeSpec, UpgradeStatus, name_attempt
from weft.objects.errors import WeftError, describe_failure

LOOK_SECONDS = 1.0
_log = logging.getLogger(__name__)


class OwnUpgrade:
    """Upgrades of server ``name``, which runs ``release``."""

    def __init__(
        self,
        name: str,
        files: ServerFiles,
        installer: PackageInstaller,
        cache: Cache,
        clock: Clock,
        release: str = weft.__version__,
    ) -> None:
        self._name, self._files, self._installer = name, files, installer
        self._cache, self._clock, self._release = cache, clock, release

    async def run(self) -> None:
        """Watch for the turn until cancelled."""
        while True:
            if (item := find_turn(self._cache.view, self._name)) is not None:
                try:
                    await self.begin(item)
                except OSError as problem:
                    _log.warning("an upgrade can't begin: %s", problem)
            await self._clock.sleep(LOOK_SECONDS)

    async def begin(self, item: Item) -> None:
        """Begin, unless that has been done. Raises OSError."""
        spec, key = item.spec(UpgradeSpec), name_attempt(item.uid, item.status(UpgradeStatus).attempt)
        installer = self._installer
        outcome = await asyncio.to_thread(installer.read_outcome)
        is_over = outcome is not None and outcome.key == key
        if spec.to == self._release or is_over or await asyncio.to_thread(installer.is_under_way, key):
            return
        if await asyncio.to_thread(installer.find_obstacle):
            return  # its heartbeat says so
        if problem := await self._put_packages(spec):
            _log.warning("upgrade %s: %s", item.envelope.name, problem)
            await asyncio.to_thread(installer.clear)  # of a full disk, so that the reason can be written
            await asyncio.to_thread(installer.refuse, key, problem)
            return
        chosen = choose_packages(spec.packages, "server", installer.architecture)
        _log.info("weft %s is being installed", spec.to)
        await asyncio.to_thread(installer.begin, key, {one.file: one.sha256 for one in chosen})

    async def _put_packages(self, spec: UpgradeSpec) -> str:
        """Put the packages where they are installed from; why that can't be done, or ""."""
        chosen = choose_packages(spec.packages, "server", self._installer.architecture)
        if missing := sorted(set(NEEDED["server"]) - {one.name for one in chosen}):
            return f"the upgrade has no {missing[0]} for this machine, which is {self._installer.architecture}"
        await asyncio.to_thread(self._installer.clear)
        for one in chosen:
            path = self._files.folder / CODE_FOLDER / one.sha256
            try:
                if not path.is_file() and await self._files.bring(one.sha256, path) is None:
                    return f"no server has the package {one.name} any more: weft fabric upgrade uploads it again"
                target = self._installer.folder / one.file
                await asyncio.to_thread(shutil.copyfile, path, target)
            except WeftError as failure:
                return failure.message
            except OSError as failure:
                return f"the package {one.name} can't be put into {self._installer.folder}: {describe_failure(failure)}"
        return ""


def find_turn(view: View, name: str) -> Item | None:
    """The upgrade in which it is this server's turn."""
    for item in view.of_kind("upgrade").values():
        turn = item.status(UpgradeStatus).turn
        if turn is not None and (turn.kind, turn.name) == ("server", name):
            return item
    return None
