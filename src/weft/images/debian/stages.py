"""Runs in a guest as ``/usr/local/lib/weft/cloud-init-stages STAGE…``: stages of cloud-init, one after the other.

Each is a process of its own, as cloud-init expects of its stages, forked from one that has imported everything: on an
emulated CPU that alone takes seconds, and it would be done by each of the four.
"""

import gc
import os
import sys
from typing import NoReturn

from cloudinit.cmd.main import main  # type: ignore[import-not-found]  # the guest's


def run_stage(words: list[str]) -> NoReturn:
    sys.argv = ["cloud-init", *words]
    sys.exit(main(list(sys.argv)))


failed = False
gc.freeze()  # what all stages share is looked through by none
for stage in sys.argv[1:]:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        run_stage(stage.split())
    failed |= os.waitpid(pid, 0)[1] != 0
sys.exit(failed)
