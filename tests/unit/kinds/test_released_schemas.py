"""What a released weft stored, every later one reads: one object of each kind and schema number, kept as it was written.

These files never change. A field may come (with a default); one that goes or changes needs the next schema number, an
upgrade function in the Kind record, and a new file here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.kinds.record import Kind
from weft.kinds.registry import KINDS
from weft.objects.envelope import decode_envelope, decode_part, encode_envelope

STORED = Path(__file__).parent / "stored"
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def read_as(part: msgspec.Raw, type_: type[msgspec.Struct]) -> Any:
    return msgspec.to_builtins(decode_part(part, type_))


@EVERY_KIND
def test_each_schema_of_a_kind_has_its_file_and_its_upgrade(kind: Kind) -> None:
    assert {path.name for path in STORED.glob(f"{kind.name}.*.json")} == {
        f"{kind.name}.{number}.json" for number in range(1, kind.schema + 1)
    }, f"tests/unit/kinds/stored/ has an object of each schema of {kind.name}, as weft stores it, with all its fields"
    assert len(kind.upgrades) == kind.schema - 1


@EVERY_KIND
def test_what_the_present_schema_stored_is_read_whole(kind: Kind) -> None:
    stored = (STORED / f"{kind.name}.{kind.schema}.json").read_bytes()
    raw, envelope = msgspec.json.decode(stored), decode_envelope(stored)
    for part, type_ in [(part, getattr(kind, part)) for part in ("spec", "actions", "marks", "status", "report")]:
        if type_ is not None:
            seen = read_as(getattr(envelope, part), type_)
            assert _cut(seen, raw.get(part, {})) == raw.get(part, {}), f"{kind.name}.{part}"


@EVERY_KIND
def test_a_newer_field_survives_an_older_process_that_rewrites_the_object(kind: Kind) -> None:
    stored = msgspec.json.decode((STORED / f"{kind.name}.{kind.schema}.json").read_bytes())
    stored["spec"]["of_tomorrow"] = stored["status"]["of_tomorrow"] = {"deep": [1]}
    again = msgspec.json.decode(encode_envelope(decode_envelope(msgspec.json.encode(stored))))
    assert (again["spec"], again["status"]) == (stored["spec"], stored["status"])


def _cut(seen: Any, stored: Any) -> Any:
    """Of ``seen`` what ``stored`` has, at each depth: fields that came since are left out."""
    if isinstance(seen, dict) and isinstance(stored, dict):
        return {name: _cut(seen.get(name), value) for name, value in stored.items()}
    if isinstance(seen, list) and isinstance(stored, list) and len(seen) == len(stored):
        return [_cut(one, other) for one, other in zip(seen, stored, strict=True)]
    return seen
