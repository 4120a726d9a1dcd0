"""Make a link, on either side: the Cluster object, the token of the other cluster, and the end of its former one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.api.cluster.link_names import plan_name
from weft.api.context import ApiContext
from weft.contracts.store import Absent, AtRevision, Delete, Precondition, Put, Write
from weft.kinds.cluster import CLUSTER, TOKEN, ClusterActions, ClusterMarks, ClusterSpec, ClusterStatus
from weft.kinds.fields.cluster.link import VALUE, LinkTerms, check_terms, find_uid
from weft.kinds.secret import place_of
from weft.kinds.token import TOKEN as TOKENS
from weft.kinds.token import TokenMarks, TokenSpec
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope, merge_part
from weft.objects.errors import AlreadyExists, Forbidden, IllegalTransition, InvalidInput
from weft.objects.identity import kind_prefix

MOST_CLUSTERS = 100


class Other(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of the other cluster, checked."""

    ca: str
    url: str
    release: str
    epoch: str
    protocol: int
    asks_with: str  # SHA-256 of the secret with which it asks here


class Members(msgspec.Struct, frozen=True):
    """The clusters that this one is linked with, as they are stored."""

    found: Sequence[Envelope]

    def find(self, name: str, uid: str) -> Envelope | None:
        """The object that a link with the cluster ``uid`` renews, None for a new link; an empty ``name`` is any. Raises
        AlreadyExists if another has the name, or that cluster has another name; Forbidden for one too many."""
        if len(self.found) >= MOST_CLUSTERS and not any(self._is(one, uid) for one in self.found):
            raise Forbidden(
                f"this cluster is linked with {len(self.found)} others, which is the most",
                reason="tooManyObjects",
                hint="weft cluster delete NAME ends a link",
            )
        for one in self.found:
            is_it = self._is(one, uid)
            if is_it and name not in ("", one.name):
                raise AlreadyExists(
                    f"that cluster is linked already, as {one.name}",
                    field="name",
                    hint=f"use that name to link it again; weft cluster describe {one.name} shows the link",
                )
            if one.name == name and not is_it:
                raise AlreadyExists(
                    f'cluster "{name}" exists already, and is another one',
                    field="name",
                    hint=f"use another name; weft cluster describe {name} shows that one",
                )
            if is_it and one.deleting_since is not None:
                raise IllegalTransition(
                    f'cluster "{one.name}" is being deleted', reason="beingDeleted", hint="try again"
                )
            if is_it:
                return one
        return None

    def _is(self, one: Envelope, uid: str) -> bool:
        return decode_part(one.marks, ClusterMarks).peer_uid == uid


async def read_members(context: ApiContext) -> Members:
    page = await context.store.list(kind_prefix(CLUSTER.name))
    return Members([decode_envelope(entry.value, entry.revision) for entry in page.entries])


def refuse_itself(context: ApiContext, uid: str, field: str) -> None:
    """Raise InvalidInput for a link of this cluster with itself, or with a copy of it that has its keys."""
    if uid == find_uid(context.authority.ca):
        raise InvalidInput(
            "that is this cluster itself, or a copy of it with the same CA",
            field=field,
            hint="give another cluster's address and token; a copy needs a CA of its own first",
        )


def merge_terms(given: LinkTerms, former: Envelope | None) -> LinkTerms:
    """The grants and projects of a link that renews ``former``: what isn't given stays as it was. Raises InvalidInput."""
    kept = decode_part(former.spec, ClusterSpec) if former is not None else None
    grants = given.grants if given.grants is not None else kept.grants if kept is not None else []
    projects = given.projects if given.projects is not None else kept.projects if kept is not None else {}
    check_terms(grants, projects, "link")
    return LinkTerms(name=given.name, grants=sorted(set(grants)), projects=dict(projects))


async def plan_link(
    context: ApiContext,
    *,
    name: str,
    former: Envelope | None,
    other: Other,
    given: LinkTerms,
    token_id: str,
    secret: str,
    creator: str,
    phase: str,
) -> tuple[Envelope, list[Write], list[Precondition]]:
    """The Cluster object, and the commit that makes it or renews ``former``. ``token_id`` names the token with which the other
    cluster asks here; ``secret`` is the text with which this one asks there; ``phase`` is Linked once it may. Raises
    InvalidInput where the grants need projects and have none."""
    terms = merge_terms(given, former)
    now, kind, uid = context.clock.now(), CLUSTER.name, find_uid(other.ca)
    name = former.name if former is not None else name
    kept = decode_part(former.spec, ClusterSpec) if former is not None else None
    sealed = {TOKEN: context.settings.seal_keys.seal(secret.encode(), place_of(None, name, TOKEN, kind))}
    spec = ClusterSpec(
        url=other.url,
        ca=other.ca,
        grants=terms.grants or [],
        projects=terms.projects or {},
        sealed={
            **{key: one for key, one in (kept.sealed if kept is not None else {}).items() if key == VALUE},
            **sealed,
        },
        witness=kept.witness if kept is not None else None,
    )
    status = ClusterStatus(
        phase=phase,
        peer_uid=uid,
        release=other.release,
        protocol=other.protocol,
        epoch=other.epoch,
        seen_at=now if phase == "Linked" else None,
    )
    preconditions: list[Precondition] = []
    writes: list[Write] = []
    if former is None:
        made = CLUSTER.make(name, spec, now, creator=creator, marks=ClusterMarks(peer_uid=uid), status=status)
        writes, preconditions = await plan_name(context, name, uid)
        preconditions.append(Absent(made.key))
    else:
        old = decode_part(former.spec, ClusterSpec)
        status = msgspec.structs.replace(
            decode_part(former.status, ClusterStatus),
            **{
                field: getattr(status, field)
                for field in ("phase", "peer_uid", "release", "protocol", "epoch", "seen_at")
            },
            trusted=decode_part(former.actions, ClusterActions).trusted,
            clock_offset_seconds=None,
            reason="",
            message="",
        )
        made = msgspec.structs.replace(
            former,
            generation=former.generation + 1,
            spec=merge_part(former.spec, spec, old),
            marks=merge_part(former.marks, ClusterMarks(peer_uid=uid)),
            status=merge_part(former.status, status),
        )
        preconditions.append(AtRevision(former.key, former.revision))
    writes.append(Put(made.key, encode_envelope(made)))
    tokens = (await context.tokens.read_all()).values()
    writes += [Delete(one.key) for one in tokens if one.spec.use == "cluster" and one.envelope.owner == made.ref]
    token = TOKENS.make(
        token_id,
        TokenSpec(use="cluster", role="", subject=f"cluster {name}"),
        now,
        owner=made,
        marks=TokenMarks(sha256=other.asks_with),
    )
    preconditions.append(Absent(token.key))
    writes.append(Put(token.key, encode_envelope(token)))
    return made, writes, preconditions
