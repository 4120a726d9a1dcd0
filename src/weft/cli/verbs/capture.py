"""The packets of a workload, as a file or as lines."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import INTERRUPTED
from weft.cli.command.grammar import PLACED, Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import usage
from weft.cli.network.packets import Splitter, describe
from weft.cli.output.terminal import is_terminal
from weft.cli.session import Session
from weft.cli.stream.client import Stream, open_stream, write_bytes
from weft.kinds.parts.stream_verbs import LEAST_CAPTURE_BYTES, MOST_CAPTURE_BYTES, MOST_CAPTURE_SECONDS
from weft.kinds.record import Kind
from weft.objects.errors import WeftError
from weft.objects.quantity import format_bytes, parse_bytes
from weft.protocol.frames import FrameType, encode_frame

_ENDS = {
    "asked": "ended by you",
    "seconds": "ended after the time that --seconds gives",
    "size": "ended at the size that --size gives",
    "migrated": "ended because the guest has migrated",
    "gone": "ended because the NIC has gone",
}


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            size = parse_bytes(value, "size")
        except WeftError as problem:
            self.fail(f"{problem.message.removeprefix('size: ')}; {problem.hint}", param, ctx)
        if not LEAST_CAPTURE_BYTES <= size <= MOST_CAPTURE_BYTES:
            most = format_bytes(MOST_CAPTURE_BYTES, 0)
            self.fail(f"{value} is out of range; give {format_bytes(LEAST_CAPTURE_BYTES)} to {most}", param, ctx)
        return size


class _Seconds(click.ParamType[float]):
    """30, or 30s, 5m."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, str) and value.isdecimal() and len(value) < 9:
            value = float(value)
        return options.Duration(least=0.001, most=MOST_CAPTURE_SECONDS).convert(value, param, ctx)


def capture_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft network capture vm/web --filter 'tcp port 80' --seconds 30 > web.pcap`."""
    params = [
        options.targets(None, many=False, able=PLACED),
        click.Option(["--nic"], type=click.IntRange(0, 31), default=0, metavar="N", help="Its NIC, by number. [0]"),
        click.Option(["--filter"], metavar="TEXT", default="", help="Only these packets, in tcpdump's language."),
        click.Option(
            ["--seconds"], type=_Seconds(), default=60.0, metavar="N", help="End after this long. [60, max 600]"
        ),
        click.Option(
            ["--size"], type=_Size(), default=10 << 20, metavar="SIZE", help="End at this size. [10MiB, max 1GiB]"
        ),
        click.Option(
            ["--snaplen"],
            type=click.IntRange(64, 262_144),
            default=262_144,
            metavar="BYTES",
            help="Take only the first bytes of each packet.",
        ),
        click.Option(["--print", "shown"], is_flag=True, help="Print a line for each packet instead of a file."),
    ]
    return options.build(
        verb, "Capture packets of a workload, as a file for tcpdump and Wireshark.", _capture, kind, params
    )


def _capture(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    nic: int,
    filter: str,
    seconds: float,
    size: int,
    snaplen: int,
    shown: bool,
) -> int:
    target = find_one(session, None, words, PLACED, "give one workload, like vm/web")
    if not shown and is_terminal(sys.stdout):
        raise usage("a terminal can't show a file of packets", f"append > {target.name}.pcap, or give --print")
    asked = {"nic": nic, "filter": filter, "seconds": seconds, "size": size, "snaplen": snaplen}
    splitter, report = Splitter(), bytearray()

    def take(descriptor: int, data: bytes) -> None:
        if descriptor != 1:
            report.extend(data)
            return
        whole, packets = splitter.feed(data)
        if not shown:
            write_bytes(1, whole)
            return
        for packet in packets:
            print(describe(packet))
        sys.stdout.flush()

    with open_stream(session.client, target.kind.name, target.name, "capture", asked) as sock:
        stream = Stream(sock, forward_end=False, write=take, cut_hint="what came until then is whole")
        try:
            with _ending_on_interrupt(stream):
                return stream.run(None) or 0
        except KeyboardInterrupt:
            return INTERRUPTED
        finally:
            if splitter.began:
                _report_end(session, splitter, bytes(report))


@contextmanager
def _ending_on_interrupt(stream: Stream) -> Iterator[None]:
    """The first Ctrl-C asks for the end, so that what was captured comes whole; the second one ends at once."""

    def ask(*_: object) -> None:
        stream.send(encode_frame(FrameType.END_IN))
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _report_end(session: Session, splitter: Splitter, report: bytes) -> None:
    try:
        end = json.loads(report) if report else {}
    except ValueError:
        end = {}
    dropped = int(end.get("dropped", 0))
    lost = f", and {dropped} more were dropped: they came faster than the node could take them" if dropped else ""
    why = _ENDS.get(end.get("ended", ""), "cut off: its node or the gateway is away")
    session.notify(f"{splitter.packets} packets{lost}; {why}")
    if dropped:
        session.notify("  a narrower --filter or a smaller --snaplen drops fewer")
