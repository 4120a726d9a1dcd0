"""``python -m benchmarks [NAME …]``: run the named benchmarks, or all, and write docs/measured.md."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measurement import ROOT, compile_tree, write_section

HERE = Path(__file__).parent
ON_LOCAL_CLUSTER = {
    "agent_memory",
    "boot",
    "cli_time",
    "drain",
    "function_invoke",
    "function_network",
    "lease_start",
    "node_loss",
    "preemption",
    "readopt",
    "sampling",
    "vm_create",
    "vm_many",
    "warm",
}


@contextmanager
def local_cluster(needed: bool) -> Iterator[None]:
    """The one that ``make up`` starts in this clone, if it is needed; one that wasn't here before is ended."""
    if not needed or (ROOT / ".weft" / "context.json").exists():
        yield
        return
    local = [sys.executable, "-m", "weft.launch.local"]
    subprocess.run([*local, "up"], cwd=ROOT, check=True, stdout=sys.stderr)
    try:
        yield
    finally:
        subprocess.run([*local, "down"], cwd=ROOT, check=True, stdout=sys.stderr)


def main(names: list[str]) -> int:
    known = sorted(p.name for p in HERE.iterdir() if (p / "__init__.py").exists() and p.name != "soak")
    for name in names:
        if name not in known:
            print(f"no benchmark {name!r}; there are: {', '.join(known)}", file=sys.stderr)
            return 2
    compile_tree()
    for on_cluster in (False, True):  # the others aren't to share the machine with it
        chosen = [name for name in names or known if (name in ON_LOCAL_CLUSTER) is on_cluster]
        with local_cluster(on_cluster and bool(chosen)):
            for name in chosen:
                print(f"… {name}", file=sys.stderr, flush=True)
                print(write_section(importlib.import_module(f"benchmarks.{name}").measure()), flush=True)
    return 0


sys.exit(main(sys.argv[1:]))
