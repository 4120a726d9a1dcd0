"""The process that runs models with onnxruntime: one thread, one question after the other. It ends with its gateway.

``serve`` first loads the libraries, then gives up its rights, and then loads what it is told to. A model that can't be loaded is
reported and left out.
"""

from __future__ import annotations

import hashlib
import math
import os
import socket
from typing import Any

import numpy as np
import onnxruntime as ort

from weft.drivers.model.confinement import confine
from weft.drivers.model.messages import MOST_BYTES, Ask, Begin, Loading, ModelAnswer, Stage, frame, read_from_gateway
from weft.objects.code_limits import MIB
from weft.objects.code_limits import MOST_BYTES as MOST_FILE_BYTES
from weft.objects.errors import InvalidInput, WeftError
from weft.objects.model.onnx_file import check_onnx

MOST_FILES_BYTES = 256 * MIB  # of all models together
WARM_RUNS = 3  # before it counts as loaded: the first one takes milliseconds
MOST_OUTPUTS = 1024  # numbers that an output may have
_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}
_NO_MEMORY = ("bad_alloc", "allocate memory")  # in what onnxruntime says
_NUMBERS = {*_TYPES, "tensor(bool)", "tensor(int32)", "tensor(float16)"}


class _Crowded(InvalidInput):
    """The refusal of a model for which there is no memory beside the others."""


class _Loaded:
    """A model that answers. Raises InvalidInput for one that doesn't fit its description."""

    def __init__(self, data: bytes, wanted: Loading) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as problem:  # of the library, which has no base for its own
            if any(words in str(problem) for words in _NO_MEMORY):
                raise MemoryError from None
            raise InvalidInput(f"onnxruntime can't load it: {_first_line(problem)}") from None
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _TYPES:
            given = ", ".join(f"{one.name} {one.type}" for one in inputs[:5])
            raise InvalidInput(f"it must have one input of floats, doubles or int64, and has {given or 'none'}")
        self._name, self._type = inputs[0].name, _TYPES[inputs[0].type]
        self._shape = _find_shape(inputs[0].shape, wanted.inputs)
        outputs = {one.name: one for one in self._session.get_outputs()}
        self._output = wanted.output or next(iter(outputs), "")
        if self._output not in outputs:
            raise InvalidInput(f"it has no output {self._output[:60]!r}; it has {', '.join(list(outputs)[:5])[:200]}")
        if outputs[self._output].type not in _NUMBERS:
            raise InvalidInput(
                f"its output {self._output[:60]} must be a tensor of numbers, and is {outputs[self._output].type[:60]}"
            )
        self._inputs, self._index = wanted.inputs, wanted.index

    def run(self, inputs: list[float | None]) -> tuple[float | None, str]:
        """The number (None: there is none), and the problem."""
        if len(inputs) != self._inputs:
            return None, f"it takes {self._inputs} inputs"
        with np.errstate(all="ignore"):
            numbers = [math.nan if one is None else one for one in inputs]
            given = np.array(numbers, dtype=np.float64).astype(self._type).reshape(self._shape)
        try:
            found = self._session.run([self._output], {self._name: given})[0]
        except Exception as problem:  # as above; it also runs out of memory here
            return None, _first_line(problem)
        if found.size <= self._index or found.size > MOST_OUTPUTS:
            return None, f"its output has {found.size} numbers"
        value = float(found.reshape(-1)[self._index])
        return (value, "") if math.isfinite(value) else (None, f"it gave {value}")


def _find_shape(shape: list[Any], inputs: int) -> list[int]:
    """The shape of one row; sizes that aren't fixed are 1, but the last, which is the number of inputs."""
    found = [one if isinstance(one, int) and one > 0 else 0 for one in shape]
    filled = [one or 1 for one in found[:-1]] + [one or inputs for one in found[-1:]]
    if math.prod(filled) != inputs or not 1 <= len(filled) <= 8:
        raise InvalidInput(f"it takes an input of shape {str(shape)[:80]}, and {inputs} inputs are named")
    return filled


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0][:200]


def serve(parent: int, descriptor: int) -> None:
    """Serve questions until the gateway closes the socket."""
    connection = socket.socket(fileno=os.dup(descriptor))
    begin = _receive(connection)
    if not isinstance(begin, Begin):
        return
    files = confine(parent, connection.detach(), [one.file for one in begin.models])
    connection = socket.socket(fileno=0)
    loaded: list[_Loaded | None] = []
    total = 0
    for file, wanted in zip(files, begin.models, strict=True):
        connection.sendall(frame(Stage(wanted.uid)))
        is_crowded = False
        try:
            data = _read(file)
            if total + len(data) > MOST_FILES_BYTES:
                raise _Crowded(f"the models of this gateway are more than {MOST_FILES_BYTES // MIB} MiB together")
            if hashlib.sha256(data).hexdigest() != wanted.sha256:
                raise InvalidInput("its file isn't what its digest says")
            check_onnx(data)
            loaded.append(model := _Loaded(data, wanted))
            for _ in range(WARM_RUNS):
                model.run([0.0] * wanted.inputs)
            total += len(data)
            problem = ""
        except (WeftError, MemoryError, OSError) as failure:
            loaded.append(None)
            is_crowded = isinstance(failure, (_Crowded, MemoryError, OSError))
            problem = (
                failure.message if isinstance(failure, WeftError) else f"it can't be loaded: {type(failure).__name__}"
            )
        connection.sendall(frame(Stage(wanted.uid, done=True, problem=problem[:300], is_crowded=is_crowded)))
        data = b""  # the next one needs the memory
    connection.sendall(frame(Stage()))
    while (ask := _receive(connection)) is not None:
        if isinstance(ask, Ask):
            asked = loaded[ask.model]
            value, problem = asked.run(ask.x) if asked is not None else (None, "it isn't loaded")
            connection.sendall(frame(ModelAnswer(ask.n, value, problem)))


def _read(file: int) -> bytes:
    pieces, at = [], 0
    while at <= MOST_FILE_BYTES and (piece := os.pread(file, min(1 << 20, MOST_FILE_BYTES + 1 - at), at)):
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)


def _receive(connection: socket.socket) -> Begin | Ask | None:
    """The next message; None at the end."""
    size = int.from_bytes(_receive_exactly(connection, 4), "big")
    if not 0 < size <= MOST_BYTES:
        return None
    body = _receive_exactly(connection, size)
    message: Begin | Ask | None = read_from_gateway(body) if body else None
    return message


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    """b"" at the end."""
    received = b""
    while len(received) < size:
        try:
            piece = connection.recv(size - len(received))
        except OSError:
            return b""
        if not piece:
            return b""
        received += piece
    return received
