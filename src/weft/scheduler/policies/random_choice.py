"""random: any node that fits, each with the same chance; the same seed and workload give the same one."""

from __future__ import annotations

import zlib

import numpy as np

from weft.contracts.policy import Column, Occasion, Reads, Request, Table


class RandomChoice:
    name = "random"
    reads: Reads = "fabric"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        draw = np.random.Generator(np.random.PCG64([occasion.seed, zlib.crc32(occasion.uid.encode())]))
        # Drawn in name order, so that the answer doesn't depend on the order in which nodes came.
        return [Column("draw", 1.0, 100.0 * draw.random(len(table.names))[table.rank])]
