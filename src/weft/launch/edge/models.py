"""The process that runs a gateway's models: how it is started, and why it can't be."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys


def make_model_command(descriptor: int) -> list[str]:
    """The process, with the socket of that descriptor."""
    return [sys.executable, "-m", "weft.launch.edge.model_process", str(descriptor), str(os.getpid())]


@functools.cache
def find_missing_runtime() -> str:
    """Why this gateway can run no model; "" if it can."""
    if importlib.util.find_spec("onnxruntime") is None:
        return (
            "no onnxruntime on this node, so its fallback decides: pip install '.[edge]' in weft's clone there, and "
            "restart the gateway"
        )
    return ""
