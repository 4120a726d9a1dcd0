"""What people write of functions on the command line and in files, and when a function is as it was wished."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import click
import pytest

from weft.cli.function.code import pack, pack_documents
from weft.cli.function.flags import read_more_flags
from weft.cli.manifest.document import Document
from weft.cli.output.description import describe_object
from weft.cli.output.terminal import Paint
from weft.cli.runtime_image import is_here
from weft.cli.verbs.invoke import _split_qualifier, read_event
from weft.kinds.operation import find_failure, plan_goal
from weft.kinds.registry import BY_NAME
from weft.objects.code_archive import read_members
from weft.objects.errors import DriverFailed, InvalidInput, TooLarge, Unplaceable

FUNCTION = BY_NAME["function"]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "app.py").write_text("def handler(event, context): return event\n")
    return folder


def test_a_folder_and_its_own_zip_are_the_same_code(code: Path, tmp_path: Path) -> None:
    packed = pack(str(code))
    (tmp_path / "app.zip").write_bytes(packed.data)
    assert pack("app.zip", tmp_path) == pack("app", tmp_path).__class__(packed.sha256, packed.data, "app.zip", 1)
    assert [member.name for member in read_members(io.BytesIO(packed.data), len(packed.data))] == ["app.py"]


@pytest.mark.parametrize("given", ["nowhere", "/dev/null"])
def test_what_is_no_code_is_said(given: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        pack(given, tmp_path)
    assert given in caught.value.message and caught.value.field == "spec.code"


def test_manifests_name_code_beside_them_also_in_lists(code: Path, tmp_path: Path) -> None:
    digest = "ab" * 32
    whole = [
        {"kind": "function", "name": "a", "spec": {"code": "./app"}},
        {"items": [{"kind": "fn", "name": "b", "spec": {"code": digest}}, {"kind": "vm", "name": "c"}, 7]},
    ]
    found = pack_documents([Document(whole, str(tmp_path / "all.yaml"))])
    assert [one.source for one in found] == ["./app"]
    spec: Any = whole[0]["spec"]
    assert spec == {"code": pack(str(code)).sha256, "code_size": len(found[0].data)}
    assert whole[1]["items"][0]["spec"]["code"] == digest  # type: ignore[index]


def test_code_that_is_not_there_is_said_at_its_place(tmp_path: Path) -> None:
    document = Document(
        {"kind": "function", "name": "a", "spec": {"code": "./app"}},
        str(tmp_path / "a.yaml"),
        {("spec", "code"): (4, 9)},
    )
    with pytest.raises(InvalidInput) as caught:
        pack_documents([document])
    assert f"{tmp_path}/a.yaml:4:9:" in caught.value.message


def test_flags_give_code_and_schedules(code: Path) -> None:
    spec: dict[str, Any] = {"image": "registry.example.org/a:1"}
    given = {
        "code": str(code),
        "schedules": ("@daily", '5 * * * *;zone=Europe/Berlin;qualifier=prod;input={"a": ";b=1"}'),
    }
    packed = read_more_flags(FUNCTION, given, spec)
    assert packed is not None
    assert spec["code"] == packed.sha256 and spec["image"] == ""
    assert spec["schedule"] == [
        {"cron": "@daily"},
        {"cron": "5 * * * *", "zone": "Europe/Berlin", "qualifier": "prod", "input": {"a": ";b=1"}},
    ]
    assert read_more_flags(FUNCTION, {"schedules": ("",)}, spec) is None and spec["schedule"] == []
    for bad in ("@daily;often", "@daily;zone", "@daily;input={"):
        with pytest.raises(InvalidInput):
            read_more_flags(FUNCTION, {"schedules": (bad,)}, spec)


@pytest.mark.parametrize(
    ("words", "version", "alias", "want"),
    [
        (("thumb",), None, None, (["thumb"], "")),
        (("thumb:3",), None, None, (["thumb"], "3")),
        (("function/thumb:prod",), None, None, (["function/thumb"], "prod")),
        (("function", "thumb"), "3", None, (["function", "thumb"], "3")),
        (("thumb",), None, "prod", (["thumb"], "prod")),
    ],
)
def test_which_version_is_meant(words: tuple[str, ...], version: str | None, alias: str | None, want: object) -> None:
    assert _split_qualifier(words, version, alias) == want


def test_two_ways_to_say_which_are_one_too_many() -> None:
    with pytest.raises(click.UsageError):
        _split_qualifier(("thumb:3",), "3", None)


def test_data_is_json_from_where_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.json").write_text('{"n": 2}')
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"[3]")))
    assert (read_event(None), read_event('{"n":1}'), read_event("-")) == (b"{}", b'{"n":1}', b"[3]")
    assert read_event(f"@{tmp_path}/in.json") == b'{"n": 2}'
    for bad in ("{n:1}", "", "@/nowhere", "[" * 100_000):
        with pytest.raises(InvalidInput):
            read_event(bad)
    (tmp_path / "large.json").write_text('"' + "x" * (6 * 2**20) + '"')
    with pytest.raises(TooLarge):
        read_event(f"@{tmp_path}/large.json")


def obj(phase: str, generation: int = 1, seen: int = 1, **status: Any) -> dict[str, Any]:
    status = {"phase": phase, "observed_generation": seen, **status}
    return {"kind": "function", "name": "thumb", "generation": generation, "spec": {}, "status": status}


def test_create_and_update_wait_until_the_spec_serves() -> None:
    goal = plan_goal("function", "update")
    assert goal is not None
    assert goal.reached(obj("Ready"))
    assert not goal.reached(obj("Ready", generation=2))  # the old one serves
    assert not goal.reached(obj("Ready", reason="Runtime.ImportModuleError"))
    assert not goal.reached(obj("Preparing", seen=0))
    for waiting in (obj("Preparing", seen=0), obj("Ready", generation=2), obj("Pending", reason="baseNotReady")):
        assert find_failure(waiting, "function/thumb", goal) is None


def test_a_failure_says_its_type_and_where_and_the_old_one_goes_on() -> None:
    goal = plan_goal("function", "create")
    assert goal is not None
    trace = ["Traceback:", "ImportError: no shop"]
    failed = find_failure(
        obj("Failed", reason="Runtime.ImportModuleError", message="no shop", trace=trace), "function/thumb", goal
    )
    assert isinstance(failed, DriverFailed) and failed.token == "Runtime.ImportModuleError"
    assert failed.message == "\n".join(["function/thumb failed: Runtime.ImportModuleError: no shop", *trace])
    stays = find_failure(obj("Ready", reason="Runtime.ExitError", message="exit 1"), "function/thumb", goal)
    assert isinstance(stays, DriverFailed) and "still serves its previous code" in stays.message
    wrong = find_failure(obj("Pending", reason="wrongImage", message="image tiny is a disk"), "function/thumb", goal)
    assert isinstance(wrong, Unplaceable) and wrong.token == "wrongImage" and "image tiny is a disk" in wrong.message
    nowhere = find_failure(
        obj("Pending", seen=0, reason="insufficientResources", message="no node has a GPU"), "function/thumb", goal
    )
    assert isinstance(nowhere, Unplaceable) and "no node has a GPU" in nowhere.message


def test_only_addresses_of_ones_own_are_here() -> None:
    assert is_here("https://127.0.0.1:6443")
    assert not is_here("https://192.0.2.1:6443")
    assert not is_here("https://no.such.host.invalid")


def test_a_description_says_of_what_serves_only_what_the_spec_says_otherwise() -> None:
    spec = {"code": "b" * 64, "memory": 2**28, "handler": "app.handler"}
    whole = {**obj("Ready"), "uid": "u", "spec": spec}
    for serving, told in (({**spec}, False), ({**spec, "code": "a" * 64}, True)):
        whole["status"] = {"phase": "Ready", "serving": serving}
        text = describe_object(whole, FUNCTION, lambda _: "1s", None, Paint(False))
        assert ("serving" in text) is told and text.count("app.handler") == 1


def test_a_path_of_nix_itself_is_explained() -> None:
    with pytest.raises(InvalidInput) as caught:
        pack("/nix/store/abc-iot")
    assert 'code = "./folder"' in (caught.value.hint or "")
