"""The functions as the doors see them: in a view that follows the store. Pure."""

from __future__ import annotations

from weft.informer.view import Item, View
from weft.kinds.function import FunctionSpec, version_name
from weft.objects.errors import NotFound
from weft.objects.identity import object_key


class FunctionIndex:
    def __init__(self, view: View) -> None:
        self._view = view

    def find(self, project: str, name: str) -> Item:
        """A function. Raises NotFound (``functionNotFound``)."""
        item = self._view.get(object_key("function", project, name))
        if item is None or item.deleting:
            raise NotFound(
                f'function "{name[:80]}" not found in project {project[:80]}',
                reason="functionNotFound",
                hint="weft function list",
            )
        return item

    def check_qualifier(self, item: Item, qualifier: str) -> Item | None:
        """The FunctionVersion of a number; None for an alias or the newest. Raises NotFound."""
        if not qualifier:
            return None
        envelope = item.envelope
        if qualifier.isdecimal():
            version = self._view.get(
                object_key("functionversion", envelope.project, version_name(envelope.name, qualifier))
            )
            if version is not None and not version.deleting:
                return version
        elif qualifier in item.spec(FunctionSpec).aliases:
            return None
        raise NotFound(
            f"function/{envelope.name} has no version or alias {qualifier[:80]!r}", reason="functionNotFound"
        )

    def listed(self, project: str) -> list[Item]:
        """A project's functions, by name."""
        found = [i for i in self._view.of_kind("function").values() if i.envelope.project == project and not i.deleting]
        return sorted(found, key=lambda item: item.envelope.name)

    def versions(self, item: Item) -> list[Item]:
        """Published versions, oldest first."""
        found = [
            v
            for v in self._view.of_kind("functionversion").values()
            if v.envelope.owner is not None and v.envelope.owner.uid == item.uid and not v.deleting
        ]
        return sorted(found, key=lambda v: (len(v.envelope.name), v.envelope.name))
