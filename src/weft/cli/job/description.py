"""Description of a job for ``weft describe``: the spec's fields that differ from their defaults, and its status. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.kinds.job import JobSpec, JobStatus, TaskSpec

_ALWAYS = ("phase", "tasks", "succeeded", "failed", "array", "parallelism", "retries")
_OWN = ("excused", "round", "wave", "observed_generation", "ending")  # its controller's


def leave_out_defaults(job: dict[str, Any]) -> dict[str, Any]:
    """``job`` without what is as ever, and what is only its controller's."""
    spec = _changed(job.get("spec") or {}, msgspec.to_builtins(JobSpec(task=TaskSpec(image=""))))
    plain = msgspec.to_builtins(TaskSpec(image=""))
    spec["task"] = {name: value for name, value in job["spec"]["task"].items() if value != plain.get(name)}
    if spec["task"].get("command"):
        spec["task"]["command"] = " ".join(spec["task"]["command"])
    return {**job, "spec": spec, "status": _changed(job.get("status") or {}, msgspec.to_builtins(JobStatus()))}


def _changed(part: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in part.items() if k not in _OWN and (k in _ALWAYS or v != plain.get(k))}
