"""The models of a gateway in a process of their own: ``python -m weft.launch.edge.model_process DESCRIPTOR PARENT``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

NICENESS = 10  # the gateway, and what else a small node does, come first


def main(argv: Sequence[str]) -> None:
    descriptor, parent = int(argv[0]), int(argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is for the gateway, which closes the socket
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # when memory is short, this process ends first
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is loaded
    from weft.drivers.model.runner import serve  # noqa: PLC0415 (it loads numpy)

    serve(parent, descriptor)


if __name__ == "__main__":
    main(sys.argv[1:])
