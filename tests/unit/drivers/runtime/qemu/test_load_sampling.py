"""What readings of a guest's memory say of it."""

from __future__ import annotations

import pytest

from weft.contracts.driver.migration import Load
from weft.drivers.runtime.qemu.migration.load_sampling import Changed, Look, describe_load, find_blocks

MIB = 1 << 20


def test_only_memory_that_the_guest_can_write_is_read() -> None:
    told = """              Block Name    PSize              Offset               Used              Total                HVA  RO
                 ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000 0x00007f1137e00000  rw
    /rom@etc/acpi/tables    4 KiB  0x0000000008080000 0x0000000000020000 0x0000000000200000 0x00007f118e200000  ro
             pc.bios    4 KiB  0x0000000008000000 0x0000000000040000 0x0000000000040000 0x00007f118e800000  ro
0000:01:00.0/0000:01:00.0 BAR 0 mmaps[0]    4 KiB  0x0000000009000000 0x0000000001000000 0x0000000001000000 0x00007f118c000000  rw
"""
    assert [(block.address, block.length) for block in find_blocks(told)] == [(0x7F1137E00000, 128 * MIB)]


def test_a_set_that_is_written_again_and_again_is_seen_and_one_without_end_is_all_the_memory() -> None:
    def seen(*shares: float) -> Load:
        """Of 1000 pages, those that each look found changed."""
        looks = [Look(0.0, 1000, [1] * 1000)]
        for number, share in enumerate(shares):
            count = int(share * 1000)
            looks.append(Look(0.25 * 2**number, 1000, [number + 2] * count + [1] * (1000 - count)))
        return describe_load(looks, Changed(1.0, 1.0, 1.0))

    page = 4096
    assert seen(0.1, 0.1, 0.1).written_bytes == pytest.approx(100 * page, rel=0.05)
    assert seen(0.1, 0.2, 0.4).written_bytes == 1000 * page
    assert seen(0.1, 0.2, 0.4).dirty_bytes_per_second == pytest.approx(400 * page)
    assert seen(0.0, 0.0, 0.0).dirty_bytes_per_second == 0
