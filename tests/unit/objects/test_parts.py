"""Actions and marks: parts of an object that people don't write, beside its spec."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec
import pytest

from weft.kinds.record import Kind
from weft.kinds.registry import KINDS
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope, merge_part, take_from_spec


class Actions(msgspec.Struct):
    cancel: bool = False


class Marks(msgspec.Struct):
    role: str = "standby"


def test_an_object_of_before_gets_its_actions_and_marks_out_of_its_spec() -> None:
    take = take_from_spec(actions=Actions, marks=Marks)
    stored = {"name": "x", "spec": {"of": "vm/x", "cancel": True, "role": "primary", "newer": 1}}
    taken: dict[str, Any] = take(stored)
    assert taken == {
        "name": "x",
        "spec": {"of": "vm/x", "newer": 1},
        "actions": {"cancel": True},
        "marks": {"role": "primary"},
    }
    assert take(taken) == taken and stored["spec"]["cancel"] is True


def test_an_object_without_them_has_their_defaults_and_is_stored_without_them() -> None:
    envelope = Envelope(kind="vm", name="x", uid="u")
    assert decode_part(envelope.marks, Marks) == Marks() and b"marks" not in encode_envelope(envelope)
    envelope.marks = merge_part(envelope.marks, Marks("primary"))
    envelope.marks = merge_part(msgspec.Raw(b'{"role":"primary","newer":[1]}'), Marks("lost"))
    assert msgspec.json.decode(decode_envelope(encode_envelope(envelope)).marks) == {"role": "lost", "newer": [1]}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.marks or kind.actions], ids=lambda kind: kind.name)
def test_each_mark_names_its_writers_and_no_other_part_has_a_field_of_its_name(kind: Kind) -> None:
    parts = {part: getattr(kind, part) for part in ("spec", "actions", "marks")}
    fields = {part: set(type_.__struct_fields__) if type_ is not None else set() for part, type_ in parts.items()}
    assert not fields["spec"] & (fields["actions"] | fields["marks"]) and not fields["actions"] & fields["marks"]
    assert fields["marks"] <= kind.access.mark_writers.keys() <= fields["marks"] | fields["actions"]
    named = {writer for writers in kind.access.mark_writers.values() for writer in writers}
    verbs = {f":{verb.name}" for verb in kind.verbs if verb.act is not None}
    assert {writer for writer in named if writer.startswith(":")} <= verbs
    assert not fields["actions"] or verbs


def test_no_spec_has_a_field_that_no_person_writes() -> None:
    """What verbs ask for and what is decided of an object is beside it; a manifest may say all that is kept when it is silent."""
    kept = {"run", "hold", "origin", "paused", "instance", "shared_with", "sealed"}
    people = [kind for kind in KINDS if kind.access.writer == "people"]
    assert {name for kind in people for name in kind.admission.kept_fields} == kept
    for kind in people:
        for name, hint in get_type_hints(kind.spec, include_extras=True).items():
            told = " ".join(str(getattr(one, "description", "")) for one in getattr(hint, "__metadata__", ()))
            assert name in kept or "set by the server" not in told, f"{kind.name}.spec.{name}"
