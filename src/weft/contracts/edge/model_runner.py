"""The contract of what runs models for a gateway: it answers numbered questions, and never makes the gateway wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec


class ModelFile(msgspec.Struct, frozen=True):
    """A model as it is loaded. Two that are equal but for ``path`` answer the same. ``inputs``: how many numbers it reads;
    ``output`` ("": its first one) and ``index`` say which number it gives. ``path`` "": it isn't there yet."""

    sha256: str
    inputs: int
    output: str = ""
    index: int = 0
    path: str = ""

    @property
    def version(self) -> str:
        return f"{self.sha256}:{self.inputs}:{self.index}:{self.output}"


class AnswerListener(Protocol):
    """Gets what the runner has to say, in the gateway's event loop."""

    def note_answer(self, number: int, value: float | None, problem: str) -> None:
        """Take the answer to question ``number``. None: no number, for ``problem`` ("": it isn't finite)."""

    def note_lost(self, numbers: Sequence[int]) -> None:
        """Their process ended before it answered these questions."""

    def note_running(self, versions: Mapping[str, str]) -> None:
        """Send questions, from now on, to these versions, by model; {}: to none, and what was asked is not answered any more."""

    def note_problems(self, problems: Mapping[str, str]) -> None:
        """Why models aren't running, by model: all of them now."""


class ModelRunner(Protocol):
    def put(self, files: Mapping[str, ModelFile]) -> None:
        """These are to run, by the uid of their model. What runs goes on until the new ones are ready."""

    def ask(self, number: int, uid: str, inputs: Sequence[float]) -> bool:
        """Begin to answer; False: the model isn't running, or too much waits."""

    def list_used(self) -> set[str]:
        """The paths of files that it reads, or may read again."""

    async def keep(self, listener: AnswerListener) -> None:
        """Run until this is cancelled."""
