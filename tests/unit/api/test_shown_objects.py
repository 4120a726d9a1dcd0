"""What people are shown of an object is a manifest that changes nothing of it: `weft get -o yaml | weft apply -f -`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from weft.api.admission.admit import read_spec
from weft.api.request.manifest import read_manifest
from weft.kinds.record import Kind
from weft.kinds.registry import KINDS
from weft.objects.envelope import decode_envelope, decode_part
from weft.objects.spec_change import plan_spec_change

STORED = Path(__file__).parents[1] / "kinds" / "stored"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.access.writer == "people"], ids=lambda kind: kind.name)
def test_an_object_that_is_sent_back_as_it_was_shown_stays_as_it_is(kind: Kind) -> None:
    stored = decode_envelope((STORED / f"{kind.name}.{kind.schema}.json").read_bytes())
    shown = read_manifest(msgspec.json.decode(msgspec.json.encode(stored)))
    # Stored examples have a value in each field, whether or not these go together.
    unchecked = msgspec.structs.replace(kind, admission=msgspec.structs.replace(kind.admission, check=None))
    old = decode_part(stored.spec, kind.spec)
    new = read_spec(unchecked, shown.spec, old)
    assert (plan_spec_change(old, new), shown.labels, shown.uid) == ([], stored.labels, stored.uid)
