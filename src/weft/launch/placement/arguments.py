"""The command line of what works on files alone: trouble with it is told in the words that all of weft uses."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import NoReturn

from weft.objects.errors import InvalidInput, WeftError


class Parser(argparse.ArgumentParser):
    """Raises InvalidInput, with where to read on, for words that make no sense."""

    def error(self, message: str) -> NoReturn:
        raise InvalidInput(message, reason="usage", hint=f"{self.prog} --help")


def complain(problem: WeftError, output: str = "table") -> int:
    """Tell a person (or with ``output`` json a program) of ``problem``; the exit code."""
    complaints = importlib.import_module("weft.cli.command.errors")  # trouble only: it loads what success doesn't need
    code: int = complaints.complain(problem, output, sys.stderr.isatty() and not os.environ.get("NO_COLOR"))
    return code
