"""Which addresses of devices a gateway calls: none of its own machine, and none where clouds keep their metadata."""

from __future__ import annotations

import ipaddress

import pytest

from weft.drivers.device.address import find_address, find_refusal
from weft.objects.errors import Unavailable

REFUSED = (
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.1", "224.0.1.187", "255.255.255.255", "::", "::1",
    "fe80::1", "ff02::fd", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "fd00:ec2::254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::", "100.100.100.200",
)  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_this_machine_and_a_clouds_metadata_are_refused(text: str) -> None:
    assert find_refusal(ipaddress.ip_address(text)) != ""


@pytest.mark.parametrize(
    "text", ["10.0.0.7", "192.168.7.20", "172.16.0.1", "8.8.8.8", "fd00::7", "2001:db8::1", "64:ff9b::a00:7"]
)
def test_what_is_in_a_network_is_not(text: str) -> None:
    assert find_refusal(ipaddress.ip_address(text)) == ""


async def test_a_name_is_refused_by_the_address_that_it_stands_for() -> None:
    with pytest.raises(Unavailable, match="refused"):
        await find_address("localhost", 502, local=False)
    assert ipaddress.ip_address(await find_address("localhost", 502, local=True)).is_loopback
    for numeral in ("2130706433", "0x7f000001", "127.1"):  # a resolver takes these for 127.0.0.1
        with pytest.raises(Unavailable):
            await find_address(numeral, 502, local=False)
