"""The examples say the same in every format, and are right as far as one can know without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.cli.manifest.check import check_spec, read_manifests
from weft.cli.manifest.config import read_config
from weft.cli.manifest.files import read_documents
from weft.cli.session import Session
from weft.cli.verbs.create import make_command, read_spec
from weft.contracts.clock import SystemClock
from weft.kinds.registry import BY_NAME

EXAMPLES = Path(__file__).resolve().parents[4] / "examples"
SUFFIXES = ("yaml", "json", "toml", "nix")


def test_three_tier_is_the_same_in_all_four_formats() -> None:
    read = [read_manifests(read_documents([str(EXAMPLES / f"three-tier.{suffix}")])) for suffix in SUFFIXES]
    first, *others = [[manifest.data for manifest in manifests] for manifests in read]
    assert [f"{data['kind']}/{data['name']}" for data in first] == [
        *("network/front", "network/back", "volume/visits", "vm/shop-db", "vm/shop-app", "vm/shop-web")
    ]
    assert all(other == first for other in others)


def test_replicas_are_the_same_in_all_four_formats_and_make_sense() -> None:
    read = [read_manifests(read_documents([str(EXAMPLES / f"replicas.{suffix}")])) for suffix in SUFFIXES]
    first, *others = [[manifest.data for manifest in manifests] for manifests in read]
    assert [data["name"] for data in first] == ["api-1", "api-2", "basket", "cache"]
    assert all(other == first for other in others)
    assert [check_spec(BY_NAME["vm"], data["spec"]) for data in first] == [[]] * 4


@pytest.mark.parametrize("name", ["postgres", "webapp"])
def test_a_config_example_is_one_vm_and_the_same_in_all_four_formats(name: str) -> None:
    vm = BY_NAME["vm"]
    first, *others = [read_config(str(EXAMPLES / f"{name}.{suffix}"), vm).value for suffix in SUFFIXES]
    assert all(other == first for other in others)
    assert check_spec(vm, first["spec"]) == []


FUNCTIONS = {
    "image-ai": "--memory 2048M --timeout 60s --placement-strategy best-fit,data-locality --prefer gpu=available "
    "--max-concurrent 50",
    "inference": "--memory 4096M --constraint gpu.memory>=8GB --placement-strategy network-proximity",
    "etl": "--memory 8192M --placement-strategy data-locality --data-hint ceph-pool:raw-data",
    "iot": "--memory 64M --timeout 5s --placement-strategy network-proximity --prefer location=edge",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_functions_of_the_examples_can_be_made_as_their_files_say(name: str) -> None:
    kind = BY_NAME["function"]
    file = EXAMPLES / f"{name}.nix"
    words = FUNCTIONS[name].split()
    head = file.read_text().replace("\\\n#     ", "").replace('"', "")
    assert f"--config {name}.nix {' '.join(words)}" in head
    command = make_command("create", kind)
    with command.make_context("create", ["x", "--config", str(file), *words]) as context:
        manifest, code = read_spec(Session(SystemClock), kind, ("x",), dict(context.params))
    assert code is not None and check_spec(kind, manifest["spec"]) == []
    module, _, handler = manifest["spec"]["handler"].rpartition(".")
    source = (EXAMPLES / "functions" / name / f"{module}.py").read_text()
    assert f"def {handler}(event, context)" in source
