"""Every complaint about a file says where: file, line and column, in all four formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.cli.manifest import yaml_text
from weft.cli.manifest.check import read_manifests
from weft.cli.manifest.files import read_documents
from weft.objects.errors import InvalidInput, WeftError

YAML = """\
kind: vm
name: web
spec:
  image: tiny
  memory: 256M
  # a comment
  cpuu: 2
"""
JSON = """\
{
  "kind": "vm",
  "name": "web",
  "spec": {"image": "tiny",
\t\t"cpuu": 2}
}
"""
TOML = """\
kind = "vm"
name = "web"

[spec]
image = "tiny"
user_data = '''
cpuu = 1
'''
  cpuu = 2
"""
NIX = """\
{ memory ? "256M" }:
let
  base = { image = "tiny"; };
in
{
  kind = "vm";
  name = "web";
  spec = base // {
    inherit memory;
    cpuu = 2;
  };
}
"""


def complaint(folder: Path, name: str, text: str) -> WeftError:
    path = folder / name
    path.write_text(text)
    with pytest.raises(WeftError) as caught:
        read_manifests(read_documents([str(path)]))
    caught.value.message = caught.value.message.replace(f"{folder}/", "")
    return caught.value


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [("web.yaml", YAML, "7:3"), ("web.json", JSON, "5:3"), ("web.toml", TOML, "9:3"), ("web.nix", NIX, "10:5")],
)
def test_an_unknown_field_is_named_at_its_place_with_a_suggestion(
    tmp_path: Path, name: str, text: str, place: str
) -> None:
    problem = complaint(tmp_path, name, text)
    assert problem.message == f'{name}:{place}: VM "web": spec.cpuu is not a field'
    assert problem.hint == "did you mean spec.cpu?   weft schema vm.spec lists them"
    assert problem.token == "unknownField"


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.yaml", "kind: vm\nname: [web\n", "3:1"),
        ("a.yaml", "kind: vm\n\tname: web\n", "2:1"),
        ("a.yaml", "kind: vm\nspec: a: b\n", "2:8"),
        ("a.json", '{"kind": "vm",\n "name": }', "2:10"),
        ("a.json", '{"kind": "vm",\n "kind": "vm"}', "2:2"),
        ("a.toml", 'kind = "vm"\nname = web\n', "2:8"),
        ("a.nix", '{\n  kind = "vm"\n  name = 1;\n}', "3:8"),
        ("a.nix", "{\n  kind = vm;\n}", "2:10"),
        ("a.nix", "{ name }:\n{ kind = name; }", "1:1"),
    ],
)
def test_text_that_cannot_be_read_is_refused_with_line_and_column(
    tmp_path: Path, name: str, text: str, place: str
) -> None:
    assert complaint(tmp_path, name, text).message.startswith(f"{name}:{place}: ")


def test_a_key_given_twice_in_yaml_is_refused(tmp_path: Path) -> None:
    problem = complaint(tmp_path, "a.yaml", "kind: vm\nname: web\nspec:\n  cpu: 1\n  cpu: 2\n")
    assert problem.message == "a.yaml:5:3: 'cpu' is given twice"


def test_aliases_that_stand_for_billions_of_items_are_refused_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_text, "MAX_PARTS", 5_000)  # as many as are allowed take a second
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    assert "aliases written out" in complaint(tmp_path, "a.yaml", "\n".join(lines)).message


def test_brackets_in_brackets_end_at_a_bound(tmp_path: Path) -> None:
    deep = "[" * 200
    assert len(yaml_text.read_yaml("a: " + deep + "]" * 200, "a.yaml")) == 1
    assert complaint(tmp_path, "a.yaml", "a: " + deep * 50).message == "a.yaml:1:204: YAML: nested too deeply"


def test_all_problems_of_all_documents_are_found_in_one_go(tmp_path: Path) -> None:
    text = "kind: vm\nname: a\nspec: {image: tiny, memory: -5G}\n---\n"
    text += "kind: vmm\nname: b\n---\nkind: vm\nnmae: c\nspec: {}\n"
    problem = complaint(tmp_path, "a.yaml", text)
    found = [entry["message"].replace(f"{tmp_path}/", "") for entry in problem.details["problems"]]
    assert found[0].endswith("spec.memory: -5G is negative")
    assert found[1] == "a.yaml:5:1: no such kind: 'vmm'"
    assert found[2] == "a.yaml:9:1: nmae is not a field of a manifest"
    assert found[3] == "a.yaml:8:1: name is missing"
    assert problem.details["problems"][1]["hint"] == "did you mean vm?"


def test_a_manifest_of_kubernetes_is_called_one(tmp_path: Path) -> None:
    problem = complaint(tmp_path, "pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n")
    assert "pod.yaml:1:1: this is a manifest of Kubernetes" in problem.message and "weft schema" in str(problem.hint)


def test_the_same_object_twice_is_refused_naming_both_places(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: project\nname: x\n")
    (tmp_path / "b.json").write_text('{"kind": "project", "name": "x"}')
    with pytest.raises(InvalidInput, match=r"b\.json:1:21: project \"x\": is given twice, first at .*a\.yaml:1:1"):
        read_manifests(read_documents([str(tmp_path)]))


def test_lists_items_and_several_documents_are_all_opened(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "kind: project\nname: a\n---\n- kind: project\n  name: b\n---\n---\nitems:\n- kind: project\n  name: c\n"
    )
    (tmp_path / "b.toml").write_text(
        '[[items]]\nkind = "project"\nname = "d"\n[[items]]\nkind = "project"\nname = "e"\n'
    )
    (tmp_path / "notes.txt").write_text("not a manifest")
    manifests = read_manifests(read_documents([str(tmp_path)]))
    assert [manifest.data["name"] for manifest in manifests] == ["a", "b", "c", "d", "e"]


def test_what_the_server_sets_is_left_out_but_for_what_says_which_object_is_meant(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "kind: network\nname: blue\nproject: p\nuid: u\nrevision: 7\ngeneration: 2\ncreated_at: 1.0\nschema: 1\n"
        "labels: {a: b}\nspec: {cidr: 10.0.0.0/24}\nstatus: {phase: Ready}\nreport: {}\n"
        "conditions: []\nfinalizers: []\n"
    )
    (manifest,) = read_manifests(read_documents([str(tmp_path / "a.yaml")]), "q")
    assert manifest.data == {
        "kind": "network",
        "name": "blue",
        "project": "p",
        "labels": {"a": "b"},
        "uid": "u",
        "generation": 2,
        "spec": {"cidr": "10.0.0.0/24"},
    }


def test_dates_and_yes_stay_what_they_were_written_as(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: project\nname: x\nlabels: {since: 2024-01-01}\n")
    (manifest,) = read_manifests(read_documents([str(tmp_path / "a.yaml")]))
    assert manifest.data["labels"] == {"since": "2024-01-01"}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("job_timeout: 1:30", "spec.job_timeout: '1:30' is not a duration"),
        ("task: {image: a, lease: {duration: 10:00}}", "spec.task.lease.duration: '10:00' is not a duration"),
        ("task: {image: a, lease: {start: 22:00}}", "spec.task.lease.start: '22:00' is not a time"),
        ("parallelism: 010", "spec.parallelism: "),
        ("parallelism: 1_000", "spec.parallelism: "),
        ("parallelism: 0x1f", "spec.parallelism: "),
        ("task: {image: a, memory: 1:30}", "spec.task.memory: '1:30' is not a size"),
        ("task: {image: a, cpu: 1:30}", "spec.task.cpu: '1:30' is not a number"),
    ],
)
def test_what_yaml_alone_takes_for_a_number_is_the_text_that_stands_there_and_is_refused_at_its_place(
    tmp_path: Path, field: str, message: str
) -> None:
    task = "" if field.startswith("task") else "  task: {image: a}\n"
    problem = complaint(tmp_path, "a.yaml", f"kind: job\nname: x\nspec:\n  {field}\n{task}")
    assert problem.message.startswith("a.yaml:4:") and message in problem.message


def test_a_text_of_digits_needs_no_quotes_in_a_label(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: project\nname: x\nlabels: {zip: 01234, sum: 12_3}\n")
    (manifest,) = read_manifests(read_documents([str(tmp_path / "a.yaml")]))
    assert manifest.data["labels"] == {"zip": "01234", "sum": "12_3"}


def test_a_label_that_is_no_text_is_refused_at_its_place(tmp_path: Path) -> None:
    problem = complaint(tmp_path, "a.yaml", "kind: project\nname: x\nlabels:\n  app: web\n  count: 3\n")
    assert problem.message == 'a.yaml:5:3: project "x": labels.count: the value must be text'


def test_a_missing_file_and_an_empty_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file"):
        read_documents([str(tmp_path / "none.yaml")])
    with pytest.raises(InvalidInput, match="contains no manifests"):
        read_documents([str(tmp_path)])


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"kind: vm\nname: \xff\xfe\n")
    with pytest.raises(InvalidInput, match=r"a\.yaml:2:7: not text in UTF-8"):
        read_documents([str(path)])


@pytest.mark.parametrize(("file", "text"), [("a.yaml", "a: [b\n"), ("a.json", '{"a": '), ("a.toml", "a = [")])
def test_text_that_cannot_be_read_is_told_with_what_to_look_at(tmp_path: Path, file: str, text: str) -> None:
    assert (complaint(tmp_path, file, text).hint or "").startswith("look at ")
