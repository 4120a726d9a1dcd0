"""The report on an order to another cluster that failed, in words that may be the other cluster's."""

from __future__ import annotations

import logging

from weft.kinds.fields.replication.work import ReplicationOrder, SendReport
from weft.objects.errors import WeftError, describe_failure, shorten

MOST_REASON, MOST_MESSAGE = 64, 500  # characters of what the other cluster says

log = logging.getLogger("weft.agent")


def make_failure(order: ReplicationOrder, problem: Exception) -> SendReport:
    reason = problem.token[:MOST_REASON] if isinstance(problem, WeftError) else "driverFailed"
    why = shorten(describe_failure(problem), MOST_MESSAGE)
    hint = shorten(f"; {problem.hint}", MOST_MESSAGE) if isinstance(problem, WeftError) and problem.hint else ""
    is_known = isinstance(problem, WeftError | OSError)
    what = (order.project, order.replica, order.cluster, why)
    log.warning("replica %s/%s at %s: %s", *what, exc_info=None if is_known else problem)
    return SendReport(uid=order.uid, attempt=order.attempt, phase="failed", reason=reason, message=f"{why}{hint}")
