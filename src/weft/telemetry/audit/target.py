"""Address of a syslog, as people write it. Apart from what sends there, which each agent would load."""

from __future__ import annotations

from weft.objects.errors import InvalidInput


def read_target(text: str) -> str | tuple[str, int]:
    """``/dev/log`` as it is, ``HOST:PORT`` as both. Raises InvalidInput."""
    if text.startswith("/"):
        return text
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidInput(
            f"{text!r} is not a valid syslog address",
            hint="write /dev/log, another socket's path, or HOST:PORT for UDP",
        )
    return host.strip("[]"), int(port)
