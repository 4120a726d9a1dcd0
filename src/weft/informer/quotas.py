"""A project's quota and what its objects count, as controllers read them, and how a plan keeps within it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from weft.informer.commit import Draft
from weft.informer.view import Item, View
from weft.kinds.image import IMAGE, ImageStatus
from weft.kinds.quota import QuotaSpec, add_up, describe_excess, find_excess, quota_key, resolve
from weft.kinds.record import Counted
from weft.kinds.registry import BY_NAME, COUNTED


class ProjectQuota(msgspec.Struct, frozen=True):
    """The limits of a project, and how much of them its objects use."""

    item: Item
    limits: QuotaSpec
    used: Mapping[str, float]
    image_sizes: Mapping[str, int]

    def describe_excess(self, kind: str, spec: msgspec.Struct) -> str:
        """What a new object of ``kind`` would exceed, as a sentence; "" if it fits."""
        counts = BY_NAME[kind].counts
        counted = Counted({}) if counts is None else counts(spec, BY_NAME[kind].status())
        excess = find_excess(self.limits, self.used, resolve(counted, self.image_sizes))
        return describe_excess(self.item.envelope.project, excess) if excess else ""

    def guard(self, draft: Draft) -> None:
        """Let the commit of ``draft`` fail if another one used more of the quota since it was read: each that does writes it, as
        this one does."""
        draft.change(self.item)


def read_quota(view: View, project: str | None) -> ProjectQuota | None:
    """The quota of a project; None if it has none."""
    item = view.get(quota_key(project))
    if item is None:
        return None
    sizes = {
        image.envelope.name: image.status(ImageStatus).virtual_size
        for image in view.of_kind(IMAGE.name).values()
        if image.envelope.project == project
    }
    every = (one for kind in COUNTED for one in view.of_kind(kind.name).values() if one.envelope.project == project)
    used = add_up(resolve(count_item(one), sizes) for one in every)
    return ProjectQuota(item, item.spec(QuotaSpec), used, sizes)


def count_item(item: Item) -> Counted:
    """What an object counts in its project's quota."""
    kind = BY_NAME[item.envelope.kind]
    return kind.counts(item.spec(kind.spec), item.status(kind.status)) if kind.counts is not None else Counted({})
