"""A process's own metrics as text, for a Prometheus that scrapes it, and what every process says of itself.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4). Names of a process's metrics are those of
Prometheus' client libraries. Reads /proc/self."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Family(NamedTuple):
    """One metric: its ``values`` by labels, as pairs of a name and a value."""

    name: str
    help: str
    values: Mapping[tuple[tuple[str, str], ...], float]


def render_metrics(families: Iterable[Family]) -> bytes:
    """The text; families without values are left out."""
    lines: list[str] = []
    for family in families:
        if family.values:
            lines += (f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {_find_type(family.name)}")
            lines += [f"{family.name}{_render_labels(labels)} {value!r}" for labels, value in family.values.items()]
    return "\n".join([*lines, ""]).encode()


def one(name: str, help_: str, value: float) -> Family:
    """A metric with one value."""
    return Family(name, help_, {(): value})


def list_process() -> Iterator[Family]:
    """Metrics of this process's usage."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    yield one("process_cpu_seconds_total", "CPU time of the process", usage.ru_utime + usage.ru_stime)
    yield one("process_resident_memory_bytes", "Resident memory of the process", pages * os.sysconf("SC_PAGE_SIZE"))
    yield one("process_open_fds", "Open descriptors of the process", len(os.listdir("/proc/self/fd")))
    yield one("process_max_fds", "Most descriptors of the process", resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _find_type(name: str) -> str:
    return "counter" if name.endswith("_total") else "gauge"


def _render_labels(labels: Iterable[tuple[str, str]]) -> str:
    text = ",".join(f'{name}="{_escape(value)}"' for name, value in labels)
    return f"{{{text}}}" if text else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
