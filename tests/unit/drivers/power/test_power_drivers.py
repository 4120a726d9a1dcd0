"""What the drivers for BMCs take of hostile or broken ones."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.scenario.bmc_lab import run_redfish, write_certificate

from weft.drivers.power.ipmi import Ipmi
from weft.drivers.power.redfish import SYSTEMS, Redfish, normalize_fingerprint
from weft.objects.errors import DriverFailed, NotFound, Unavailable

ONE = f"{SYSTEMS}/1"


@contextmanager
def serving(folder: Path, answers: dict[str, tuple[int, bytes]]) -> Iterator[Redfish]:
    """A BMC that answers GET by path, and any POST with 204."""
    fingerprint = write_certificate(folder)
    asked = list[str]()

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, b""))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", body.decode())
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:  # it doesn't read more
                self.close_connection = True

        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Redfish("127.0.0.1", server.server_port, ONE, "admin", "secret", fingerprint)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        (200, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"PowerState": "off"}'),
        (200, b'{"PowerState": null}'),
        (200, b'{"PowerState": {"a": 1}}'),
        (200, b'{"PowerState": "Off", "Actions": 7}'),
        (200, b"[" * 100_000),
        (302, b"https://127.0.0.1:1/elsewhere"),
        (500, b"Off"),
        (204, b""),
    ],
)
def test_an_answer_that_does_not_say_off_is_never_taken_for_it(tmp_path: Path, answer: tuple[int, bytes]) -> None:
    with serving(tmp_path, {ONE: answer}) as bmc, pytest.raises(DriverFailed):
        bmc.read()


def test_an_answer_without_end_is_cut(tmp_path: Path) -> None:
    endless = b'{"PowerState": "Off", "x": "' + b"y" * (3 << 20)
    with serving(tmp_path, {ONE: (200, endless)}) as bmc, pytest.raises(Unavailable, match="too long"):
        bmc.read()


@pytest.mark.parametrize("target", ["", "https://127.0.0.1:1/reset", "//127.0.0.1/reset"])
def test_the_password_goes_to_no_other_machine(tmp_path: Path, target: str) -> None:
    body = f'{{"PowerState": "On", "Actions": {{"#ComputerSystem.Reset": {{"target": "{target}"}}}}}}'.encode()
    with serving(tmp_path, {ONE: (200, body)}) as bmc, pytest.raises(DriverFailed, match="names no action Reset"):
        bmc.switch("off")


def test_a_bmc_of_several_machines_takes_the_name_of_one(tmp_path: Path) -> None:
    with run_redfish(tmp_path, machines=2) as bmc:
        redfish = Redfish(bmc.host, bmc.port, "", "admin", "bmc-password", bmc.fingerprint)
        with pytest.raises(NotFound, match="has 2 machines"):
            redfish.read()


def test_nobody_there_is_unavailable_and_not_off() -> None:
    with pytest.raises(Unavailable, match=r"no BMC answers at 127\.0\.0\.1:1"):
        Redfish("127.0.0.1", 1, ONE, "admin", "secret").read()


def test_without_ipmitool_people_read_which_package_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DriverFailed, match="ipmitool isn't installed") as caught:
        Ipmi("127.0.0.1", 1, "admin", "secret").read()
    assert caught.value.hint == "install Debian's package ipmitool"


def test_a_fingerprint_is_written_in_any_usual_way() -> None:
    assert normalize_fingerprint(" AB:CD:ef ") == "abcdef"
