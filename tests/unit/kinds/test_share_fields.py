"""What a share may say, and how specs name what another project shares."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.kinds.constraint import names_preferred, names_required, read_text
from weft.kinds.container import ContainerSpec, check_container
from weft.kinds.image import ImageSpec, check_image
from weft.kinds.parts.sharing import MOST_SHARES, SHARE, ShareInput, is_shared
from weft.kinds.vm import VmSpec, check_vm
from weft.objects.errors import InvalidInput
from weft.objects.identity import named_key
from weft.objects.image.reference import held_name
from weft.objects.schema import read_strict


def share(now: list[str], **given: list[str]) -> list[str]:
    assert SHARE.change is not None
    obj = {"kind": "image", "name": "tiny", "spec": {"url": "file:///x", "shared_with": now}}
    changed = SHARE.change(obj, msgspec.convert(given, ShareInput))
    assert changed["url"] == "file:///x"
    return list(changed["shared_with"])


def test_the_verb_adds_and_removes_projects() -> None:
    assert share([], **{"with": ["biology"]}) == ["biology"]
    assert share(["biology"], **{"with": ["arts", "biology"]}) == ["biology", "arts"]
    assert share(["biology", "arts"], stop=["biology"]) == ["arts"]
    assert share(["biology"], **{"with": ["*"]}) == ["*"] and share(["*"], **{"with": ["arts"]}) == ["*"]
    assert share(["*"], **{"with": ["arts"]}, stop=["*"]) == ["arts"]


@pytest.mark.parametrize(
    ("now", "given", "field", "remedy"),
    [
        ([], {}, "with", "--with PROJECT"),
        (["arts"], {"stop": ["biology"]}, "stop", "it is shared with arts"),
        ([], {"stop": ["biology"]}, "stop", "with no project"),
        (["*"], {"stop": ["biology"]}, "stop", r"shared with \*"),
        (["arts"], {"with": ["arts"], "stop": ["arts"]}, "stop", "in either input.with or input.stop"),
        ([], {"with": ["arts"], "stop": ["arts"]}, "stop", "in either input.with or input.stop"),
        ([], {"with": ["No Name"]}, "spec.shared_with[0]", "a-z"),
        ([], {"with": ["a", "a"]}, "spec.shared_with", "once"),
        ([], {"with": ["*", "a"]}, "spec.shared_with", "leave out either"),
    ],
)
def test_what_can_be_no_share_is_refused_with_the_remedy(
    now: list[str], given: dict[str, Any], field: str, remedy: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        share(now, **given)
    assert caught.value.field == field
    assert remedy.replace("\\", "") in str(caught.value.hint)


def test_shares_are_bounded() -> None:
    names = [f"p{number}" for number in range(MOST_SHARES + 1)]
    check_image(ImageSpec(url="file:///x", shared_with=names[1:]))
    with pytest.raises(InvalidInput, match="more than 50") as caught:
        check_image(ImageSpec(url="file:///x", shared_with=names))
    assert caught.value.hint == "use * for all projects"


def test_a_share_is_for_its_projects_or_for_all() -> None:
    assert is_shared(["biology"], "biology") and is_shared(["*"], "arts")
    assert not is_shared(["biology"], "arts") and not is_shared([], "arts") and not is_shared([""], None)


def test_a_name_means_the_own_project_unless_it_says_another() -> None:
    assert named_key("image", "biology", "tiny") == "/image/biology/tiny"
    assert named_key("image", "biology", "physics/tiny") == "/image/physics/tiny"


@pytest.mark.parametrize("text", ["tiny", "physics/tiny", "library/nginx"])
def test_one_slash_without_a_registry_names_what_weft_holds(text: str) -> None:
    assert held_name(text) == text
    assert read_strict({"image": text, "iso": text}, VmSpec).iso == text
    check_container(read_strict({"image": text}, ContainerSpec))
    check_image(ImageSpec(url=f"oci://{text}"))
    check_vm(read_strict({"image": "tiny", "networks": [text, f"x{text}:10.0.0.5"]}, VmSpec))
    assert read_strict({"image": "tiny", "reservation": text}, VmSpec).reservation == text
    spec = read_strict({"image": "tiny", "constraint": f"zone=a, @{text}", "prefer": [f"@{text};weight=0.3"]}, VmSpec)
    check_vm(spec)
    assert (names_required(spec.constraint), names_preferred(spec.prefer)) == ([text], [text])
    assert names_required(read_text({"op": "and", "of": [{"constraint": text}, "zone=a"]}, "x")) == [text]


@pytest.mark.parametrize(
    "text", ["r.example/web", "localhost/web", "r:5000/web", "physics/tiny:1", "a/b/c", "/tiny", ""]
)
def test_anything_else_with_a_slash_is_elsewhere(text: str) -> None:
    assert held_name(text) == ""


@pytest.mark.parametrize("text", ["a/b/c", "a/", "/b", "A/b", "a/b c", "", "a//b", "../b", "-/b"])
def test_a_wrong_reference_is_refused_with_the_remedy(text: str) -> None:
    for field in ("image", "iso", "reservation"):
        with pytest.raises(InvalidInput) as caught:
            read_strict({"image": "tiny", field: text}, VmSpec)
        assert caught.value.field == f"spec.{field}" and caught.value.hint
        assert "PROJECT/NAME" in str(caught.value.hint) or "/" not in text
    with pytest.raises(InvalidInput) as caught:
        check_container(read_strict({"image": text}, ContainerSpec))
    assert caught.value.field == "spec.image" and "NAME" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("networks", ["physics/lab/x"]),
        ("networks", ["Physics/lab:10.0.0.5"]),
        ("security_groups", ["physics/web"]),
        ("volumes", ["physics/data"]),
        ("node", "physics/n1"),
        ("constraint", "@a/b/c"),
        ("constraint", "@physics/"),
        ("prefer", ["@A/fast"]),
        ("strategy", "@physics/gold"),
        ("data_hints", ["image:physics/tiny"]),
        ("affinity_groups", ["physics/web"]),
        ("gang", "physics/web:2"),
    ],
)
def test_what_can_not_be_shared_refuses_the_name_of_another_project(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_vm(read_strict({"image": "tiny", field: value}, VmSpec))
    assert (caught.value.field or "").startswith(f"spec.{field}") and caught.value.hint
