"""A problem's reason and message for reports and answers. Pure."""

from __future__ import annotations

import errno

from weft.objects.errors import DriverFailed, WeftError, describe_failure


def is_full(problem: BaseException | None) -> bool:
    """Whether a disk has no space left."""
    return isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)


def describe_problem(problem: Exception) -> tuple[str, str]:
    """Its reason and its message."""
    if isinstance(problem, WeftError):
        return problem.token, problem.message
    return "noSpace" if is_full(problem) else "driverFailed", describe_failure(problem)


def refuse_file(what: str, problem: OSError, step: str = "") -> DriverFailed:
    """The error for a file of ``what`` that can't be written on this node."""
    return DriverFailed(
        f"{what} can't be stored on this node: {problem.strerror or problem}",
        reason="noSpace" if is_full(problem) else None,
        hint="free some space on the node's disk; the agent tries again" if is_full(problem) else None,
        details={"step": step} if step else {},
    )
