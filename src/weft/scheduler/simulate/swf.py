"""Job logs in the Standard Workload Format of the Parallel Workloads Archive: eighteen columns, ``;`` begins a comment."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from weft.objects.errors import InvalidInput
from weft.scheduler.simulate.csv_file import read_text

_COLUMNS = 18
_NUMBER, _SUBMIT, _RUN, _USED, _ASKED, _REQUEST, _USER = 0, 1, 3, 4, 7, 8, 11


class Job(msgspec.Struct, frozen=True):
    """One line of a log; times in seconds."""

    id: str
    owner: str
    arrival: float
    run: float  # how long it runs, at most as requested
    requested: float
    processors: int


def read_swf(path: Path) -> list[Job]:
    """The jobs that ran, by arrival. Raises NotFound, InvalidInput."""
    jobs = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith(";"):
            continue
        if len(words) < _COLUMNS:
            raise InvalidInput(
                f"{path}:{number}: {len(words)} of {_COLUMNS} columns",
                hint="--format swf takes the Standard Workload Format",
            )
        try:
            submit, run, used, asked, request = (float(words[at]) for at in (_SUBMIT, _RUN, _USED, _ASKED, _REQUEST))
            if not all(map(math.isfinite, (submit, run, used, asked, request))):
                raise ValueError
        except ValueError:
            raise InvalidInput(f"{path}:{number}: a column is not a number: {line[:80]}") from None
        processors = int(used if used > 0 else asked)
        if run <= 0 or processors <= 0:
            continue
        requested = request if request > 0 else run
        jobs.append(Job(words[_NUMBER], words[_USER], submit, min(run, requested), requested, processors))
    return sorted(jobs, key=lambda job: job.arrival)
