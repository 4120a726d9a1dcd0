"""The rows of a dashboard's table: order, filters and counts stay right change by change, and a tab is told of what differs."""

from __future__ import annotations

import json
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.api.dashboard.row import MOST_LETTERS, Rendered, render
from weft.api.dashboard.rows import KindRows
from weft.api.dashboard.selection import Query, Selection
from weft.api.dashboard.sight import Sight
from weft.api.dashboard.table import list_heads, read_asked
from weft.api.dashboard.window import RowWindow
from weft.kinds.registry import BY_NAME
from weft.kinds.vm import VM
from weft.objects.envelope import encode_envelope
from weft.objects.errors import InvalidInput


class Source:
    """Rows of VMs as a ``KindRows`` has them, changed by hand."""

    def __init__(self) -> None:
        self.kind, self.cursor = VM, "e:0"
        self.found: dict[str, Rendered] = {}
        self.listeners: list[Any] = []

    def put(self, name: str, phase: str | None, memory: int = 1 << 30, project: str = "red") -> None:
        """``phase`` None: the VM is gone."""
        key = f"/vm/{project}/{name}"
        old, new = self.found.pop(key, None), None
        if phase is not None:
            envelope = VM.make(
                name, VM.spec(image="tiny", memory=memory), 1.0, uid=f"{project}/{name}", project=project
            )
            envelope.status = msgspec.Raw(json.dumps({"phase": phase}).encode())
            new = self.found[key] = cast(Rendered, render(VM, encode_envelope(envelope), 1))
        if old or new:
            for listener in self.listeners:
                listener(old, new)


def select(source: Source, **query: Any) -> Selection:
    query = {"sights": (Sight("vm"),), **query}
    return Selection(Query(**query), [cast(KindRows, source)])


def names(selection: Selection, offset: int = 0, limit: int = 500) -> list[str]:
    return [row.name for row in selection.page(offset, limit)]


def test_cells_are_sorted_by_what_they_mean_and_names_as_people_count() -> None:
    source = Source()
    for name, memory in (("web-10", 512 << 20), ("web-9", 2 << 30), ("web-1", 900 << 20)):
        source.put(name, "Running", memory)
    assert names(select(source)) == ["web-1", "web-9", "web-10"]
    assert names(select(source, title="MEMORY")) == ["web-10", "web-1", "web-9"]
    assert names(select(source, title="MEMORY", descending=True), 1, 1) == ["web-1"]


def test_empty_cells_are_last_in_both_directions() -> None:
    source = Source()
    source.put("b", "Running")
    source.put("a", "Running")
    for title in ("NODE", "NOTE"):  # of neither
        assert sorted(names(select(source, title=title))) == sorted(names(select(source, title=title, descending=True)))
    key, empty = (0, 1.0, ""), (2, 0.0, "")
    assert key < empty and (-key[0], key[1]) > (-empty[0], empty[1]), "turned round, descending order ends with them"


NAMES = st.sampled_from([f"web-{number}" for number in range(12)])
CHANGES = st.lists(
    st.tuples(NAMES, st.sampled_from([None, "Running", "Pending", "Failed"]), st.integers(1, 8), st.sampled_from("rb"))
)
QUERIES = st.fixed_dictionaries(
    {
        "title": st.sampled_from(["NAME", "PHASE", "MEMORY"]),
        "descending": st.booleans(),
        "words": st.sampled_from([(), ("web-1",), ("gib", "web")]),
        "where": st.sampled_from(["", "Running"]),
        "sights": st.sampled_from([(Sight("vm"),), (Sight("vm", frozenset("r")),)]),
    }
)


@given(CHANGES, CHANGES, QUERIES)
def test_a_selection_that_was_changed_is_as_one_that_is_made_now(before: Any, after: Any, query: Any) -> None:
    source = Source()
    for name, phase, memory, project in before:
        source.put(name, phase, memory << 30, project)
    kept = select(source, **query)
    for name, phase, memory, project in after:
        source.put(name, phase, memory << 30, project)
    made = select(source, **query)
    assert [row.uid for row in kept.page(0, 500)] == [row.uid for row in made.page(0, 500)]
    assert kept.phases == made.phases and kept.unsettled.keys() == made.unsettled.keys()


@given(CHANGES, CHANGES, QUERIES, st.integers(0, 4), st.integers(1, 6))
def test_a_tab_that_applies_what_it_is_told_shows_what_is_so(
    before: Any, after: Any, query: Any, offset: int, limit: int
) -> None:
    source = Source()
    for name, phase, memory, project in before:
        source.put(name, phase, memory << 30, project)
    selection = select(source, **query)
    window = RowWindow(selection, ("vm",), offset, limit)
    shown: dict[str, Any] = {}
    order: list[str] = []
    for number, change in enumerate([None, *after]):
        if change is not None:
            source.put(change[0], change[1], change[2] << 30, change[3])
        if number % 2:  # a slow reader: it gets both changes together
            continue
        if data := window.take():
            event = json.loads(data)
            shown |= {row["uid"]: row for row in event["rows"]}
            shown = {uid: row for uid, row in shown.items() if uid not in event["gone"]}
            order = event.get("order", order)
            assert event["total"] == selection.total and event["phases"] == dict(selection.phases)
    data = window.take()
    if data:
        event = json.loads(data)
        shown |= {row["uid"]: row for row in event["rows"]}
        order = event.get("order", order)
    now = selection.page(offset, limit)
    assert order == [row.uid for row in now]
    assert [shown[uid]["phase"] for uid in order] == [row.phase for row in now]
    assert window.take() == b"", "nothing is said twice"


def test_a_row_that_others_changed_is_encoded_once_for_all_tabs() -> None:
    source = Source()
    source.put("web", "Pending")
    selection = select(source)
    tabs = [RowWindow(selection, ("vm",), 0, 10) for _ in range(3)]
    for tab in tabs:
        tab.take()
    source.put("web", "Running")
    assert len({id(tab.take()) for tab in tabs}) == 1


def test_phases_are_counted_whatever_phase_is_chosen() -> None:
    source = Source()
    source.put("a", "Running")
    source.put("b", "Failed")
    chosen = select(source, where="Failed")
    assert names(chosen) == ["b"] and chosen.phases == {"Running": 1, "Failed": 1}
    source.put("b", "Running")
    assert names(chosen) == [] and chosen.phases == {"Running": 2}


def test_columns_of_several_kinds_are_the_union_in_order() -> None:
    titles = [head.title for head in list_heads(("vm", "job"))]
    assert titles[:3] == ["KIND", "NAME", "PHASE"] and len(titles) == len(set(titles))
    assert {column.title for name in ("vm", "job") for column in BY_NAME[name].display.columns} <= set(titles)
    assert read_asked({"kinds": "vm,jobs,vm"}).kinds == ("vm", "job")


def test_a_long_cell_is_cut() -> None:
    envelope = BY_NAME["project"].make("p", BY_NAME["project"].spec(description="x" * 5000), 1.0)
    made = render(BY_NAME["project"], encode_envelope(envelope), 1)
    assert made is not None and max(map(len, made.whole.cells)) == MOST_LETTERS and len(made.whole.text) < 1000


def test_a_phase_that_is_too_long_is_refused_and_not_cut() -> None:
    with pytest.raises(InvalidInput, match="where is longer"):
        read_asked({"kinds": "vm", "where": "x" * 201})


def test_columns_for_wide_places_come_last() -> None:
    for layout in (("vm",), ("vm", "container", "job")):
        titles = [head.title for head in list_heads(layout)]
        assert titles.index("NOTE") < titles.index("NETWORKS")
