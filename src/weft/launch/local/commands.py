"""Runs one of the machine's own tools (ip, nft, nsenter) and turns its failure into an error with its output."""

from __future__ import annotations

import shlex
import subprocess

from weft.objects.errors import DriverFailed


def run(argv: list[str], stdin: str = "", env: dict[str, str] | None = None, timeout_seconds: float = 30) -> str:
    """The command's standard output; raises DriverFailed with its output when it is missing, fails or hangs."""
    words = shlex.join(argv)
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, env=env, timeout=timeout_seconds, check=False
        )
    except FileNotFoundError as error:
        raise DriverFailed(f"{argv[0]} is not installed", hint="make install") from error
    except subprocess.TimeoutExpired as error:
        raise DriverFailed(f"{words} did not end within {timeout_seconds:g} s") from error
    if done.returncode != 0:
        output = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        fed = f"; its input: {stdin.strip()}" if stdin else ""
        raise DriverFailed(f"{words} failed: {output}{fed}")
    return done.stdout
