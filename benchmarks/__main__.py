"""``python -m benchmarks [NAME …]``: run the named benchmarks, or all, and write docs/measured.md."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.measurement import write_section

HERE = Path(__file__).parent


def main(names: list[str]) -> int:
    known = sorted(p.name for p in HERE.iterdir() if (p / "__init__.py").exists() and p.name != "soak")
    for name in names:
        if name not in known:
            print(f"no benchmark {name!r}; there are: {', '.join(known)}", file=sys.stderr)
            return 2
    for name in names or known:
        print(f"… {name}", file=sys.stderr, flush=True)
        print(write_section(importlib.import_module(f"benchmarks.{name}").measure()), flush=True)
    return 0


sys.exit(main(sys.argv[1:]))
