"""Switches a machine over IPMI 2.0, which BMCs of any age speak (IPMI v2.0 specification, 28.3: Chassis Control), with ipmitool."""

from __future__ import annotations

import os
import subprocess

from weft.contracts.machine.power import PowerState
from weft.objects.errors import DriverFailed, Unavailable

_SECONDS = 15.0
# Suites of keys and ciphers: SHA-256, and SHA-1 for older BMCs. Asking a BMC for those that it has takes some of them five seconds.
_SUITES = ("17", "3")
_ANSWERS: dict[str, PowerState] = {"Chassis Power is on": "on", "Chassis Power is off": "off"}


class Ipmi:
    """Implements PowerDriver. Its session is encrypted with keys made from the password."""

    def __init__(self, host: str, port: int, user: str, password: str) -> None:
        self._host, self._port, self._user, self._password = host, port, user, password

    def read(self) -> PowerState:
        answer = self._run("status")
        if answer not in _ANSWERS:
            raise DriverFailed(f"the BMC at {self._place} says neither on nor off")
        return _ANSWERS[answer]

    def switch(self, to: PowerState) -> None:
        self._run(to)

    @property
    def _place(self) -> str:
        return f"{self._host}:{self._port}"

    def _run(self, word: str) -> str:
        for suite in _SUITES:
            ended = self._try(word, suite)
            if ended.returncode == 0:
                return ended.stdout.decode(errors="replace").strip()
            if b"Unable to establish" not in ended.stderr:
                raise DriverFailed(
                    f"the BMC at {self._place} refuses to switch the machine, or to say whether it is on"
                )
        raise Unavailable(  # ipmitool says the same of all these
            f"no session with the BMC at {self._place}: it doesn't answer, or it refuses the user or the password",
            hint="IPMI over LAN must be on in the BMC, and the user needs the privilege administrator",
        )

    def _try(self, word: str, suite: str) -> subprocess.CompletedProcess[bytes]:
        command = ["ipmitool", "-I", "lanplus", "-C", suite, "-H", self._host, "-p", str(self._port), "-U", self._user]
        # The password goes by the environment: command lines are everybody's to read.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "IPMI_PASSWORD": self._password}
        try:
            return subprocess.run(
                [*command, "-E", "-N", "2", "-R", "2", "chassis", "power", word],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            raise DriverFailed(
                "ipmitool isn't installed on the server", hint="install Debian's package ipmitool"
            ) from None
        except subprocess.TimeoutExpired:
            raise Unavailable(f"no BMC answers at {self._place} within {_SECONDS:g} s") from None
