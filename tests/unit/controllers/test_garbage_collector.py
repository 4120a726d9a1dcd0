"""Versions go with the function they are of, and only with that very one."""

from __future__ import annotations

import msgspec

from weft.contracts.store import Delete
from weft.controllers.garbage_collector import Garbage
from weft.informer.view import View, make_view
from weft.kinds.function import FunctionSpec
from weft.kinds.function_version import FunctionVersionSpec
from weft.kinds.profile import WORKLOAD_PROFILE, WorkloadProfileSpec, name_profile
from weft.objects.envelope import Envelope, encode_envelope
from weft.objects.identity import object_key


def put(view: View, envelope: Envelope, revision: int = 1) -> None:
    view.put(envelope.key, encode_envelope(envelope), revision)


def make_function(uid: str) -> Envelope:
    spec = msgspec.Raw(msgspec.json.encode(FunctionSpec(code="a" * 64)))
    return Envelope(kind="function", name="thumb", uid=uid, project="default", spec=spec)


def make_version(number: int, owner: Envelope) -> Envelope:
    spec = FunctionVersionSpec(function="thumb", number=number, code="a" * 64)
    raw = msgspec.Raw(msgspec.json.encode(spec))
    return Envelope(
        kind="functionversion", name=f"thumb-{number}", uid=f"v{number}", project="default", spec=raw, owner=owner.ref
    )


def removed(view: View, keys: list[str]) -> list[str]:
    commits = Garbage().plan(view, keys, 0.0).commits
    return sorted(write.key for commit in commits for write in commit.writes if isinstance(write, Delete))


def test_versions_are_removed_once_their_function_is_gone() -> None:
    view, function = make_view(), make_function("u1")
    versions = [make_version(number, function) for number in (1, 2)]
    for envelope in (function, *versions):
        put(view, envelope)
    keys = [version.key for version in versions]
    assert removed(view, keys) == []
    change = view.drop(function.key)
    assert change is not None
    profile = object_key("workloadprofile", function.project, f"function.{function.name}")
    assert sorted(Garbage().route(view, change)) == [*keys, profile]
    assert removed(view, keys) == keys


def test_a_profile_goes_with_its_workload_and_not_with_one_that_had_the_name_before() -> None:
    view, before, now = make_view(), make_function("u1"), make_function("u2")
    spec = WorkloadProfileSpec(workload=before.ref)
    profile = WORKLOAD_PROFILE.make(name_profile("function", now.name), spec, 0.0, project=now.project, owner=before)
    put(view, profile)
    assert removed(view, [profile.key]) == [profile.key]
    put(view, before)
    assert removed(view, [profile.key]) == []
    put(view, now)
    assert removed(view, [profile.key]) == [profile.key]


def test_versions_of_one_that_had_the_name_before_are_no_ones() -> None:
    view, before, now = make_view(), make_function("u1"), make_function("u2")
    old, new = make_version(1, before), make_version(2, now)
    for envelope in (now, old, new):
        put(view, envelope)
    assert removed(view, [old.key, new.key]) == [old.key]
