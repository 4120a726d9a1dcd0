"""What a copied machine and its host say to each other, and what one is told of its function."""

from __future__ import annotations

import struct
import subprocess

import pytest

from weft.contracts.driver.function import Recipe, Roots
from weft.drivers.runtime.qemu.function.config import choose_memory, compose_config, pack_config
from weft.drivers.runtime.qemu.function.messages import (
    ENDED,
    MOST_FRAME_BYTES,
    PRINTED,
    READY,
    End,
    Frames,
    decode_end,
    decode_message,
    encode_fresh,
)
from weft.drivers.runtime.qemu.function.translate import SnapshotFds, plan_machine, translate_clone, translate_template
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import DriverFailed

FACTS = QemuHostFacts("qemu", "tcg", (10, 0, 2), 2_600_000, (70_000, 30_000))
ROOTS = Roots(["/r"], code="/c", command=["python", "-m", "awslambdaric", "{handler}"], env={"PYTHONPATH": "/opt/ric"})


def recipe(**more: object) -> Recipe:
    return Recipe(digest="d", function="f", project="p", name="thumb", runtime="python3.11", handler="a.h", **more)  # type: ignore[arg-type]


def frame(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content


def test_frames_come_in_pieces_of_any_size() -> None:
    stream = frame(PRINTED, b"hello\n") + frame(READY, b"") + frame(ENDED, b"x" * 24)
    frames, heard = Frames(), []
    for at in range(len(stream)):
        heard += frames.feed(stream[at : at + 1])
    assert heard == [(PRINTED, b"hello\n"), (READY, b""), (ENDED, b"x" * 24)]
    assert not frames.broken


@pytest.mark.parametrize("nonsense", [b"?" + bytes(4), PRINTED + struct.pack("<I", MOST_FRAME_BYTES + 1)])
def test_nonsense_breaks_the_line_instead_of_filling_memory(nonsense: bytes) -> None:
    frames = Frames()
    assert frames.feed(nonsense) == []
    assert frames.broken
    assert frames.feed(frame(READY, b"")) == []


def test_datagrams_of_another_size_say_nothing() -> None:
    assert decode_message(b"D") is None
    assert decode_message(struct.pack("<c7xQQ", b"P", 3, 4096)) == (b"P", 3, 4096)
    assert decode_end(b"") is None
    assert decode_end(struct.pack("<iiIIQ", 0, 9, 1, 0, 77)) == End(0, 9, True, 77)


def test_a_long_name_is_cut_and_what_is_fresh_has_its_place() -> None:
    datagram = encode_fresh(7, 1_000, b"s" * 32, "n" * 200, practice=2, park=True)
    assert len(datagram) == 128
    assert datagram[8:24] == struct.pack("<QQ", 7, 1_000)
    assert datagram[56:64] == struct.pack("<II", 2, 1)
    assert datagram[64:] == b"n" * 63 + b"\0"


def test_the_config_has_the_command_the_environment_and_our_own_folder_first() -> None:
    records = compose_config(recipe(memory=256 << 20, env={"COLOUR": "blue"}), ROOTS, now_ns=5, seed=b"\1" * 32)
    words = records.decode().split("\0")[:-1]
    assert [word for word in words if word.startswith("argument ")] == [
        "argument python",
        "argument -m",
        "argument awslambdaric",
        "argument a.h",
    ]
    assert "env COLOUR=blue" in words
    assert "env PYTHONPATH=/run/weft:/opt/ric" in words
    assert "env AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001" in words
    assert {"uid 1000", "gid 1000", f"memory {256 << 20}", "warm 0", "code 1"} <= set(words)


def test_an_image_keeps_its_user() -> None:
    plain = Recipe(digest="d", function="f", project="p", name="n", image="i@sha256:0")
    assert b"uid 0\0" in compose_config(plain, Roots(["/r"], command=["/boot"]), now_ns=1, seed=bytes(32))


def test_a_zero_byte_can_not_begin_another_record() -> None:
    with pytest.raises(DriverFailed, match="function/thumb"):
        compose_config(recipe(env={"A": "b\0uid 0"}), ROOTS, now_ns=1, seed=bytes(32))


def test_the_archive_is_one_that_cpio_reads() -> None:
    listed = subprocess.run(["cpio", "-itv"], input=pack_config(b"a b\0"), capture_output=True, check=True)
    assert b"config" in listed.stdout


def test_the_machine_has_room_for_its_kernel() -> None:
    assert choose_memory(recipe(memory=128 << 20)) == 192 << 20
    assert choose_memory(recipe(memory=1)) == 128 << 20


def test_a_copy_is_the_template_to_the_letter_but_for_its_memory() -> None:
    machine = plan_machine(FACTS, 192 << 20, 1.0, 2)
    handed = SnapshotFds(3, 4, 5, 6, 7, 8, [9, 10])
    first, second = translate_template(machine, handed, "a"), translate_clone(machine, handed, "a")
    changed = [pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]]
    assert len(changed) == 1
    assert changed[0][0].endswith("share=on")
    assert changed[0][1].endswith("share=off,readonly=on,rom=off")
    assert second[len(first) :] == ["-incoming", "defer"]


def test_an_emulated_microvm_is_told_its_clock_rate_and_without_one_it_is_q35() -> None:
    told = plan_machine(FACTS, 128 << 20, 0.25, 1)
    assert (told.machine, told.vcpus) == ("microvm", 1)
    assert "tsc_early_khz=2600000" in told.cmdline
    unknown = plan_machine(QemuHostFacts("qemu", "tcg", (10, 0, 2), 0, (1, 1)), 128 << 20, 2.5, 1)
    assert (unknown.machine, unknown.vcpus) == ("q35", 3)
    assert "tsc_early_khz" not in unknown.cmdline
