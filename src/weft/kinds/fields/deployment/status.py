"""State kept by a deployment's controller: its revisions with their templates, its slots, and how its rollout goes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from weft.kinds.fields.deployment.strategy import StrategyType

MOST_REVISIONS_BYTES = 120_000  # of all kept templates: an object has at most 256 KB
RolloutPhase = Literal["Progressing", "Paused", "Promoted", "RolledBack", "Undecided"]
# test: new instances run beside all old ones; roll: they take the place of old ones; keep: all are new, and the old ones wait for
# an undo; "": no rollout is under way.
Stage = Literal["", "test", "roll", "keep"]


class Revision(msgspec.Struct, kw_only=True):
    number: int
    template: dict[str, Any]
    labels: dict[str, str] = {}
    created_at: float = 0.0
    author: str = ""  # who asked for it: a user's name, or token:NAME; "": weft itself, or unknown
    outcome: str = ""  # how its last rollout ended; "": it goes on
    # Name of its instance in slot 0, which is kept when another revision takes its place: people gave it, or it is a VM that was
    # promoted in the place of an adopted one.
    instance: str = ""
    # Published TCP ports of its guest that answered when another version was about to take its place; None: nobody has asked.
    answered: list[int] | None = None


class TrafficShare(msgspec.Struct, frozen=True):
    revision: int
    per_mille: int


class DeploymentStatus(msgspec.Struct, kw_only=True):
    phase: RolloutPhase = "Progressing"
    strategy: StrategyType = "rolling"
    revision: int = 0  # that the instances shall have
    stable: int = 0  # that was promoted last, and which a rollback goes back to; 0: none yet
    stage: Stage = ""
    back: bool = False  # the rollout is a rollback
    replicas: int = 0  # instances wanted
    scaled: int | None = None  # those that ``autoscale`` wants; None: nothing was measured yet
    scaled_at: float | None = None
    scaling: str = ""  # what was measured last, as a sentence
    ready: int = 0  # healthy ones
    updated: int = 0  # healthy ones of ``revision``
    most_updated: int = 0  # of them at one time since the rollout began
    restarts: dict[str, int] = {}  # of instances, by name, that say nothing of ``revision``: they were before it
    failures: dict[str, int] = {}  # by slot, how many instances failed one after another
    verdict: str = ""
    reason: str = ""
    message: str = ""
    revisions: list[Revision] = []
    split: list[TrafficShare] = []  # of the requests; empty: all ready instances alike
    slots: list[int] = []  # the revision of each slot
    holder: str = ""  # VM that has what only one can have; "": the adopted one
    held_since: float | None = None  # since when it has it; None: it always had
    step: int = 0  # of a canary; of a rolling update 1 once requests to its first new instances were judged
    awaits: bool = False  # a person's word: weft rollout resume
    no_surge: str = ""  # why there can be no further instance
    migrated: list[str] = []  # migrations that the rollout has made
    step_since: float | None = None  # all instances of the step are healthy since then
    started_at: float | None = None
    progressed_at: float | None = None
    ended_at: float | None = None
    template: str = ""  # mark of the template that was last rolled out
    rollout: int = 0
    resumes: int = 0
    undos: int = 0
    observed_generation: int = 0


def find_since(status: DeploymentStatus) -> float | None:
    """Time since which requests to the new revision are judged; None: they aren't."""
    if status.stage == "test":
        return status.step_since
    return status.started_at if status.stage == "roll" and status.stable and not status.back else None


def mark_template(template: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """The same for the same template and labels only."""
    return hashlib.sha256(msgspec.json.encode([template, labels], order="deterministic")).hexdigest()[:16]
