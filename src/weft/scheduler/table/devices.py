"""GPUs of all nodes as columns, and which of a node's GPUs a request gets. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.contracts.policy import Codes, Flags, GpuAsk, Table, Texts, Whole
from weft.scheduler.table.facts import Gpu

WHOLE = 1000  # thousandths


class Devices:
    """Row by row: thousandths ``free`` of each device (-1 where there is none), its ``memory`` and model."""

    def __init__(self) -> None:
        self.free: Codes = np.full((16, 1), -1, dtype=np.int32)
        self.memory: Whole = np.zeros((16, 1), dtype=np.int64)
        self._codes: Codes = np.full((16, 1), -1, dtype=np.int32)
        self._words: list[str] = []
        self._places: dict[str, int] = {}

    def models(self, count: int) -> Texts:
        return Texts(self._codes[:count], self._words, self._places)

    def put(self, row: int, gpus: Sequence[Gpu]) -> None:
        """Row ``row`` has these devices, all of them free."""
        self._grow(row + 1, len(gpus))
        self.free[row], self.memory[row], self._codes[row] = -1, 0, -1
        for device, gpu in enumerate(gpus):
            code = self._places.setdefault(gpu.model, len(self._words))
            if code == len(self._words):
                self._words.append(gpu.model)
            self.free[row, device], self.memory[row, device], self._codes[row, device] = (
                0 if gpu.kept else WHOLE,
                gpu.memory,
                code,
            )

    def take(self, row: int, device: int, share: int) -> None:
        """``share`` thousandths of a device are taken (given back if negative); of one that isn't there, nothing."""
        if device < self.free.shape[1] and self._codes[row, device] >= 0:
            self.free[row, device] -= share

    def relocate(self, source: int, target: int) -> None:
        for columns in (self.free, self.memory, self._codes):
            columns[target] = columns[source]

    def reorder(self, order: Sequence[int]) -> None:
        """Row i becomes what row ``order[i]`` was."""
        for columns in (self.free, self.memory, self._codes):
            columns[: len(order)] = columns[order]

    def _grow(self, rows: int, devices: int) -> None:
        have = self.free.shape
        if rows <= have[0] and devices <= have[1]:
            return
        shape = (have[0] if rows <= have[0] else 2 * rows, max(devices, have[1]))
        free, memory, codes = self.free, self.memory, self._codes
        self.free, self.memory = np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.int64)
        self._codes = np.full(shape, -1, dtype=np.int32)
        for old, new in ((free, self.free), (memory, self.memory), (codes, self._codes)):
            new[: have[0], : have[1]] = old


def find_fitting(table: Table, ask: GpuAsk) -> Flags:
    """Nodes × devices: which have what one device of the request takes."""
    fitting: Flags = table.gpu_free >= ask.share
    if ask.memory:
        fitting = fitting & (table.gpu_memory >= ask.memory)
    if ask.models:
        models = table.gpu_model
        wanted = [models.places[name] for name in ask.models if name in models.places]
        fitting = fitting & np.isin(models.codes, wanted)
    return fitting


def count_fitting(table: Table, ask: GpuAsk) -> Whole:
    """Number of devices of every node that have that. Counted by device: numpy sums a long axis far faster than a short one."""
    fitting = find_fitting(table, ask)
    counts: Whole = np.zeros(len(fitting), dtype=np.int64)
    for device in range(fitting.shape[1]):
        counts += fitting[:, device]
    return counts


def count_free(gpu_free: Codes) -> Whole:
    """Free thousandths of every node's GPUs. Counted by device, as above."""
    free: Whole = np.zeros(len(gpu_free), dtype=np.int64)
    for device in range(gpu_free.shape[1]):
        free += np.maximum(gpu_free[:, device], 0)
    return free


def choose_devices(table: Table, ask: GpuAsk, row: int) -> tuple[tuple[int, int], ...]:
    """The devices of node ``row`` that the request gets, as (index, thousandths): of those that fit the ones with least
    free, then least memory, then the first; fewer than requested if the node lacks them."""
    free, memory = table.gpu_free[row], table.gpu_memory[row]
    wanted = None
    if ask.models:
        models = table.gpu_model
        wanted = {models.places[name] for name in ask.models if name in models.places}
    fitting = [
        (int(free[device]), int(memory[device]), device)
        for device in range(len(free))
        if free[device] >= ask.share
        and memory[device] >= ask.memory
        and (wanted is None or int(table.gpu_model.codes[row, device]) in wanted)
    ]
    return tuple((device, ask.share) for _, _, device in sorted(fitting)[: ask.count])
