"""The command line of tools that work on files alone, with errors in the form that all of weft uses."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

from weft.launch.process import amounts
from weft.objects.errors import InvalidInput, WeftError


class Parser(amounts.Parser):
    """Raises InvalidInput with the help to read, for arguments that can't be parsed."""

    def error(self, message: str) -> NoReturn:
        raise InvalidInput(message, reason="usage", hint=f"{self.prog} --help")


def complain(problem: WeftError, output: str = "table") -> int:
    """Print ``problem`` for a person (or with ``output`` json for a program); the exit code."""
    complaints = importlib.import_module("weft.cli.command.errors")  # trouble only: it loads what success doesn't need
    code: int = complaints.complain(problem, output, sys.stderr.isatty() and not os.environ.get("NO_COLOR"))
    return code
