"""How many instances a deployment has, and the figure that may set it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.fields.alert.promql import check_query
from weft.kinds.fields.alert.promql_form import check_form
from weft.objects.errors import InvalidInput
from weft.objects.schema import field

MOST_REPLICAS = 500
MOST_EXPRESSION = 2000


class Autoscale(msgspec.Struct, kw_only=True):
    min: Annotated[int, field("Fewest instances", ge=1, le=MOST_REPLICAS)] = 1
    max: Annotated[int, field("Most instances", ge=1, le=MOST_REPLICAS)]
    metric: Annotated[
        str,
        field("PromQL expression: the load of one instance, as the mean of its series", max_length=MOST_EXPRESSION),
    ]
    target: Annotated[float, field("Value of the expression that each instance should have")]
    cooldown: Annotated[float, field("Least time between two changes of the number", quantity="duration")] = 60.0


def check_autoscale(scale: Autoscale) -> None:
    faults = {
        "min": "must be at most max" if scale.min > scale.max else "",
        "target": "" if scale.target > 0 else "must be more than 0",
        "metric": "" if scale.metric.strip() else "must be an expression",
    }
    for name, fault in faults.items():
        if fault:
            raise InvalidInput(
                f"spec.autoscale.{name}: {fault}",
                field=f"spec.autoscale.{name}",
                hint="""like min: 2, max: 10, metric: weft_guest_cpu_cores{name=~"web-.*"}, target: 0.5""",
            )
    check_form(check_query(scale.metric, "spec.autoscale.metric"), "spec.autoscale.metric")
