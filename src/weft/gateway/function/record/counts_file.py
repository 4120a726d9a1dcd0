"""The counts of functions in the server's state folder: a small file for each, written some seconds after a change. So they last
over restarts; a gateway that is killed loses its last seconds. They are deleted with their function."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from weft.gateway.function.record.metrics import Counts

log = logging.getLogger("weft.gateway.functions")
AT_ONCE = 1000  # files


class CountsFile:
    """A file of counts in ``folder``, by the functions' uids. An unreadable file starts from zero; a failure to write is logged
    once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed: dict[str, Counts] = {}
        self._troubled = ""

    def read(self, function: str) -> Counts | None:
        try:
            return msgspec.msgpack.decode((self._folder / function).read_bytes(), type=Counts)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as problem:
            log.warning("the counts of function %s are lost: %s", function, problem)
            return None

    def change(self, function: str, counts: Counts) -> None:
        """Keep them to be written."""
        self._changed[function] = counts

    def take(self) -> dict[str, bytes]:
        """The files to write now."""
        taken = {function: self._changed.pop(function) for function in list(self._changed)[:AT_ONCE]}
        return {function: msgspec.msgpack.encode(counts) for function, counts in taken.items()}

    def write(self, taken: dict[str, bytes]) -> None:
        """Blocking."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for function, data in taken.items():
                partial = self._folder / f".{function}"
                partial.write_bytes(data)
                partial.rename(self._folder / function)
            self._troubled = ""
        except OSError as problem:  # a full disk costs counts, not invocations
            if str(problem) != self._troubled:
                self._troubled = str(problem)
                log.error("the counts of functions can't be stored: %s", problem)

    def keep_only(self, functions: set[str]) -> None:
        """Delete the files of functions that are gone. Blocking."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name.lstrip(".") not in functions:
                    path.unlink(missing_ok=True)
