"""Images of which this node often starts VMs, so that it keeps a booted machine of them automatically. Counted for each project:
copies of one machine share its boot id, which is fine among VMs of one owner.

Reads and writes one file, which is worth nothing more than the counts in it.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import msgspec

from weft.agent.template.fit import TemplateOrder
from weft.contracts.clock import Clock
from weft.contracts.durable_file import write_durably
from weft.kinds.allocation import AllocatedImage, AllocationSpec
from weft.kinds.image import MOST_WARM_CPUS
from weft.kinds.parts.image.work import WarmOrder

AFTER = 3  # VMs of an image within DAY_SECONDS
DAY_SECONDS = 86400.0
MOST = 2  # machines that a node keeps by itself
MOST_BYTES = 1 << 30  # of memory of each; VMs with more memory start from it, too
QUIET_SECONDS = 120.0  # without a start of a VM: a quiet moment
_MOST_STARTS = 256


class Start(msgspec.Struct, frozen=True):
    """A VM of ``image`` that may begin from a booted machine."""

    at: float  # seconds since 1970, by this node's clock
    vm: str  # uid
    project: str
    image: AllocatedImage
    memory: int
    cpus: int
    cpu_model: str


class Often:
    """The images that are started often. ``after``: as AFTER; 0: never."""

    def __init__(self, file: Path, clock: Clock, after: int = AFTER) -> None:
        self._file, self._clock, self._after = file, clock, after
        self._starts, self._saved = list[Start](), list[Start]()
        self._newest = -math.inf  # clock's elapsed seconds

    @property
    def is_quiet(self) -> bool:
        return self._clock.elapsed() - self._newest >= QUIET_SECONDS

    def load(self) -> None:
        try:
            self._starts = msgspec.json.decode(self._file.read_bytes(), type=list[Start])
        except (OSError, msgspec.MsgspecError):
            self._starts = []
        self._saved = list(self._starts)

    async def save(self) -> None:
        """Raises OSError."""
        if self._after and self._saved != self._starts:
            starts = list(self._starts)
            await asyncio.to_thread(self._file.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
            await asyncio.to_thread(write_durably, self._file, msgspec.json.encode(starts))
            self._saved = starts

    def note(self, spec: AllocationSpec, *, may_begin: bool) -> None:
        """A VM starts, which begins from a booted machine where there is one, if it may."""
        self._newest = self._clock.elapsed()
        if spec.boot != "auto" or spec.image is None or not may_begin:
            return
        known = [start for start in self._starts if start.vm != spec.workload.uid]
        start = Start(
            at=self._clock.now(),
            vm=spec.workload.uid,
            project=spec.workload.project or "",
            image=spec.image,
            memory=spec.resources.memory,
            cpus=count_cores(spec),
            cpu_model=spec.cpu_model,
        )
        self._starts = [*known, start][-_MOST_STARTS:]

    def list_wanted(self, kept: dict[str, TemplateOrder], refused: Collection[str]) -> list[TemplateOrder]:
        """The machines to keep, the one that most VMs start from first. ``kept``: what is there now, by uid of the image, stays
        while any VM starts from it. ``refused``: uids of images whose owners want none."""
        now, groups = self._clock.now(), dict[tuple[str, str], list[Start]]()
        self._starts = [start for start in self._starts if 0 <= now - start.at < DAY_SECONDS]
        for start in self._starts if self._after else []:
            groups.setdefault((start.image.uid, start.project), []).append(start)
        found = dict[str, tuple[int, TemplateOrder]]()
        for (uid, project), starts in groups.items():
            here = kept.get(uid)
            there = here if here is not None and here.project == project else None
            model, _ = Counter(start.cpu_model for start in starts).most_common(1)[0]
            same = [start for start in starts if start.cpu_model == model]
            enough = 1 if there is not None else self._after
            if uid in refused or len(same) < enough or len(same) <= found.get(uid, (0, None))[0]:
                continue
            found[uid] = len(same), self._choose(same, there, project)
        best = sorted(found.values(), key=lambda one: (-one[0], one[1].order.image.uid))
        return [wanted for _, wanted in best[:MOST]]

    def _choose(self, starts: list[Start], kept: TemplateOrder | None, project: str) -> TemplateOrder:
        """The smallest that they all fit, or the one that is there if enough of them fit it."""
        image, model = starts[-1].image, starts[-1].cpu_model
        plural = "s" if len(starts) != 1 else ""
        why = f"{len(starts)} VM{plural} started here within a day"
        if kept is not None and kept.cpu_model == model:
            order = kept.order
            fit = [
                one for one in starts if one.memory >= order.memory and order.least_cpu <= one.cpus <= order.most_cpu
            ]
            if len(fit) >= min(self._after, len(starts)):
                return msgspec.structs.replace(kept, why=why)
        memory, cores = min(MOST_BYTES, min(start.memory for start in starts)), [start.cpus for start in starts]
        order = WarmOrder(image, memory, min(cores), min(MOST_WARM_CPUS, max(4, *cores)))
        return TemplateOrder(order, model, project, why, often=True)


def count_cores(spec: AllocationSpec) -> int:
    return max(1, math.ceil(spec.resources.cpu))
