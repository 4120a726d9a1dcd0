"""Cluster: another cluster that this one is linked with: how it is reached, what it may do here, and how it is.

A link makes an object on either side. Each side draws a secret of its own, which it shows the other, and keeps the hash of the
other's (a Token that belongs to this object). So deleting the object ends what the other may do here at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, joined, note, text
from weft.kinds.fields.cluster.link import (
    MOST_CA,
    MOST_URL,
    TAKE_OVER,
    VALUE,
    ClusterWitness,
    Word,
    check_terms,
    check_url,
    read_witness_token,
)
from weft.kinds.parts.goal import find_failed, is_settled, read_phase
from weft.kinds.record import Access, Admission, Column, Display, Goal, Index, Kind, Lifetime, Object, Reference, Verb
from weft.kinds.secret import SealedSpec
from weft.objects.envelope import take_from_spec
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, WeftError
from weft.objects.quantity import format_duration
from weft.objects.schema import field, words

TOKEN = "token"  # the key of the sealed value: with it this cluster asks the other
ANSWERING = ("Linked", "Suspect", "Refused")  # phases of clusters that were heard of, whatever they may do
GRANTS_TAKE = "rolebinding:create"  # what it takes to let another cluster do more
_HINT = "weft cluster link-token at the other cluster, then here: weft cluster link NAME URL --token TOKEN"


class ClusterSpec(SealedSpec, kw_only=True):
    url: Annotated[
        str, field("Where its API server is, as this cluster reaches it", change="live", max_length=MOST_URL)
    ]
    ca: Annotated[
        str,
        field(
            "CA certificate of the other cluster (PEM); a peer signed by another CA is refused",
            change="never",
            max_length=MOST_CA,
        ),
    ]
    grants: Annotated[list[Word], field("What it may do here", change="live")] = msgspec.field(default_factory=list)
    projects: Annotated[
        dict[str, str],
        field("Projects that the link is for: each one here with the one at the other cluster", change="live"),
    ] = msgspec.field(default_factory=dict)
    witness: Annotated[
        ClusterWitness | None, field("Third place that both clusters ask which of them is primary", change="live")
    ] = None


class ClusterActions(msgspec.Struct, kw_only=True):
    trusted: Annotated[int, field("How often people trusted it after it was restored")] = 0


class ClusterMarks(msgspec.Struct, kw_only=True):
    peer_uid: Annotated[str, field("Its uid, which follows from its CA")] = ""


class ClusterStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Pending", "Linked", "Unreachable", "Refused", "Suspect", "Failed")] = "Pending"
    peer_uid: str = ""
    release: str = ""  # of weft there
    servers: list[str] = []  # URLs of its servers, if it has several: they are asked when the link's own doesn't answer
    protocol: int = 0  # of links: the newest that both speak; 0: not known
    epoch: str = ""  # the history of its store that this cluster trusts
    trusted: int = 0  # ``actions.trusted`` when it was last trusted
    seen_at: float | None = None  # when it last answered, to within 15 s
    clock_offset_seconds: float | None = None  # its clock's time less this one's
    lag_seconds: float | None = (
        None  # age of the newest point there, of the replica that is oldest for its RPO; None: none yet
    )
    rpo_seconds: float | None = None  # how old the newest point of that replica may be
    observed_generation: int = 0  # of the spec that it was asked by when the phase was found
    reason: str = ""
    message: str = ""


def may_take_over(link: ClusterSpec, project: str | None) -> bool:
    """Whether replicas of that cluster in ``project`` may become VMs here without people."""
    return TAKE_OVER in link.grants and project in link.projects


def describe_unlinked(name: str) -> str:
    return f"cluster {name} isn't linked"


def describe_link(name: str, status: ClusterStatus) -> str:
    """Why that cluster can't be asked as the link is; "" if it can."""
    if status.phase == "Linked":
        return ""
    return f"cluster {name} is {status.phase}" + (f": {status.message}" if status.message else "")


def check_cluster(spec: ClusterSpec) -> None:
    """Raises InvalidInput, which never contains a value."""
    spec.url = check_url(spec.url, "spec.url")
    spec.grants = sorted(set(spec.grants))
    check_terms(spec.grants, spec.projects)
    if spec.witness is not None:
        spec.witness = msgspec.structs.replace(spec.witness, url=check_url(spec.witness.url, "spec.witness.url"))


def _refuse_new(spec: ClusterSpec) -> None:
    raise InvalidInput("a cluster is linked, not created", field="kind", hint=_HINT)


