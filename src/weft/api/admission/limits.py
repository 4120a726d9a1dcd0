"""Limits on how many objects there are: of a kind in a project, of a kind of the fabric, and of one user's own tokens.

They keep one person from filling the store and the servers' memory; a quota limits what objects use. Only what people make is
refused, and what controllers make of it counts.
"""

from __future__ import annotations

from typing import Any

import msgspec

from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.kinds.image import MOST_WARM_IMAGES, ImageSpec
from weft.kinds.record import Kind
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import Forbidden
from weft.objects.identity import kind_prefix

LOGIN_LABEL = "weft/login"  # of tokens that come from logins
_LARGER = 10  # times as many: of the fabric's kinds, and of those that jobs, drains and verbs make, too


def limit_warm_images(context: ApiContext, envelope: Envelope, old: Any, new: Any) -> None:
    """Refuse to keep more images warm than a node keeps. Raises Forbidden (``tooManyObjects``)."""
    if not isinstance(new, ImageSpec) or new.warm is None or (old is not None and old.warm is not None):
        return
    others = {order.image.uid for order in context.orders.list_warm()} - {envelope.uid}
    if len(others) >= MOST_WARM_IMAGES:
        raise Forbidden(
            f"spec.warm: {len(others)} images are kept warm already, the most that a node keeps",
            reason="tooManyObjects",
            field="spec.warm",
            hint="end one that is started seldom: weft image warm NAME --off",
            details={"kind": "image", "limit": MOST_WARM_IMAGES},
        )


class _InProject(msgspec.Struct):
    project: str | None = None


async def limit_objects(context: ApiContext, view: View, kind: Kind, envelope: Envelope) -> str:
    """The key under which the new ``envelope`` counts once it is made. Raises Forbidden (``tooManyObjects``)."""
    key, most, counts = _name_group(kind, envelope), _find_most(context, kind, envelope), context.objects
    now = context.clock.elapsed()
    found = counts.find(key, now, most)
    if found is None or found >= most:
        found = await counts.read(key, now, lambda: _count(context, kind, envelope))
    if found >= most and await view.store.get(envelope.key) is None:  # one that is there is refused for that
        raise _too_many(kind, envelope, most)
    view.hold(counts, key)
    return key


def _name_group(kind: Kind, envelope: Envelope) -> str:
    """Name of the group that ``envelope`` counts in: the objects of its kind in its project, or with its owner or the project in
    its spec where projects and users administer the kind."""
    if kind.access.readers != "administered":
        return kind_prefix(kind.name, envelope.project)
    if _is_of_user(kind, envelope):
        return f"{kind.name}/user/{envelope.owner.uid if envelope.owner is not None else ''}"
    return f"{kind.name}/project/{decode_part(envelope.spec, _InProject).project or ''}"


def _is_of_user(kind: Kind, envelope: Envelope) -> bool:
    return kind.admission.most_of_owner > 0 and envelope.owner is not None


def _find_most(context: ApiContext, kind: Kind, envelope: Envelope) -> int:
    if _is_of_user(kind, envelope):
        return kind.admission.most_of_owner
    made_by_others = kind.workload is not None or kind.lifetime.history is not None or kind.access.writer == "fabric"
    larger = made_by_others or (kind.scope == "fabric" and kind.access.readers != "administered")
    return context.settings.most_objects * (_LARGER if larger else 1)


async def _count(context: ApiContext, kind: Kind, envelope: Envelope) -> int:
    if kind.access.readers != "administered":
        return await context.store.count(kind_prefix(kind.name, envelope.project))
    group, count = _name_group(kind, envelope), 0
    for entry in (await context.store.list(kind_prefix(kind.name))).entries:
        other = decode_envelope(entry.value)
        count += LOGIN_LABEL not in other.labels and _name_group(kind, other) == group
    return count


def _too_many(kind: Kind, envelope: Envelope, most: int) -> Forbidden:
    if envelope.owner is not None and _is_of_user(kind, envelope):
        where, hint = (
            f"user {envelope.owner.name}",
            f"delete some that nothing uses: weft {kind.name} list",
        )
    else:
        project = envelope.project or decode_part(envelope.spec, _InProject).project
        where = f"project {project}" if project else "the fabric"
        hint = "delete some, or ask an administrator: weft server --most-objects raises the limit"
    return Forbidden(
        f"{where} has {most} {kind.plural}, and more are not allowed",
        reason="tooManyObjects",
        hint=hint,
        details={"kind": kind.name, "limit": most},
    )
