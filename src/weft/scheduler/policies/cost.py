"""cost: the cheapest node, by the price per hour in its spec; among equals the one with most free.

Reads the fabric: the lowest price is worth 100, twice that price 50, and so on; no price 0. If some nodes cost nothing they are
worth 100, and the cheapest of the others 50. Prices less than about 0.1 % apart count as equal.
"""

from __future__ import annotations

import numpy as np

from weft.contracts.policy import Column, Occasion, Reads, Request, Table
from weft.scheduler.policies.shares import with_free


class Cost:
    name = "cost"
    reads: Reads = "fabric"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        values = np.zeros(len(table.names))
        prices = table.number("cost")
        if prices is not None:
            known = prices >= 0.0  # NaN is not
            positive = prices[prices > 0.0]
            lowest = float(positive.min()) if positive.size else 1.0
            free = lowest if (prices == 0.0).any() else 0.0
            values[known] = 100.0 * lowest / np.maximum(prices[known] + free, lowest)
        return with_free("price", values, table, request)