def _check_change(old: ClusterSpec, new: ClusterSpec) -> None:
    if new.witness is not None and VALUE not in new.sealed:
        raise InvalidInput(
            "spec.witness: this cluster has no token for the witness",
            field="spec.witness",
            hint="at the witness: weft witness add-site NAME; here: weft cluster witness NAME URL --peer NAME --token-stdin",
        )
    if {**new.sealed, VALUE: ""} != {**old.sealed, VALUE: ""}:
        raise InvalidInput("spec.sealed: only a link sets it", field="spec.sealed", hint=_HINT)


def _check_values(values: Mapping[str, str]) -> None:
    if values.keys() - {VALUE}:
        raise InvalidInput(
            f"spec.values: people set {VALUE} of a link, and no other value", field="spec.values", hint=_HINT
        )
    if VALUE in values and read_witness_token(values[VALUE]) is None:
        raise InvalidInput(
            f"spec.values.{VALUE} is not a witness's token",
            field=f"spec.values.{VALUE}",
            hint="copy what weft witness add-site printed",
        )


def _find_rights(old: ClusterSpec | None, new: ClusterSpec) -> Iterable[tuple[str, str]]:
    """Grants to another cluster are rights that are given away."""
    if old is None:
        more = bool(new.grants)
    else:
        more = not set(new.grants) <= set(old.grants) or not new.projects.items() <= old.projects.items()
    if more:
        yield GRANTS_TAKE, "let another cluster do more here"


def _trust(obj: Object, given: Any) -> dict[str, Any]:
    if dig(obj, "status.phase") != "Suspect":
        raise IllegalTransition(
            f"cluster/{obj['name']} is {dig(obj, 'status.phase') or 'Pending'}: there is nothing to trust again",
            hint="only a cluster that is Suspect, because its store was restored, is trusted again",
        )
    return {"trusted": obj["actions"]["trusted"] + 1}


def _seconds(path: str) -> Any:
    def cell(obj: Object) -> str:
        seconds = dig(obj, path)
        return "–" if seconds is None else format_duration(seconds)

    return cell


CLUSTERS_BY_PEER = Index("clusters by the peer's uid")

_LINKED = Goal(lambda obj: is_settled(obj) and read_phase(obj) == "Linked", "Linked")


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """The failure of a link that failed, or that only people make work again, here or there."""
    if goal.ends_refused and is_settled(obj) and read_phase(obj) in ("Refused", "Suspect"):
        reason = str(dig(obj, "status.reason", "")) or None
        return DriverFailed(f"{what} is {read_phase(obj)}: {dig(obj, 'status.message', '')}", reason=reason)
    return find_failed(obj, what, goal)


CLUSTER = Kind(
    name="cluster",
    plural="clusters",
    title="cluster",
    summary="Other clusters that this one is linked with",
    scope="fabric",
    spec=ClusterSpec,
    actions=ClusterActions,
    marks=ClusterMarks,
    status=ClusterStatus,
    schema=2,
    upgrades=(take_from_spec(actions=ClusterActions, marks=ClusterMarks),),
    indexes={CLUSTERS_BY_PEER: lambda item: (item.marks(ClusterMarks).peer_uid,)},
    references=(Reference("project", "spec.projects", lambda spec: list(spec.projects), blocks=False),),
    verbs=(Verb("trust", "Trust it again after its store was restored from a backup", act=_trust, needs="fabric"),),
    access=Access(
        readers="shared",
        status_writer="clusters",
        mark_writers={"peer_uid": ("api",)},
        further_rights=_find_rights,
        # How it is reached, what it may do, the names of projects here and there, and how old the points of any project's replica
        # are: its name and its phase are for everyone.
        fabric_fields=(
            *("spec.url", "spec.ca", "marks.peer_uid", "spec.grants", "spec.projects", "spec.witness", "spec.sealed"),
            *("status.peer_uid", "status.epoch", "status.message", "status.lag_seconds", "status.rpo_seconds"),
        ),
    ),
    admission=Admission(
        check=check_cluster,
        check_new=_refuse_new,
        check_change=_check_change,
        check_values=_check_values,
        kept_fields=("sealed",),
        seals=True,
    ),
    display=Display(
        topic="Clusters",
        columns=(
            NAME,
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("URL", text("spec.url"), flexible=True),
            Column("GRANTS", joined("spec.grants")),
            Column("LAG", _seconds("status.lag_seconds"), align="right"),
            Column("RPO", _seconds("status.rpo_seconds"), align="right"),
            Column("RELEASE", text("status.release", "–"), wide=True),
            Column("WITNESS", text("spec.witness.url", "–"), wide=True),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(goals={"create": _LINKED, "trust": _LINKED}, find_failure=_find_failure),
)
