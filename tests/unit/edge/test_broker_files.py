"""The broker's files: nobody gains by links among them, and a full disk or a bad certificate doesn't take a running broker down.

Its program is a script that counts the signals to read its files again."""

from __future__ import annotations

import asyncio
import datetime
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from weft.contracts.clock import SystemClock
from weft.edge.broker import broker as under_test
from weft.edge.broker.broker import Broker
from weft.edge.broker.config import Bounds, Listening

PROGRAM = """#!/bin/sh
trap 'echo >> {folder}/read-again' HUP
while :; do sleep 0.05; done
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="weft-broker-", dir="/tmp"))  # that another user may pass through
    folder.chmod(0o711)
    (folder / "programs").mkdir()
    program = folder / "programs" / "mosquitto"
    program.write_text(PROGRAM.format(folder=folder))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'programs'}:{os.environ['PATH']}")
    monkeypatch.setattr(under_test, "LOOK_SECONDS", 0.05)
    yield folder
    shutil.rmtree(folder)


def make(folder: Path, *, tls: bool = False) -> Broker:
    pair = (str(folder / "its.crt"), str(folder / "its.key")) if tls else ("", "")
    return Broker(folder / "broker", Listening("127.0.0.1", 18830, *pair), Bounds(), SystemClock())


def renew(folder: Path, comment: bytes = b"") -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    begins = datetime.datetime(2020, 1, 1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(begins).not_valid_after(begins + datetime.timedelta(days=36500))
    text = comment + made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (folder / "its.crt").write_bytes(text)
    (folder / "its.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return text


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.02)


class Kept:
    """A broker that is kept meanwhile."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    async def __aenter__(self) -> Broker:
        self._keeping = asyncio.create_task(self.broker.keep())
        await until(lambda: self.broker.pid != 0 or bool(self.broker.problem))
        return self.broker

    async def __aexit__(self, *_: object) -> None:
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)


async def test_what_links_in_the_broker_s_folder_lead_to_stays_whose_it_is(folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text("of another")
    data = folder / "broker" / "data"
    data.mkdir(parents=True)
    (data / "kept.db").write_text("its own")
    (data / "link").symlink_to(secret)
    (data / "nowhere").symlink_to(folder / "gone")
    os.link(secret, data / "other-name")
    os.mkfifo(data / "pipe")
    async with Kept(make(folder)) as broker:
        assert broker.pid and broker.starts == 1 and not broker.problem
    assert secret.stat().st_uid == os.geteuid() and data.stat().st_uid == (data / "kept.db").stat().st_uid
    assert data.stat().st_mode & 0o777 == 0o700


async def test_files_that_can_t_be_written_leave_the_broker_running_and_are_written_later(folder: Path) -> None:
    async with Kept(make(folder)) as broker:
        obstacle = folder / "broker" / ".rights.new"  # stands for a disk that is full
        obstacle.mkdir()
        before, pid = (folder / "broker" / "passwords").read_bytes(), broker.pid
        broker.put_devices([("shop", "lamp")], {"shop.lamp": "$7$1$AA==$AA=="})
        await until(lambda: "can't be written" in broker.problem)
        assert broker.pid == pid and (folder / "broker" / "passwords").read_bytes() == before
        assert not (folder / "read-again").exists()
        obstacle.rmdir()
        await until(lambda: not broker.problem)
        await until((folder / "read-again").exists)
        assert broker.pid == pid and broker.starts == 1
        assert b"shop.lamp:" in (folder / "broker" / "passwords").read_bytes()
        assert b"user shop.lamp" in (folder / "broker" / "rights").read_bytes()


async def test_a_broker_whose_process_can_t_be_written_down_runs_and_says_so(folder: Path) -> None:
    (folder / "broker" / "broker.pid").mkdir(parents=True)
    async with Kept(make(folder)) as broker:
        await until(lambda: "broker.pid can't be written" in broker.problem)
        pid = broker.pid
        (folder / "broker" / "broker.pid").rmdir()
        await until(lambda: not broker.problem)
        assert broker.pid == pid and (folder / "broker" / "broker.pid").read_text() == str(pid)


async def test_a_certificate_that_can_t_be_used_is_said_and_the_former_serves_until_there_is_a_good_one(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy, first = folder / "broker" / "certificate.pem", renew(folder)
    async with Kept(make(folder, tls=True)) as broker:
        (folder / "its.crt").write_text("no certificate")
        await until(lambda: "keeps the former certificate" in broker.problem)
        os.kill(broker.pid, 9)
        await until(lambda: broker.starts == 2 and broker.pid != 0)
        await until(lambda: "keeps the former certificate" in broker.problem)
        assert copy.read_bytes() == first
    assert len([one for one in caplog.messages if "keeps the former certificate" in one]) == 1
    async with Kept(make(folder, tls=True)) as broker:  # another process, with the copies of the first
        assert broker.pid and "keeps the former certificate" in broker.problem and copy.read_bytes() == first
        second = renew(folder)
        await until(lambda: not broker.problem)
        assert copy.read_bytes() == second and broker.starts == 1


async def test_without_any_usable_certificate_it_does_not_start(folder: Path) -> None:
    (folder / "its.crt").write_text("no certificate")
    (folder / "its.key").write_text("no key")
    async with Kept(make(folder, tls=True)) as broker:
        assert broker.problem.startswith("can't be started: ") and not broker.pid


async def test_a_comment_in_another_encoding_is_copied_and_copies_go_when_tls_is_taken_out(folder: Path) -> None:
    text = renew(folder, comment="Größe\n".encode("latin-1"))
    copies = [folder / "broker" / name for name in ("certificate.pem", "key.pem")]
    async with Kept(make(folder, tls=True)) as broker:
        assert broker.pid and copies[0].read_bytes() == text and copies[1].exists()
    async with Kept(make(folder)) as broker:
        assert broker.pid and not any(copy.exists() for copy in copies)
