"""Manifests as they come: what is written in one format reads the same in all, what is broken is told with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.cli.manifest.check import read_manifests
from weft.cli.manifest.document import Document
from weft.cli.manifest.json_text import read_json
from weft.cli.manifest.nix_text import read_nix
from weft.cli.manifest.toml_text import read_toml
from weft.cli.manifest.yaml_text import read_yaml, write_yaml
from weft.kinds.registry import KINDS
from weft.objects.errors import InvalidInput, TooLarge, WeftError

Reader = Callable[[str, str], list[Document]]
READERS: dict[str, Reader] = {"yaml": read_yaml, "json": read_json, "toml": read_toml}
COMMON = settings(max_examples=examples(150), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

words = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\x85\ufeff"), max_size=20
)
scripts = st.lists(words.map(str.strip), max_size=4).map("\n".join)
names = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
plain = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), words, scripts)


def manifests_of(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    values = st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
        max_leaves=8,
    )
    optional = {"labels": st.dictionaries(names, words, max_size=3), "spec": st.dictionaries(names, values, max_size=4)}
    kinds = st.sampled_from([kind.name for kind in KINDS])
    return st.fixed_dictionaries({"kind": kinds, "name": names}, optional=optional)


manifests = manifests_of(plain | st.floats(-1e9, 1e9, width=32))


def as_toml(value: Any) -> str:
    """A value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(k)} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def as_nix(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + " ".join(f"{as_nix(k)} = {as_nix(v)};" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[ " + " ".join(f"({as_nix(item)})" for item in value) + " ]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${").replace("\n", "\\n")
        return f'"{escaped}"'
    return json.dumps(value) if not isinstance(value, (int, float)) or isinstance(value, bool) else f"({value!r})"


@COMMON
@given(manifests)
def test_a_manifest_reads_the_same_from_yaml_json_and_toml(manifest: dict[str, Any]) -> None:
    toml = "\n".join(f"{key} = {as_toml(value)}" for key, value in manifest.items())
    for name, text in (("yaml", write_yaml(manifest)), ("json", json.dumps(manifest, indent=1)), ("toml", toml)):
        (document,) = READERS[name](text, f"a.{name}")
        assert document.value == manifest, name


@settings(COMMON, max_examples=4)
@given(manifest=manifests_of(plain))
def test_a_manifest_reads_the_same_from_nix(tmp_path: Path, manifest: dict[str, Any]) -> None:
    path = tmp_path / "a.nix"
    path.write_text(as_nix(manifest))
    try:
        (document,) = read_nix(path, "a.nix")
    except WeftError as problem:
        if "isn't installed" in problem.message:
            pytest.skip(problem.message)
        raise
    assert document.value == manifest


def read_or_refuse(read: Reader, text: str) -> None:
    """Read to the manifests; an error names file, line and column, and they lie in the text."""
    try:
        documents = read(text, "a.x")
    except TooLarge:
        return
    except InvalidInput as problem:
        check_place(problem, text)
        return
    try:
        read_manifests(documents)
    except WeftError as problem:
        for one in problem.details.get("problems") or [{"details": problem.details}]:
            details = one["details"]
            assert details["file"] == "a.x" and (
                read is read_toml or 1 <= details["line"] <= len(text.splitlines()) + 1
            )


def check_place(problem: WeftError, text: str) -> None:
    details = problem.details
    assert details["file"] == "a.x" and problem.message.startswith(f"a.x:{details['line']}:{details['column']}: ")
    assert 1 <= details["line"] <= len(text.splitlines()) + 1 and details["column"] >= 1
    assert len(problem.message) < 1000


WRITERS: list[Callable[[Any], str]] = [
    write_yaml,
    lambda manifest: json.dumps(manifest, indent=1),
    lambda manifest: "\n".join(f"{key} = {as_toml(value)}" for key, value in manifest.items()),
]


def damage(manifest: dict[str, Any], write: Callable[[Any], str], at: int, more: str) -> str:
    text = write(manifest)
    at %= len(text) + 1
    return text[:at] + more + text[at:]


odd = st.text(alphabet="{}[]:,-&*!|>'\"%@` \n\t\0\x85é", min_size=1, max_size=4)
broken = st.one_of(
    st.text(max_size=80),
    st.text(alphabet="{}[]:,-#&*!|>'\"%@`=? \n\tab01.eE+~<", max_size=60),
    st.builds(damage, manifests, st.sampled_from(WRITERS), st.integers(0, 500), odd),
)


@settings(COMMON, max_examples=examples(400))
@given(text=broken, name=st.sampled_from(sorted(READERS)))
@example(text='{"kind": "vm", "x": "NaN", "n": NaN}', name="json")
@example(text='{"a":\n ' + "9" * 5000 + "}", name="json")
@example(text="[" * 100_000, name="json")
@example(text="[" * 5_000, name="yaml")
@example(text="a = " + "[" * 100_000, name="toml")
@example(text="a = " + "9" * 5000, name="toml")
@example(text="a: 0b\nb: !!int x", name="yaml")
@example(text="a: !!python/object/apply:os.system [ls]", name="yaml")
@example(text="a: !!binary ====", name="yaml")
@example(text="? [a]\n: b", name="yaml")
@example(text="a: &a [*a]", name="yaml")
@example(text="<<: 5", name="yaml")
@example(text="a\x00b", name="yaml")
@example(text="a: 190:20:30.15_", name="yaml")
@example(text="=: 1", name="yaml")
@example(text="a: 2024-13-45", name="yaml")
@example(text="a: 1__0\nb: 0x_", name="yaml")
@example(text="kind: vm\nname: web\nspec: {image: tiny, memory: .inf, cpu: .nan}", name="yaml")
def test_what_is_broken_is_told_with_file_line_and_column(text: str, name: str) -> None:
    read_or_refuse(READERS[name], text)


@pytest.mark.parametrize(
    "text",
    [
        "{ kind = ",
        "{ a = 1; a = 2; }",
        "x: y",
        '{ a = throw "no"; }',
        "import /etc/passwd",
        "let x = x; in x",
        "(" * 5000,
    ],
)
def test_a_broken_nix_file_is_told_with_file_line_and_column(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.nix"
    path.write_text(text)
    with pytest.raises(WeftError) as caught:
        read_nix(path, "a.x")
    if "isn't installed" in caught.value.message:
        pytest.skip(caught.value.message)
    check_place(caught.value, text)


def test_the_place_in_json_is_that_of_the_value() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_json('{"a": "NaN, really",\n "b": NaN}', "a.x")
    assert (caught.value.details["line"], caught.value.details["column"]) == (2, 7)
    assert yaml.safe_load(write_yaml({"a": "yes"})) == {"a": "yes"}
