"""How steady a series is, as one number from 0 to 1."""

from __future__ import annotations

import numpy as np

from weft.contracts.history import Floats

_FLOOR = 5.0  # per cent of a core: so little is steady whatever it does


def measure_stability(forecast_error: Floats, usual: Floats, full: float = 100.0) -> Floats:
    """``forecast_error``: the mean absolute error an hour ahead; ``usual``: the median use; both in the unit in which ``full`` is
    all that the workload may use. 1: what comes is known."""
    return np.exp(-2 * forecast_error / (usual + _FLOOR * full / 100))
