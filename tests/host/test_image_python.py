"""The image that functions in Python run in: all that they import was compiled when it was built, whoever built it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from weft.images.python.build import CLIENT, compile_modules

PYTHON = "/usr/bin/python3.11"
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"needs {PYTHON}"),
]
BY_HASH = 1  # PEP 552: valid whatever its source's time is, which isn't looked at
LIST = "import sys, argparse, compileall, locale\nfor one in sys.modules.values(): print(getattr(one, '__file__', None) or '')"


def lay_out_python(root: Path) -> None:
    """This machine's own, with no more than compiling takes, and one module of the client."""
    modules = subprocess.run([PYTHON, "-I", "-c", LIST], check=True, capture_output=True, text=True).stdout.split()
    libraries = subprocess.run(["ldd", PYTHON], check=True, capture_output=True, text=True).stdout
    for path in (PYTHON, *modules, *re.findall(r"/\S+", libraries)):
        target = root / path.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    (root / CLIENT).mkdir(parents=True)
    (root / CLIENT / "client.py").write_text("")


def test_no_module_is_compiled_again_at_a_start_because_its_time_is_not_that_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    lay_out_python(tmp_path)
    compile_modules(tmp_path)
    compiled = {path.name.partition(".")[0]: path.read_bytes()[4:8] for path in tmp_path.rglob("*.pyc")}
    assert {"client", "contextlib", "enum"} <= compiled.keys()
    assert [name for name, flags in compiled.items() if int.from_bytes(flags, "little") != BY_HASH] == []
