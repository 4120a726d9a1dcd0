"""BMCs as processes: Redfish by sushy's emulator, over TLS with a password; IPMI by OpenIPMI's simulator."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import bcrypt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

USER, PASSWORD = "admin", "bmc-password"
MACHINE = "da69abcc-dae0-4913-9a7b-d344043097c0"
# It switches a machine after 1 to 11 s; here it takes the least.
_EMULATOR = "import random; random.randint = lambda least, _: least; from sushy_tools.emulator.main import main; main()"
_SWITCH = """#!/bin/sh
case "$1" in
get) echo "power:$(cat {state})" ;;
set) [ "$2" != power ] || echo "$3" >{state} ;;
esac
"""
_LAN = """name "bmc"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{switch}"
  user 1 true "" "" user 10 none md2 md5 straight
  user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
"""
_EMULATED = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n"


class Bmc(NamedTuple):
    host: str
    port: int
    fingerprint: str = ""


@contextlib.contextmanager
def run_redfish(folder: Path, machines: int = 1) -> Iterator[Bmc]:
    """One whose certificate is its own, as they come."""
    folder.mkdir(exist_ok=True)
    port = _find_free_port(socket.SOCK_STREAM)
    fingerprint = write_certificate(folder)
    (folder / "htpasswd").write_text(f"{USER}:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
    systems = [
        {"uuid": f"{MACHINE[:-1]}{number}", "name": f"m{number}", "power_state": "On", "nics": []}
        for number in range(machines)
    ]
    config = folder / "emulator.conf"
    config.write_text(
        f"SUSHY_EMULATOR_AUTH_FILE = {str(folder / 'htpasswd')!r}\n"
        f"SUSHY_EMULATOR_STATE_DIR = {str(folder)!r}\n"
        f"SUSHY_EMULATOR_FAKE_SYSTEMS = {systems!r}\n"
    )
    argv = [sys.executable, "-c", _EMULATOR, "--fake", "-i", "127.0.0.1", "-p", str(port)]
    argv += [
        "--ssl-certificate",
        str(folder / "cert.pem"),
        "--ssl-key",
        str(folder / "key.pem"),
        "--config",
        str(config),
    ]
    with _run(argv, folder):
        _wait_for(folder, lambda: ssl.get_server_certificate(("127.0.0.1", port), timeout=1))
        yield Bmc("127.0.0.1", port, fingerprint)


@contextlib.contextmanager
def run_ipmi(folder: Path) -> Iterator[Bmc]:
    folder.mkdir(exist_ok=True)
    port, switch, state = _find_free_port(socket.SOCK_DGRAM), folder / "switch", folder / "power"
    state.write_text("1\n")
    switch.write_text(_SWITCH.format(state=state))
    switch.chmod(0o700)
    (folder / "lan.conf").write_text(_LAN.format(port=port, switch=switch, user=USER, password=PASSWORD))
    (folder / "emulated").write_text(_EMULATED)
    argv = ["ipmi_sim", "-n", "-c", str(folder / "lan.conf"), "-f", str(folder / "emulated"), "-s", str(folder)]
    with _run(argv, folder):
        _wait_for(folder, lambda: _is_bound(port))
        yield Bmc("127.0.0.1", port)


@contextlib.contextmanager
def _run(argv: list[str], folder: Path) -> Iterator[None]:
    with open(folder / "bmc.log", "ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _wait_for(folder: Path, look: object) -> None:
    assert callable(look)
    ends = time.monotonic() + 30
    while True:
        try:
            look()
            return
        except OSError:
            assert time.monotonic() < ends, (folder / "bmc.log").read_text()
            time.sleep(0.05)


def _is_bound(port: int) -> None:
    lines = Path("/proc/net/udp").read_text().splitlines()
    if not any(f"0100007F:{port:04X}" in line for line in lines):
        raise OSError("not yet")


def write_certificate(folder: Path) -> str:
    """Write a certificate that names no host; its fingerprint."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bmc-of-a-machine")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return hashlib.sha256(made.public_bytes(serialization.Encoding.DER)).hexdigest()


def _find_free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
