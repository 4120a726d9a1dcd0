"""Writes the packets of a socket as a file for tcpdump and Wireshark, in a process without rights: what a guest sends only keeps
this one busy.

Standard input is the packet socket, the first argument the pid of the agent, the second a JSON object with seconds, size (bytes)
and snaplen. Standard output gets pieces, each a kind and a length before it: DATA, and END with a JSON document last. It imports
almost nothing of weft, to start at once.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import struct
import sys

from weft.contracts.confinement.system_calls import FILES, NETWORK, OTHERS, refuse_calls
from weft.contracts.confinement.unprivileged import drop_privileges

HEAD = struct.Struct("<BI")
DATA, END = 1, 2
PIECE_BYTES = 128 << 10
MOST_MEMORY = 256 << 20
_NICE = 5
_LOOK_MS = 100
_FILE_HEAD = struct.Struct("<IHHiIII")
_NANOSECONDS, _ETHERNET = 0xA1B23C4D, 1
_PACKET_HEAD = struct.Struct("<IIII")
_SOL_PACKET, _STATISTICS, _AUXDATA, _TIMES_NS = 263, 6, 8, 35
_AUX = struct.Struct("=IIIHHHH")  # status, length, captured, two offsets, VLAN, its protocol
_STAMP = struct.Struct("=qq")
_HAS_VLAN, _HAS_VLAN_PROTOCOL, _VLAN = 0x10, 0x40, 0x8100
_ABOUT_BYTES = socket.CMSG_SPACE(_AUX.size) + socket.CMSG_SPACE(_STAMP.size)


class Recorder:
    """``order``: size in bytes and snaplen. Set ``ended`` to a reason to end it."""

    def __init__(self, source: socket.socket, order: dict[str, float]) -> None:
        self._source = source
        self._size, self._snaplen = int(order["size"]), int(order["snaplen"])
        self.ended = ""
        self.packets = 0
        self.bytes = 0

    def run(self) -> None:
        head = _FILE_HEAD.pack(_NANOSECONDS, 2, 4, 0, 0, self._snaplen, _ETHERNET)
        self.bytes = len(head)
        self._write(DATA, head)
        waits = select.poll()
        waits.register(self._source, select.POLLIN)
        waits.register(1, 0)  # the other end of the pipe is closed: the agent has gone
        while not self.ended:
            ready = dict(waits.poll(_LOOK_MS))  # a signal doesn't end the wait
            if 1 in ready:
                return
            piece = self._read_some()
            if piece:
                self._write(DATA, piece)
        self._write(END, json.dumps(self._describe()).encode())

    def _read_some(self) -> bytes:
        """Records of packets that wait, as many as fit into a piece."""
        found: list[bytes] = []
        size = 0
        while size < PIECE_BYTES and not self.ended:
            try:
                data, about, _, _ = self._source.recvmsg(self._snaplen, _ABOUT_BYTES)
            except BlockingIOError:
                break
            except InterruptedError:
                continue
            except OSError:  # the link is down, or was taken away
                self.ended = "gone"
                break
            record = _encode(data, about, self._snaplen)
            if self.bytes + len(record) > self._size:
                self.ended = "size"
                break
            found.append(record)
            size += len(record)
            self.packets += 1
            self.bytes += len(record)
        return b"".join(found)

    def _describe(self) -> dict[str, object]:
        counts = self._source.getsockopt(_SOL_PACKET, _STATISTICS, 8)
        _, dropped = struct.unpack("=II", counts)
        return {"packets": self.packets, "bytes": self.bytes, "dropped": dropped, "ended": self.ended}

    def _write(self, kind: int, data: bytes) -> None:
        view = memoryview(HEAD.pack(kind, len(data)) + data)
        while view:
            view = view[os.write(1, view) :]


def _encode(data: bytes, about: list[tuple[int, int, bytes]], snaplen: int) -> bytes:
    """One packet as the file has it; ``about`` is what the kernel says of it."""
    length, seconds, nanoseconds = len(data), 0, 0
    for level, kind, value in about:
        if level == socket.SOL_SOCKET and kind == _TIMES_NS:
            seconds, nanoseconds = _STAMP.unpack_from(value)
        elif level == _SOL_PACKET and kind == _AUXDATA:
            status, length, _, _, _, vlan, protocol = _AUX.unpack_from(value)
            if status & _HAS_VLAN:  # the kernel took it out of the frame
                tag = struct.pack("!HH", protocol if status & _HAS_VLAN_PROTOCOL else _VLAN, vlan)
                data = (data[:12] + tag + data[12:])[:snaplen]
                length += len(tag)
    return _PACKET_HEAD.pack(seconds & 0xFFFFFFFF, nanoseconds, len(data), max(length, len(data))) + data


def main() -> None:
    agent, order = int(sys.argv[1]), json.loads(sys.argv[2])
    source = socket.socket(fileno=0)
    os.nice(_NICE)
    drop_privileges(agent, {resource.RLIMIT_AS: MOST_MEMORY, resource.RLIMIT_NOFILE: 16, resource.RLIMIT_CORE: 0})
    refuse_calls(FILES, NETWORK, OTHERS)
    recorder = Recorder(source, order)

    def stop(number: int, _: object) -> None:
        recorder.ended = "asked" if number == signal.SIGTERM else "seconds"

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, order["seconds"])
    try:
        recorder.run()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
