"""A real vmalert beside a real VictoriaMetrics, each kept as ``weft server`` keeps it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.scenario.metrics_lab import OwnDatabase

from weft.launch.process.supervisor import Supervisor, supervising
from weft.launch.server.alerts import supervise_evaluator
from weft.telemetry.metrics.evaluator import Evaluator
from weft.telemetry.metrics.sample import Sample

INTERVAL = 1.0


class OwnEvaluator:
    """In the loop of its database."""

    def __init__(self, own: OwnDatabase) -> None:
        self.own = own
        self.supervisor: Supervisor = supervise_evaluator(own.state, None, INTERVAL, own.clock)
        self.keeping = supervising([self.supervisor])
        own.runner.run(self.keeping.__aenter__())
        self.evaluator = Evaluator(own.state, own.clock, INTERVAL)

    @property
    def pid(self) -> int:
        process = self.supervisor._process
        assert process is not None
        return process.pid

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.own.runner.run(work)

    def until(self, holds: Callable[[], Coroutine[Any, Any, object]], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not self.run(holds()):
            assert time.monotonic() < deadline, "it never came"
            self.own.turn(0.1)

    def close(self) -> None:
        self.evaluator.close()
        self.own.runner.run(self.keeping.__aexit__(None, None, None))


def sample(name: str, value: float, **labels: str) -> Sample:
    return Sample(name, tuple(labels.items()), int(time.time() * 1000), value)


def own_database(state: Path) -> OwnDatabase:
    return OwnDatabase(state)


__all__ = ["INTERVAL", "OwnEvaluator", "asyncio", "own_database", "sample"]
