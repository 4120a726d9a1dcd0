"""A real vmalert beside a real VictoriaMetrics, each kept as ``weft server`` keeps it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.scenario.metrics_lab import OwnDatabase, until

from weft.controllers.alert.rules import bound_expr, choose_rules, write_rules
from weft.informer.view import Item
from weft.kinds.alert_rule import ALERT_RULE, AlertRuleSpec, check_rule
from weft.launch.process.supervisor import Supervisor, supervising
from weft.launch.server.alerts import supervise_evaluator
from weft.objects.errors import WeftError
from weft.telemetry.metrics.evaluator import Evaluated, Evaluator
from weft.telemetry.metrics.sample import Sample

INTERVAL = 1.0


def rule(name: str, expr: str, project: str = "a", **spec: Any) -> Item:
    made = AlertRuleSpec(expr=expr, **spec)
    check_rule(made)
    return Item(ALERT_RULE.make(name, made, 1.0, uid=f"u-{name}", project=project))


def sample(name: str, value: float, **labels: str) -> Sample:
    return Sample(name, tuple(labels.items()), int(time.time() * 1000), value)


class OwnEvaluator:
    """In the loop of its database."""

    def __init__(self, state: Path) -> None:
        self.own = OwnDatabase(state)
        self.supervisor: Supervisor = supervise_evaluator(state, None, INTERVAL, self.own.clock)
        self.keeping = supervising([self.supervisor])
        self.own.runner.run(self.keeping.__aenter__())
        self.evaluator = Evaluator(state, self.own.clock, INTERVAL)

    @property
    def pid(self) -> int:
        process = self.supervisor._process
        assert process is not None
        return process.pid

    def evaluate(self, *rules: Item) -> None:
        self.evaluator.write_rules(write_rules(choose_rules(rules).values(), INTERVAL))
        exprs = {item.uid: bound_expr(item.spec(AlertRuleSpec)) for item in rules}
        self.until(lambda found: {uid: one.expr for uid, one in found.items()} == exprs)

    def read(self) -> dict[str, Evaluated]:
        """Nothing while it doesn't answer."""
        try:
            found: dict[str, Evaluated] = self.own.runner.run(self.evaluator.read())
        except WeftError:
            return {}
        return found

    def until(self, holds: Callable[[dict[str, Evaluated]], object]) -> dict[str, Evaluated]:
        found: list[dict[str, Evaluated]] = []

        def reached() -> object:
            self.own.turn(0.1)
            found.append(self.read())
            return holds(found[-1])

        until(reached)
        return found[-1]

    def close(self) -> None:
        self.evaluator.close()
        self.own.runner.run(self.keeping.__aexit__(None, None, None))
        self.own.close()
