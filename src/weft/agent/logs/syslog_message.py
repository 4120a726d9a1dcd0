"""Messages that guests send as syslog, split out of a TCP stream (RFC 6587), and parsed (RFC 5424, RFC 3164). Pure.

Nothing that a message claims about who or where it is, or when it was, is believed."""

from __future__ import annotations

import re

MOST_BYTES = 16 << 10  # of a message; the rest of a longer one is left out
_EMPTY = b" \t\r\n\0"
_SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_BLANK = re.compile(rb"[ \t\r\n\0]+")
_COUNT = re.compile(rb"[1-9]\d{0,8} ")
_PRIORITY = re.compile(rb"<(\d{1,3})>")
_RFC5424 = re.compile(rb"1 \S{1,64} \S{1,255} (\S{1,48}) (\S{1,128}) \S{1,32} ")
_ELEMENT = re.compile(rb'\[[^ =\]"]{1,32}(?: [^ =\]"]{1,32}="(?:[^"\\\]]|\\.)*")*\]')
_RFC3164 = re.compile(rb"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d (?:\S{1,255} )?(?=\S{1,48}:)")
_TAG = re.compile(rb"([\w./-]{1,48})(?:\[(\d{1,10})\])?: ?")


class Unframed(Exception):
    """A stream that can't be divided into messages any more."""


class Framer:
    """Framer of one connection."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._skip = 0  # bytes of a counted message that are left out
        self._to_newline = False  # the rest of the line is left out
        self.cut = 0  # messages that were too long

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that end with ``data``. Keeps MOST_BYTES and a little at most. Raises Unframed."""
        rest, found = self._rest, []
        rest += data
        while rest:
            if self._skip:
                gone = min(self._skip, len(rest))
                del rest[:gone]
                self._skip -= gone
            elif self._to_newline:
                end = rest.find(b"\n")
                del rest[: end + 1 if end >= 0 else len(rest)]
                self._to_newline = end < 0
            elif rest[0] in b"123456789":
                if (count := _COUNT.match(rest)) is None:
                    if len(rest) > 9 or not rest.isdigit():
                        raise Unframed
                    break
                length = int(count[0])
                taken = min(length, MOST_BYTES)
                if len(rest) < count.end() + taken:
                    break
                message = bytes(rest[count.end() : count.end() + taken])
                if not message.strip(_EMPTY):  # nobody counts nothing, and no rate would
                    raise Unframed
                found.append(message)
                del rest[: count.end() + taken]
                self._skip = length - taken
                self.cut += self._skip > 0
            else:
                if (blank := _BLANK.match(rest)) is not None:
                    del rest[: blank.end()]
                    continue
                end = rest.find(b"\n", 0, MOST_BYTES + 1)
                if end < 0 and len(rest) <= MOST_BYTES:
                    break
                found.append(bytes(rest[: end if end >= 0 else MOST_BYTES]))
                del rest[: end + 1 if end >= 0 else MOST_BYTES]
                self._to_newline = end < 0
                self.cut += self._to_newline
        return found

    def end(self) -> list[bytes]:
        """Return what was begun when the connection ended."""
        rest = bytes(self._rest) if not self._skip and not self._to_newline and self._rest[:1] == b"<" else b""
        self._rest.clear()
        return [rest] if rest.strip(_EMPTY) else []


def read_message(message: bytes) -> bytes:
    """Read a message as a line of the log, with its newline: ``syslog err nginx[12]: text``."""
    message = message[:MOST_BYTES]
    severity, app, process, text = "-", b"", b"", message
    if (priority := _PRIORITY.match(message)) is not None and int(priority[1]) <= 191:
        severity = _SEVERITIES[int(priority[1]) & 7]
        text = message[priority.end() :]
        if (head := _RFC5424.match(text)) is not None:
            app, process = (b"" if part == b"-" else part for part in head.groups())
            text = _skip_data(text[head.end() :]).removeprefix(b"\xef\xbb\xbf")
        else:
            if (head := _RFC3164.match(text)) is not None:
                text = text[head.end() :]
            if (tag := _TAG.match(text)) is not None:
                app, process, text = tag[1], tag[2] or b"", text[tag.end() :]
    source = app + (b"[" + process + b"]" if process else b"")
    line = b" ".join(filter(None, (b"syslog", severity.encode(), source))) + b": " + text
    return line.rstrip(b"\r\n\0").replace(b"\n", b"\\n") + b"\n"


def _skip_data(text: bytes) -> bytes:
    """Skip the structured data with which the text begins."""
    if text.startswith(b"-"):
        return text[1:].removeprefix(b" ")
    at = 0
    while (element := _ELEMENT.match(text, at)) is not None:
        at = element.end()
    return text[at:].removeprefix(b" ")
