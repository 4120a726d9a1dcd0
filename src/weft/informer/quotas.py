"""A project's quota and what its objects count, as controllers read them, and how a plan keeps within it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from weft.informer.commit import Draft
from weft.informer.view import Item, View
from weft.kinds.image import IMAGE, ImageStatus
from weft.kinds.quota import (
    AccountLimits,
    QuotaSpec,
    add_up,
    add_up_accounts,
    count_fitting,
    describe_excess,
    find_excess,
    find_growth,
    quota_key,
    resolve,
)
from weft.kinds.record import Counted
from weft.kinds.registry import BY_NAME, COUNTED


class ProjectQuota(msgspec.Struct, frozen=True):
    """The limits of a project, and how much of them its objects use."""

    item: Item
    limits: QuotaSpec
    used: Mapping[str, Mapping[str, float]]  # by account and field
    image_sizes: Mapping[str, int]

    def describe_excess(self, kind: str, spec: msgspec.Struct, user: str) -> str:
        """Describe the excess by a new object of ``kind`` that counts for ``user``, as a sentence; "" if it fits."""
        return self.count_fitting(kind, spec, user, 0)[1]

    def count_fitting(self, kind: str, spec: msgspec.Struct, user: str, most: int) -> tuple[int, str]:
        """How many new objects of ``kind`` fit, up to ``most``, and what one more than these would exceed; "" for none."""
        accounts = self.limits.accounts_of(user)
        one = resolve(BY_NAME[kind].count(spec, BY_NAME[kind].status()), self.image_sizes)
        for account, limits in accounts:
            most = count_fitting(limits, self.used.get(account, {}), one, most)
        for account, limits in accounts:
            used = add_up([self.used.get(account, {}), *[one] * most])
            if excess := find_excess(limits, used, one, account):
                return most, describe_excess(self.item.envelope.project, excess)
        return most, ""

    def count_change(self, item: Item, spec: msgspec.Struct) -> tuple[ProjectQuota, str]:
        """The quota once ``item`` has ``spec``, and what that would exceed; itself if it would exceed something."""
        accounts = self.limits.accounts_of(item.envelope.creator)
        if BY_NAME[item.envelope.kind].admission.counts is None:
            return self, ""
        after = resolve(count_item(item, spec), self.image_sizes)
        grown = find_growth([limits for _, limits in accounts], resolve(count_item(item), self.image_sizes), after)
        for account, limits in accounts:
            if excess := find_excess(limits, self.used.get(account, {}), grown, account):
                return self, describe_excess(self.item.envelope.project, excess)
        used = {account: add_up([self.used.get(account, {}), grown]) for account, _ in accounts}
        return msgspec.structs.replace(self, used={**self.used, **used}), ""

    def describe_excess_together(
        self, made: Iterable[tuple[str, msgspec.Struct, str]], marked: Iterable[tuple[Item, msgspec.Struct]]
    ) -> str:
        """Describe the excess by new objects, each a kind, a spec and the user that it counts for, and objects with new marks, all
        together, as a sentence; "" if they fit."""
        taken: dict[str, list[Mapping[str, float]]] = {}
        limits: dict[str, AccountLimits] = {}

        def note(user: str, amounts: Mapping[str, float]) -> None:
            for account, its in self.limits.accounts_of(user):
                limits[account] = its
                taken.setdefault(account, []).append(amounts)

        for kind, spec, user in made:
            note(user, resolve(BY_NAME[kind].count(spec, BY_NAME[kind].status()), self.image_sizes))
        for item, marks in marked:
            before = resolve(count_item(item), self.image_sizes)
            after = resolve(count_item(item, marks=marks), self.image_sizes)
            note(
                item.envelope.creator,
                {name: after.get(name, 0) - before.get(name, 0) for name in before.keys() | after.keys()},
            )
        excess = [
            one
            for account, amounts in taken.items()
            for one in find_excess(limits[account], self.used.get(account, {}), add_up(amounts), account)
        ]
        return describe_excess(self.item.envelope.project, excess)

    def guard(self, draft: Draft) -> None:
        """Let the commit of ``draft`` fail if another one used more of the quota since it was read: each that does writes it, as
        this one does."""
        draft.change(self.item)


def read_quota(view: View, project: str | None) -> ProjectQuota | None:
    """The quota of a project; None if it has none."""
    item = view.get(quota_key(project))
    if item is None:
        return None
    sizes: dict[str, int] = {}
    for image in view.of_kind(IMAGE.name).values():
        own, name = image.envelope.project == project, image.envelope.name
        sizes[name if own else f"{image.envelope.project}/{name}"] = image.status(ImageStatus).virtual_size
    every = (one for kind in COUNTED for one in view.of_kind(kind.name).values() if one.envelope.project == project)
    used = add_up_accounts((one.envelope.creator, resolve(count_item(one), sizes)) for one in every)
    return ProjectQuota(item, item.spec(QuotaSpec), used, sizes)


def count_item(item: Item, spec: msgspec.Struct | None = None, marks: msgspec.Struct | None = None) -> Counted:
    """Count an object in its project's quota; ``spec``, ``marks``: once it has these."""
    kind = BY_NAME[item.envelope.kind]
    if marks is None and kind.marks is not None:
        marks = item.marks(kind.marks)
    return kind.count(item.spec(kind.spec) if spec is None else spec, item.status(kind.status), marks)
