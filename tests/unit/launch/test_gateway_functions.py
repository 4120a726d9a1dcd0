"""A gateway without functions carries nothing of placement; with the first one it places as if it always had."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from weft.contracts.function_placement import KINDS, PlacementQuery
from weft.gateway.function.service import make_view
from weft.informer.cache import whole
from weft.informer.view import View
from weft.kinds.function import FunctionSpec
from weft.kinds.parts.function_code import code_of
from weft.launch.gateway.functions import PlacesOnceWanted
from weft.objects.envelope import Envelope, encode_envelope


def put(view: View, places: PlacesOnceWanted, kind: str, name: str, **more: object) -> None:
    envelope = Envelope(
        kind=kind, name=name, uid=f"u-{name}", project="default" if kind == "function" else None, **more
    )  # type: ignore[arg-type]
    changed = view.put(envelope.key, encode_envelope(envelope), 1)
    assert changed is not None
    places.notice([changed])


def test_what_is_not_wanted_yet_is_not_loaded() -> None:
    code = "import sys, weft.launch.gateway.main; print([m for m in ('numpy', 'weft.scheduler') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_first_function_makes_it_know_what_was_there_before() -> None:
    view = make_view(*KINDS)
    places = PlacesOnceWanted(view)
    put(view, places, "node", "n1")
    places.use("u-n1", 1.0)
    places.hold("u-n1", frozenset({"recipe:1"}))
    assert places._places is None
    spec = FunctionSpec(code="a" * 64, handler="app.handler")
    put(view, places, "function", "web", spec=msgspec.Raw(msgspec.json.encode(spec)))
    assert places._places is not None and places.epoch > 0 and len(whole(view, KINDS)) == 1
    assert places.rank(
        PlacementQuery(project="default", code=code_of(spec))
    ).reason  # the node hasn't said anything yet
    before = places.epoch
    put(view, places, "node", "n2")
    assert places.epoch > before
