"""Which addresses of devices a gateway calls: none of its own machine, and none where clouds keep their metadata."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import sys
import threading

import pytest

from weft.drivers.device.address import find_address, find_refusal
from weft.objects.errors import Unavailable

REFUSED = (
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.1", "224.0.1.187", "255.255.255.255", "::", "::1",
    "fe80::1", "ff02::fd", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "fd00:ec2::254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::", "::127.0.0.1", "::ffff:0:127.0.0.1", "fec0::1", "100.100.100.200", "168.63.129.16", "192.0.0.192",
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


async def test_another_address_of_this_machine_is_refused_and_one_of_another_machine_is_not() -> None:
    program = (
        "import asyncio, ipaddress\n"
        "from weft.drivers.device.address import find_address, is_own\n"
        "from weft.objects.errors import Unavailable\n"
        "for own in ('192.0.2.7', '2001:db8::7', '::ffff:192.0.2.7'):\n"
        "    assert is_own(ipaddress.ip_address(own)), own\n"
        "    try:\n"
        "        asyncio.run(find_address(own, 502, local=False))\n"
        "        raise SystemExit(own)\n"
        "    except Unavailable as problem:\n"
        "        assert 'own address' in problem.message\n"
        "    assert asyncio.run(find_address(own, 502, local=True))\n"
        "for other in ('192.0.2.8', '2001:db8::8', '198.51.100.1'):\n"
        "    assert asyncio.run(find_address(other, 502, local=False)) == other\n"
    )
    steps = (
        "ip link set lo up && ip addr add 192.0.2.7/32 dev lo && "
        'ip addr add 2001:db8::7/128 dev lo nodad && exec "$0" -c "$1"'
    )
    words = ("unshare", "-n" if os.geteuid() == 0 else "-rn", "sh", "-c", steps, sys.executable, program)
    done = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
    _, said = await done.communicate()
    assert done.returncode == 0, said.decode()


async def test_names_that_nobody_answers_for_hold_up_no_other_work_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def wait(*given: object, **more: object) -> list[object]:
        answered.wait(60)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    asked = [asyncio.create_task(find_address(f"host-{at}.example", 502, local=False)) for at in range(100)]
    try:
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(lambda: "saved") == "saved"
    finally:
        answered.set()
        assert all(isinstance(one, Unavailable) for one in await asyncio.gather(*asked, return_exceptions=True))
