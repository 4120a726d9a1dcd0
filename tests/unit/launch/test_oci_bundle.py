"""What a VM's init is told of the container image it stands on, and of its own machine."""

from __future__ import annotations

import io
import subprocess
import tarfile
import threading
from pathlib import Path

import msgspec
import pytest
from tests.unit.agent.test_agent_parts import prepared, wanted

from weft.agent.workload.seed import build_tar, render_machine
from weft.agent.workload.vm import choose_seed
from weft.contracts.driver.image import OciConfig
from weft.images.microvm.build import SOURCES, pack_image
from weft.kinds.allocation import AllocatedVolume
from weft.kinds.image import ImageSpec, check_image
from weft.launch.image.oci_bundle import describe_image, plan_bundles
from weft.objects.errors import DriverFailed, InvalidInput
from weft.objects.image.bundle import BundleManifest

_HARNESS = """
#define main vm_main
#include "{vm}"
#undef main
int main(int argc, char **argv) {{
    char *said = strdup(argv[2]);
    if (*argv[1]) read_seed(argv[1]);
    for (char *at = said, *next; at; at = next) {{
        next = strchr(at, 1);
        if (next) *next++ = 0;
        take_record(at, 0);
    }}
    for (char **word = choose_argv(); *word; word++) printf("run <%s>\\n", *word);
    for (size_t i = 0; i < env.count; i++) printf("env <%s>\\n", env.word[i]);
    printf("%s %s %zu %zu %d %d", run.hostname, run.user, nics.count, volumes.count, run.stop_signal, run.bad);
    return argc != 3;
}}
"""


def test_an_images_configuration_is_told_word_for_word() -> None:
    config = OciConfig(["sh", "-c"], ["a b"], ["A=1", "=x", "B"], "www:web", "/srv", "SIGQUIT")
    records = describe_image(config)
    assert records == [
        *(("entrypoint", word) for word in ("sh", "-c")),
        *(("cmd", "a b"), ("env", "A=1"), ("user", "www:web"), ("cwd", "/srv"), ("stop", "3")),
    ]
    assert b"image\0" in pack_image(records) and b"cmd a b\0env A=1\0" in pack_image(records)
    with pytest.raises(InvalidInput):
        pack_image([("cmd", "a\0b")])


def test_a_machine_is_told_of_its_nics_and_volumes_by_a_seed_it_always_has() -> None:
    manifest = BundleManifest("d", "qcow2", "k", "i", "quiet", agent=True, seed="machine")
    assert choose_seed(wanted(), prepared(manifest)) == "machine"
    one = wanted()
    one.spec.volumes = [AllocatedVolume(uid="u", name="a-volume-with-a-long-name", size=1)]
    nic = one.spec.nics[0]
    lines = render_machine(one).splitlines()
    assert lines[0] == "hostname web" and f"nic {nic.mac} {nic.address} " in lines[1]
    name, serial = lines[-1].split(" ")[2], lines[-1].split(" ")[1]
    assert name == "a-volume-with-a-long-name" and len(serial) == 20
    with tarfile.open(fileobj=io.BytesIO(build_tar(one, machine=True))) as archive:
        assert archive.getnames() == ["./user-data", "./meta-data", "./machine"]
    with tarfile.open(fileobj=io.BytesIO(build_tar(one))) as archive:
        assert archive.getnames() == ["./user-data", "./meta-data"]


def test_init_makes_of_all_that_what_a_container_would_run(tmp_path: Path) -> None:
    source, program, seed = tmp_path / "t.c", tmp_path / "t", tmp_path / "seed"
    source.write_text(_HARNESS.format(vm=SOURCES / "vm.c"))
    subprocess.run(["gcc", "-std=gnu17", "-w", "-o", program, source], check=True)

    def run(user_data: str, *image: str) -> list[str]:
        seed.write_bytes(build_tar(wanted(user_data=user_data), machine=True))
        return subprocess.run(
            [program, seed, "\1".join(image)], capture_output=True, text=True, check=True
        ).stdout.splitlines()

    image = ("entrypoint a", "entrypoint b c", "cmd d", "env A=1", "stop 3")
    assert run("", *image) == ["run <a>", "run <b c>", "run <d>", "env <A=1>", "web  1 0 3 0"]
    assert run("arg x y\n", *image)[:3] == ["run <a>", "run <b c>", "run <x y>"]
    assert run("command z\n", *image)[:2] == ["run <z>", "env <A=1>"]
    assert run("command z\narg \\\\\\n\n# no\n\nkeep {}\nenv B=x\\ny\n", *image)[:6] == [
        *("run <z>", "run <\\", ">", "env <B=x", "y>", "env <A=1>")
    ]
    assert run("unheard of\n", *image)[-1].endswith(" 1")
    assert run("user me\n", "cmd d")[-1].startswith("web me ")


@pytest.mark.parametrize("url", ["oci:///x", "oci://web:1", "oci:/srv/x", "oci://r.example.org/web@sha256:12"])
def test_an_oci_url_names_an_image_in_a_registry(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"spec\.url"):
        check_image(ImageSpec(url=url))
    check_image(ImageSpec(url="oci://r.example.org:5000/shop/web:1"))
    with pytest.raises(InvalidInput, match="its digest isn't known yet"):
        check_image(ImageSpec(url="oci://r.example.org/web:1", sha256="a" * 64))


def test_what_went_wrong_there_is_said_here(tmp_path: Path) -> None:
    make = plan_bundles(tmp_path / "oci", tmp_path / "nothing", [])
    with pytest.raises(DriverFailed) as told:
        make("oci://127.0.0.1:1/web:1", "", None, tmp_path / "out", lambda _: None, threading.Event())
    assert told.value.token == "fetchFailed" and told.value.hint
    assert not (tmp_path / "out").exists()
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(DriverFailed, match="aborted"):
        make("oci://127.0.0.1:1/web:1", "", None, tmp_path / "out", lambda _: None, given_up)
    assert msgspec.json.encode(told.value.to_dict())
