"""The network of one copied machine: a namespace of its own with a tap and three sockets, and no way out of it but the one to its
function's network, if that names one. All machines have the same address, so the namespace lends them its own there.

The namespace has no name: it lives as long as something in it is open, so of a killed agent nothing is left but what QEMU
holds. It is made in 1 ms and is never used twice, so that nothing of one instance is there for the next.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
import subprocess
from pathlib import Path

from weft.contracts.driver.function import RUNTIME_API_PORT, EgressEndpoint
from weft.drivers.function.egress import DEVICE, cut_off, enter_new_network
from weft.drivers.linux.namespace_thread import run_in_own_thread
from weft.drivers.runtime.qemu.function.messages import GUEST, GUEST_MAC, HOST, HOST_MAC, HOST_PORT, NETMASK
from weft.objects.errors import DriverFailed

_TUN, _TUNSETIFF = "/dev/net/tun", 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFHWADDR, _SIOCSARP = 0x8914, 0x8916, 0x891C, 0x8924, 0x8955
_IFF_UP, _ARPHRD_ETHER, _ATF_COM, _ATF_PERM = 1, 1, 2, 4
_BACKLOG = 16
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")  # of the namespace that the thread is in
_WAY_OUT = f"""\
table ip way_out {{
chain through {{
  type filter hook forward priority filter; policy drop
  ct state established,related accept
  iifname "tap0" oifname "{DEVICE}" accept
}}
chain to_itself {{
  type filter hook input priority filter
  iifname "{DEVICE}" drop
}}
chain out {{
  type nat hook postrouting priority srcnat
  oifname "{DEVICE}" masquerade
}}
}}
"""


class PrivateNet:
    """``tap`` for QEMU; ``wake`` the datagram socket to the guest; ``reports`` and ``runtime_api`` listen for what it says;
    ``way_out`` is there if it has one."""

    def __init__(
        self,
        tap: int,
        wake: socket.socket,
        reports: socket.socket,
        runtime_api: socket.socket,
        way_out: socket.socket | None,
    ) -> None:
        self.tap, self.wake, self.reports, self.runtime_api = tap, wake, reports, runtime_api
        self._way_out = way_out
        self._open = True

    async def close(self) -> None:
        """The kernel takes tens of milliseconds to take a namespace down: in a thread of its own."""
        if self._open:
            self._open = False
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self._way_out is not None:
            cut_off(self._way_out)
        for opened in (self.wake, self.reports, self.runtime_api):
            opened.close()
        os.close(self.tap)


async def make_net(egress_endpoint: EgressEndpoint | None = None) -> PrivateNet:
    """Raises DriverFailed."""
    try:
        return await run_in_own_thread(lambda: _make(egress_endpoint))
    except OSError as problem:
        raise DriverFailed(
            f"a function's private network can't be made: {problem.strerror or problem}", details={"step": "network"}
        ) from problem


def _make(egress_endpoint: EgressEndpoint | None) -> PrivateNet:
    way_out = enter_new_network(egress_endpoint)
    tap = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    opened: list[socket.socket] = []
    try:
        if way_out is not None:
            _lead_out()
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"tap0", _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        wake = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.append(wake)
        _set_up(wake)
        wake.setblocking(False)
        wake.bind((HOST, HOST_PORT))
        wake.connect((GUEST, HOST_PORT))
        for port in (HOST_PORT, RUNTIME_API_PORT):
            opened.append(socket.create_server((HOST, port), backlog=_BACKLOG))
            opened[-1].setblocking(False)
        wake, reports, runtime_api = opened
        return PrivateNet(tap, wake, reports, runtime_api, way_out)
    except BaseException:
        for made in [*opened, *([way_out] if way_out is not None else [])]:
            made.close()
        os.close(tap)
        raise


def _lead_out() -> None:
    """Connections that the machine opens leave as this namespace's; nothing comes in, not even to the sockets here."""
    _FORWARDING.write_text("1")
    done = subprocess.run(["nft", "-f", "-"], input=_WAY_OUT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(errno.EIO, f"nft: {done.stderr.strip()[-200:]}")


def _set_up(any_socket: socket.socket) -> None:
    def request(code: int, value: bytes) -> None:
        fcntl.ioctl(any_socket, code, struct.pack("16s24s", b"tap0", value))

    request(_SIOCSIFHWADDR, struct.pack("H6s", _ARPHRD_ETHER, _mac(HOST_MAC)))
    request(_SIOCSIFADDR, _address(HOST))
    request(_SIOCSIFNETMASK, _address(NETMASK))
    request(_SIOCSIFFLAGS, struct.pack("H", _IFF_UP))
    near = (
        _address(GUEST) + struct.pack("H14s", _ARPHRD_ETHER, _mac(GUEST_MAC)) + struct.pack("i", _ATF_COM | _ATF_PERM)
    )
    fcntl.ioctl(any_socket, _SIOCSARP, near + bytes(16) + b"tap0".ljust(16, b"\0"))


def _address(text: str) -> bytes:
    return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
