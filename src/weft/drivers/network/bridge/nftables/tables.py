"""Keeps nft tables up to date: remembers which ones were seen or set last, so that an unchanged one costs nothing."""

from __future__ import annotations

from weft.drivers.network.bridge import kernel
from weft.drivers.network.bridge.nftables import rules
from weft.drivers.network.bridge.nftables.parts import PartedTable
from weft.objects.errors import DriverFailed


class Tables:
    """The node's tables, and those in its routers' namespaces."""

    def __init__(self) -> None:
        self._digests: dict[tuple[str, str, str], str] = {}  # (namespace, family, name) → digest last seen or set
        self._there: dict[tuple[str, str, str], PartedTable] = {}  # as last seen or set

    async def ensure(self, namespace: str, *tables: rules.Table) -> bool:
        """Replace the tables that are out of date, or their parts, in one transaction; returns whether any was. ``namespace`` is
        a router's, "" the node's own. Raises DriverFailed."""
        wrong: list[rules.Table] = []
        for table in tables:
            key = (namespace, table.family, table.name)
            if key not in self._digests:
                held = await kernel.inspect_table(table.family, table.name, namespace)
                if held is not None and f'comment "{table.digest}"' in held:
                    self._note(key, table)
            if self._digests.get(key) != table.digest:
                wrong.append(table)
        if not wrong:
            return False
        changes = [self._change(namespace, table) for table in wrong]
        whole = [table.text for table in wrong]
        try:
            await _perform(namespace, "".join(changes))
        except DriverFailed:
            if changes == whole:
                raise
            await _perform(namespace, "".join(whole))  # somebody has changed or removed what was there
        for table in wrong:
            self._note((namespace, table.family, table.name), table)
        return True

    def _change(self, namespace: str, table: rules.Table) -> str:
        before = self._there.get((namespace, table.family, table.name))
        return table.change_from(before) if isinstance(table, PartedTable) and before is not None else table.text

    def _note(self, key: tuple[str, str, str], table: rules.Table) -> None:
        self._digests[key] = table.digest
        if isinstance(table, PartedTable):
            self._there[key] = table

    async def drop(self, *tables: tuple[str, str]) -> bool:
        """Take these (family, name) of the node's away; says whether any was there. Raises DriverFailed."""
        there = [t for t in tables if await kernel.inspect_table(*t) is not None]
        await kernel.perform_tables("".join(f"delete table {family} {name}\n" for family, name in there))
        for family, name in tables:
            self._digests.pop(("", family, name), None)
            self._there.pop(("", family, name), None)
        return bool(there)

    def forget(self, namespace: str) -> None:
        """The namespace is gone, or made anew."""
        for key in [k for k in self._digests if k[0] == namespace]:
            del self._digests[key]
            self._there.pop(key, None)

    def forget_all(self) -> None:
        """Distrust everything that was seen before."""
        self._digests.clear()
        self._there.clear()


async def _perform(namespace: str, text: str) -> None:
    if namespace:
        await kernel.perform_router(namespace, [], False, text)
    else:
        await kernel.perform_tables(text)
