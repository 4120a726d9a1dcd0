"""The gateway's process loads little: it runs on small boards."""

from __future__ import annotations

import subprocess
import sys


def test_the_gateway_loads_nothing_heavy_and_few_modules() -> None:
    program = (
        "import sys, weft.launch.edge.main, weft.cli.manifest.yaml_text\n"
        "heavy = 'numpy cryptography onnxruntime pymodbus aiocoap asyncua starlette uvicorn rich'.split()\n"
        "heavy += 'weft.api weft.controllers weft.scheduler'.split()\n"
        "print([name for name in heavy if name in sys.modules], len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy, count = done.stdout.rsplit(maxsplit=1)
    assert heavy == "[]"
    assert int(count) <= 476  # 442 when this was written, the interpreter's own among them
