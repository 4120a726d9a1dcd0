"""Code that nothing names goes, once it is old enough; what is served or published stays."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from weft.controllers.file.copies import remove_unnamed
from weft.controllers.file.plan import find_named
from weft.informer.view import make_view
from weft.kinds.function import FunctionSpec, FunctionStatus
from weft.kinds.function_version import FunctionVersionSpec
from weft.kinds.parts.function_code import FunctionCode
from weft.objects.envelope import Envelope, encode_envelope

SPECIFIED, SERVED, PUBLISHED, LOST = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


def raw(part: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(part))


def test_specs_what_serves_and_versions_are_named() -> None:
    view = make_view()
    function = Envelope(
        kind="function",
        name="thumb",
        uid="u1",
        project="default",
        spec=raw(FunctionSpec(code=SPECIFIED)),
        status=raw(FunctionStatus(serving=FunctionCode(code=SERVED))),
    )
    image = Envelope(kind="function", name="img", uid="u3", project="default", spec=raw(FunctionSpec(image="a/b:1")))
    version = Envelope(
        kind="functionversion",
        name="thumb-1",
        uid="u2",
        project="default",
        spec=raw(FunctionVersionSpec(function="thumb", number=1, code=PUBLISHED)),
    )
    for envelope in (function, image, version):
        view.put(envelope.key, encode_envelope(envelope), 1)
    assert find_named(view) == {SPECIFIED, SERVED, PUBLISHED}


def test_only_what_is_old_and_unnamed_is_removed(tmp_path: Path) -> None:
    for name in (SPECIFIED, LOST, "e" * 64, ".upload-old", ".upload-new"):
        (tmp_path / name).write_text("x")
    for name in (SPECIFIED, LOST, ".upload-old"):
        os.utime(tmp_path / name, (100, 100))
    assert remove_unnamed(tmp_path, {SPECIFIED}, 1000.0) == [".upload-old", LOST]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".upload-new", SPECIFIED, "e" * 64]
    assert remove_unnamed(tmp_path / "nowhere", set(), 1000.0) == []
