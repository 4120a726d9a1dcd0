"""Find the endpoints of a service, and how new connections are split among them. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from weft.kinds.service import ALL, MOST_ENDPOINTS, ServiceEndpoint, Weight
from weft.objects.identity import Ref

DRAINING = "draining"
MOST_LEAVING = (
    MOST_ENDPOINTS // 4
)  # that leave, and keep their places before others: until nodes have confirmed that they do
# Where less than one in so many answers its check, the silent ones keep their connections: more likely the machines are too busy to
# answer in time than each of the guests broke at the same moment. None would otherwise be left, or the few would break next.
SPEAKING_OF = 3


class ServiceMember(msgspec.Struct, frozen=True, kw_only=True):
    """A workload that the selector matches."""

    workload: Ref
    labels: dict[str, str]
    address: str = ""
    node: str = ""
    node_address: str = ""
    trouble: str = ""  # why it isn't ready
    runs: bool = True  # it may be asked whether it is ready
    silent: bool = False  # it isn't ready only because it stopped answering its check: it was ready since it started
    leaves: str = ""  # why it gets no new connections, though it may be ready
    retired: bool = False  # it is being deleted, or its deployment has put another in its place
    departed_at: float | None = None  # since when no node sends it any
    departure: int = 0  # see ServiceEndpoint
    reachable: bool = True  # its guest is there: connections may be open, or come
    is_endpoint: bool = False  # of one that leaves: it was an endpoint before, so nodes may still send it connections
    deployment: str = ""  # the name of its deployment
    revision: str = ""


Split = Mapping[str, Mapping[str, int]]  # by deployment: per mille by revision


def plan_endpoints(
    members: Sequence[ServiceMember], weights: Sequence[Weight], split: Split
) -> tuple[list[ServiceEndpoint], int]:
    """The endpoints by name, with their weights, and how many members there are beyond MOST_ENDPOINTS."""
    known = _choose(members)
    ready = [at for at, one in enumerate(known) if not one.trouble and not one.leaves]
    silent = [at for at, one in enumerate(known) if one.silent and not one.leaves]
    live = sorted([*ready, *silent]) if _keeps_silent(len(ready), len(silent)) else ready
    shares = _share_by_weights(known, live, weights, split) if weights else _share_by_revisions(known, live, split)
    given = dict(zip(live, round_shares([shares.get(at, 0.0) for at in live]), strict=True))
    endpoints = [
        ServiceEndpoint(
            workload=one.workload,
            revision=one.revision,
            address=one.address,
            node=one.node,
            ready=not one.trouble,
            weight=given.get(at, 0),
            reason=one.trouble or one.leaves,
            silent=one.silent,
            leaves=bool(one.leaves),
            retired=one.retired or (split.get(one.deployment, {}).get(one.revision) == 0 and not given.get(at)),
            departed_at=one.departed_at,
            departure=one.departure,
        )
        for at, one in enumerate(known)
    ]
    return endpoints, len(members) - len(known)


def _keeps_silent(ready: int, silent: int) -> bool:
    """Whether those that don't answer their check get connections as before. What says no itself isn't among them."""
    return silent > 0 and ready * SPEAKING_OF < ready + silent


def _choose(members: Sequence[ServiceMember]) -> list[ServiceMember]:
    """MOST_ENDPOINTS at most, by name: those that run and stay before others, and of each revision as many. Whether one is ready
    decides nothing: only endpoints are asked. What leaves keeps its place, as nobody would hear otherwise when its drain may begin;
    one that lost it doesn't get it back."""
    by_name = sorted(members, key=lambda one: (one.workload.name, one.workload.kind))
    leaving = [at for at, one in enumerate(by_name) if one.leaves and one.reachable and one.is_endpoint]
    kept = set(sorted(leaving, key=lambda at: by_name[at].departed_at is not None)[:MOST_LEAVING])
    ranks, seen = list[tuple[bool, bool, int, int]](), defaultdict[tuple[bool, str, str], int](int)
    for at, one in enumerate(by_name):
        stays = one.runs and not one.leaves
        ranks.append((at not in kept, not stays, seen[stays, one.deployment, one.revision], at))
        seen[stays, one.deployment, one.revision] += 1
    return [by_name[at] for at in sorted(at for *_, at in sorted(ranks)[:MOST_ENDPOINTS])]


def round_shares(shares: Sequence[float]) -> list[int]:
    """Whole per mille that add up to ALL, in proportion to ``shares`` and each at least 1 where its share is more than nothing;
    nothing but 0 if all of them are."""
    total = sum(shares)
    if total <= 0:
        return [0] * len(shares)
    exact = [ALL * share / total for share in shares]
    whole = [max(1, int(one)) if one > 0 else 0 for one in exact]
    for _ in range(sum(whole) - ALL):  # of many that got 1 for less: the largest give it
        whole[max(range(len(whole)), key=whole.__getitem__)] -= 1
    for at in sorted(range(len(whole)), key=lambda at: whole[at] - exact[at])[: ALL - sum(whole)]:
        whole[at] += 1
    return whole


def _share_by_weights(
    known: Sequence[ServiceMember], live: Sequence[int], weights: Sequence[Weight], split: Split
) -> dict[int, float]:
    """People's own split; what has one label is divided by the deployments' splits. The share of a label that no ready endpoint has
    goes to the others in proportion."""
    groups: dict[int, list[int]] = defaultdict(list)
    rest = len(weights)
    for at in live:
        labels = known[at].labels
        first = next((n for n, one in enumerate(weights) if labels.get(one.label) == one.value), rest)
        groups[first].append(at)
    each = [one.per_mille for one in weights] + [ALL - sum(one.per_mille for one in weights)]
    return {
        at: each[number] * part / len(group)
        for number, group in groups.items()
        for at, part in _share_by_revisions(known, group, split).items()
    }


def _share_by_revisions(known: Sequence[ServiceMember], live: Sequence[int], split: Split) -> dict[int, float]:
    """A deployment has as much as it has ready instances, divided among its revisions by its split; without one all have the
    same."""
    shares: dict[int, float] = {}
    by_deployment: dict[str, list[int]] = defaultdict(list)
    for at in live:
        by_deployment[known[at].deployment].append(at)
    for deployment, group in by_deployment.items():
        revisions: dict[str, list[int]] = defaultdict(list)
        for at in group:
            revisions[known[at].revision].append(at)
        per_mille = split.get(deployment, {}) if deployment else {}
        total = sum(per_mille.get(revision, 0) for revision in revisions)
        for revision, members in revisions.items():
            part = per_mille.get(revision, 0) / total if total else len(members) / len(group)
            shares |= {at: len(group) * part / len(members) for at in members}
    return shares
