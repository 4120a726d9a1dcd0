"""Inputs of a deployment's plan, as values: its instances, what budgets and quota allow, and what requests showed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from weft.kinds.deployment import DeploymentActions, DeploymentSpec
from weft.kinds.fields.deployment.status import DeploymentStatus

# lost: its node sends nothing, so it may still run; failed: it ended, and won't begin again by itself; rests: people stopped it.
State = Literal["coming", "healthy", "unhealthy", "failed", "lost", "rests"]
Key = tuple[int, int]  # revision and slot


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One VM or container of the deployment."""

    name: str
    revision: int
    slot: int
    attempt: int = 1
    state: State = "coming"
    since: float = 0.0  # it is in this state, or was created: unix seconds
    deleting: bool = False
    node: str = ""
    draining_since: float | None = None
    departed_at: float | None = None  # since when it gets no new connections, of one that drains
    restarts: int = 0
    unplaced: str = ""  # why no node takes it
    trouble: str = ""  # why it isn't healthy
    # It runs, and all that is wrong is that it says nothing to a service's check: it may be busy. It counts as healthy nevertheless
    # where it keeps its connections, as hardly any other answers.
    silent: bool = False
    budgets: tuple[str, ...] = ()  # keys of the disruption budgets that count it
    held: str = ""  # what one of them says, if it may not go down now
    kept: bool = (
        False  # people made it, or rely on its disk: it is stopped instead of deleted, and not replaced when it fails
    )
    answers: tuple[tuple[int, bool], ...] = ()  # its node's word on ports of the guest: whether they answer
    in_place: bool = False  # it can take the template of the wanted revision while it runs

    @property
    def key(self) -> Key:
        return self.revision, self.slot

    @property
    def hangs(self) -> bool:
        """It says nothing, while enough others answer for it to get no connections: it is more than busy."""
        return self.silent and self.state != "healthy"

    @property
    def serves(self) -> bool:
        return self.state == "healthy" and self.draining_since is None and not self.deleting


class Verdict(msgspec.Struct, frozen=True):
    """Result of a step's requests so far. ``wait``: nothing yet."""

    word: Literal["wait", "good", "bad"]
    why: str  # a sentence for people
    requests: int = 0  # judged ones, of the new revision


class DeploymentFacts(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    spec: DeploymentSpec
    status: DeploymentStatus
    actions: DeploymentActions = msgspec.field(default_factory=DeploymentActions)
    author: str = ""  # of its marks
    instances: Sequence[Instance]
    now: float  # unix seconds
    generation: int = 1
    drain_seconds: float = 0.0  # for which an instance goes on with its connections once it gets no new ones
    left: Mapping[str, int] = {}  # how many more workloads each disruption budget lets go down, by its key
    fitting: int | None = None  # how many more instances the project's quota has amounts for; None: any number
    excess: str = ""  # a sentence on what one more would exceed
    verdict: Verdict = Verdict("wait", "")
    judged: bool = False  # requests to the instances are counted
    answered: bool = True  # the history of metrics has an answer about this step
    trouble: str = ""  # why the history can't be read; "" if it can
    nodes: int = 0  # that could take instances, which are spread over them; 0: nobody counted them
    served: bool = True  # a service sends requests to the instances
    ports: Mapping[int, str] = {}  # published TCP ports of its only instance, by the guest's, as in its spec: 8391:80
    alone: str = ""  # why its only instance can't run beside another; "" if it can


class NewInstance(msgspec.Struct, frozen=True):
    revision: int
    slot: int
    attempt: int


class DeploymentOutcome(msgspec.Struct):
    """Writes of a plan. An instance is in one of the lists at most."""

    status: DeploymentStatus
    make: list[NewInstance] = []
    change: list[tuple[Instance, int]] = []  # gets the template of this revision in place
    drain: list[Instance] = []
    undrain: list[Instance] = []
    delete: list[Instance] = []
    requeue_after: float | None = None  # seconds after which to plan again even if nothing changes
    events: list[tuple[Literal["Normal", "Warning"], str, str]] = []  # kind, reason and sentence
