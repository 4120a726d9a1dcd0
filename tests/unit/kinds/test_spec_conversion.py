"""A container as a VM on the same image, and back: nothing of it is lost that isn't said."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.kinds.allocation import HealthCheck
from weft.kinds.container import ContainerSpec, check_container
from weft.kinds.parts.placement_spec import MIB
from weft.kinds.parts.spec_conversion import to_container, to_vm
from weft.kinds.parts.user_data import Process, read_process, write_process
from weft.kinds.vm import VmSpec, check_vm
from weft.objects.errors import InvalidInput

IMAGE = "registry.example.org/shop/web@sha256:" + "a" * 64
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
WORD = TEXT.filter(bool)
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)


@st.composite
def containers(draw: st.DrawFn) -> ContainerSpec:
    volumes = draw(st.lists(NAMES, unique=True, max_size=3))
    mounts = [f"{name}:/data/{name}{draw(st.sampled_from(['', ':ro', ':rw']))}" for name in volumes]
    spec = ContainerSpec(
        image=IMAGE,
        command=draw(st.lists(WORD, max_size=3)),
        args=draw(st.lists(TEXT, max_size=3)),
        env=draw(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), TEXT, max_size=4)),
        mounts=mounts,
        user=draw(st.sampled_from(["", "www-data", "1000:1000"])),
        restart=draw(st.sampled_from(["always", "on-failure", "never"])),
        cpu=draw(st.sampled_from([0.25, 1.0, 4.0])),
        memory=draw(st.integers(128, 4096)) * MIB,
        networks=draw(st.sampled_from([[], ["default"], ["default", "blue:10.1.0.7"]])),
        tolerate=draw(st.sampled_from([[], ["gpu"]])),
        grace=draw(st.sampled_from([5.0, 20.0])),
        read_only=draw(st.booleans()),
        pids=draw(st.sampled_from([64, 1024])),
        drop_capabilities=draw(st.sampled_from([[], ["ALL"]])),
        add_capabilities=draw(st.sampled_from([[], ["NET_RAW"]])),
        isolation=draw(st.sampled_from(["container", "vm"])),
        preemptible=draw(st.booleans()),
        registry_secret=draw(st.sampled_from(["", "hub"])),
        health_check=draw(st.sampled_from([None, HealthCheck(command=["true"], interval=3.0)])),
    )
    check_container(spec)
    return spec


@given(containers())
@settings(max_examples=examples(200), deadline=None)
def test_there_and_back_gives_the_very_container(spec: ContainerSpec) -> None:
    vm = to_vm(spec, "web-image").spec
    assert isinstance(vm, VmSpec)
    check_vm(vm)
    assert (vm.image, vm.run, vm.networks, vm.publish) == ("web-image", "stop", spec.networks, spec.publish)
    back = to_container(vm, IMAGE).spec
    assert msgspec.structs.replace(back, run="run") == spec


@given(st.builds(
    Process,
    command=st.lists(TEXT),
    args=st.lists(TEXT),
    env=st.dictionaries(st.from_regex(r"[A-Z]{1,4}", fullmatch=True), TEXT),
    user=TEXT,
    cwd=TEXT,
    mounts=st.lists(TEXT),
    restart=st.sampled_from(["", "on-failure"]),
    keep=st.dictionaries(TEXT, TEXT | st.integers(0, 9) | st.lists(TEXT)),
))  # fmt: skip
def test_whatever_is_said_in_lines_is_read_again(process: Process) -> None:
    assert read_process(write_process(process)) == process


def test_what_a_vm_gets_says_what_the_container_was() -> None:
    spec = ContainerSpec(
        image=IMAGE,
        command=["serve"],
        args=["a b", "two\nlines"],
        env={"A": "1"},
        mounts=["data:/srv:ro"],
        memory=40 * MIB,
    )
    made = to_vm(spec, "web")
    assert isinstance(made.spec, VmSpec)
    assert made.spec.volumes == ["data"]
    assert made.spec.memory == 128 * MIB
    lines = made.spec.user_data.splitlines()
    assert lines[:-1] == [
        "command serve",
        "arg a b",
        r"arg two\nlines",
        "env A=1",
        "mount data:/srv:ro",
        "restart on-failure",
    ]
    assert lines[-1].startswith("keep {")
    assert made.left_out == ()
    more = to_vm(msgspec.structs.replace(spec, pids=5, read_only=True, memory=200 * MIB), "web", disk=2**30)
    assert [said.partition(":")[0] for said in more.left_out] == ["read_only", "pids"]
    assert isinstance(more.spec, VmSpec)
    assert (more.spec.memory, more.spec.disk) == (264 * MIB, 2**30)


def test_what_was_changed_of_the_vm_is_the_container_s_from_then_on() -> None:
    vm = to_vm(ContainerSpec(image=IMAGE, memory=100 * MIB, pids=7, cpu=1.0), "web").spec
    larger = msgspec.structs.replace(vm, memory=512 * MIB, cpu=3.0, ssh_keys=["ssh-ed25519 AAAA"], cpu_model="host")
    made = to_container(larger, IMAGE)
    assert isinstance(made.spec, ContainerSpec)
    assert (made.spec.memory, made.spec.cpu, made.spec.pids) == (512 * MIB, 3.0, 7)
    assert [said.partition(":")[0] for said in made.left_out] == ["cpu_model", "ssh_keys"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"env_secrets": {"P": "db/password"}}, "spec.env_secrets"),
        ({"once": True}, "spec.once"),
        ({"gang": "g:2"}, "spec.gang"),
        ({"gpu_share": 0.5}, "spec.gpus"),
        ({"args": ["x" * 4000] * 20}, "spec.env"),
    ],
)
def test_a_container_that_cannot_be_a_vm_is_refused_by_field_with_a_remedy(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        to_vm(ContainerSpec(**{"image": IMAGE, **change}), "web")
    assert refused.value.field == field and refused.value.hint


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"gpus": 1}, "spec.gpus"),
        ({"volumes": ["data"]}, "spec.volumes"),
        ({"user_data": "mount data:/srv\n"}, "spec.user_data"),
        ({"user_data": "#cloud-config\nusers: [a]\n"}, "spec.user_data"),
        ({"user_data": 'keep {"pids": "many"}\n'}, "spec.user_data"),
    ],
)
def test_a_vm_that_cannot_be_a_container_is_refused_by_field_with_a_remedy(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        to_container(VmSpec(**{"image": "web", **change}), IMAGE)
    assert refused.value.field == field and refused.value.hint
