"""The models of a gateway in a process of their own: ``python -m weft.launch.edge.model_process DESCRIPTOR PARENT``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    descriptor, parent = int(argv[0]), int(argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is for the gateway, which closes the socket
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is loaded
    from weft.drivers.model.runner import serve  # noqa: PLC0415 (it loads numpy)

    serve(parent, descriptor)


if __name__ == "__main__":
    main(sys.argv[1:])
