"""Runs in a function's Python, in every clone of the machine in which that Python was loaded.

- After a restore it seeds random numbers anew and runs the hooks registered with ``snapshot_restore_py``.
- Before the snapshot it runs a few practice calls through the runtime, with a handler of its own: then the code of a call is warm.

Python imports a module of this name by itself, and this one is first on PYTHONPATH. It wraps two functions of ``awslambdaric`` when
the function imports that, and does nothing for a function that doesn't.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import os
import sys
from typing import Any  # the runtime's client imports it as well

# The machine's init writes the note RESUMED at each restore and resume, and reads PRACTISES before it sends a practice call.
NOTES = os.path.dirname(os.path.abspath(__file__))
RESUMED, PRACTISES = os.path.join(NOTES, "resumed"), os.path.join(NOTES, "practises")
PRACTICE, LAST_PRACTICE = "weft-practice", "weft-practice-last"


class RestoreWatch:
    """Whether the machine was restored or resumed since the call before, by the time of the note RESUMED."""

    def __init__(self) -> None:
        self.changed_at = self.read()
        self.hooks_due = False

    @staticmethod
    def read() -> int:
        try:
            return os.stat(RESUMED).st_mtime_ns
        except OSError:
            return 0

    def refresh(self) -> None:
        changed_at = self.read()
        if changed_at != self.changed_at:
            self.hooks_due = self.hooks_due or self.changed_at == 0  # once for each clone, not at each resume
            self.changed_at = changed_at
            reseed()


def reseed() -> None:
    modules: dict[str, Any] = dict(sys.modules)
    if "random" in modules:
        modules["random"].seed()
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None
    if "_ssl" in modules:
        modules["_ssl"].RAND_add(os.urandom(32), 32.0)
    numpy = modules.get("numpy.random")
    if numpy is not None:
        numpy.seed(int.from_bytes(os.urandom(4), "little"))


def practice_handler(event: Any, context: Any) -> Any:
    """Does what nearly every handler does, with the modules that the function has imported."""
    modules: dict[str, Any] = dict(sys.modules)
    for name, attribute in (("random", "random"), ("uuid", "uuid4"), ("time", "time"), ("socket", "gethostname")):
        if name in modules:
            getattr(modules[name], attribute)()
    if "_ssl" in modules:
        modules["_ssl"].RAND_bytes(1)
    os.urandom(8).hex()
    print("practice", {"id": context.aws_request_id, "left": context.get_remaining_time_in_millis()})
    try:
        raise KeyError("practice")
    except KeyError as problem:
        found = [str(problem), f"{len(NOTES) / 3:.3f}", f"{len(event):>8}", *sorted({"b": 1, "a": 2}.items())]
    return {"ok": True, "found": found, "text": "-".join(part.upper() for part in ("a", "b")), "size": sum(range(100))}


def wrap_runtime(bootstrap: Any, client: Any, hooks: Any) -> None:
    watch = RestoreWatch()
    wait, handle = client.LambdaRuntimeClient.wait_next_invocation, bootstrap.handle_event_request

    def wait_next_invocation(self: Any) -> Any:
        request = wait(self)
        watch.refresh()
        if watch.hooks_due and not request.invoke_id.startswith(PRACTICE):
            watch.hooks_due = False
            hooks.run_after_restore()
        return request

    def handle_event_request(runtime_client: Any, request_handler: Any, invoke_id: str, *rest: Any, **more: Any) -> Any:
        if invoke_id in (PRACTICE, LAST_PRACTICE):
            request_handler = practice_handler
            if invoke_id == LAST_PRACTICE:
                hooks.run_before_snapshot()
        return handle(runtime_client, request_handler, invoke_id, *rest, **more)

    client.LambdaRuntimeClient.wait_next_invocation = wait_next_invocation
    bootstrap.handle_event_request = handle_event_request
    with open(PRACTISES, "w") as note:
        note.write("1")


class Finder(importlib.abc.MetaPathFinder):
    """Has ``awslambdaric.bootstrap`` imported as usual, then wraps it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "awslambdaric.bootstrap":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            try:
                parts = ("lambda_runtime_client", "lambda_runtime_hooks_runner")
                wrap_runtime(module, *(importlib.import_module(f"awslambdaric.{part}") for part in parts))
            except Exception as problem:  # a runtime that is built otherwise still runs
                print(f"weft: random numbers of clones aren't seeded again: {problem}", file=sys.stderr)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def import_shadowed() -> None:
    """Import the sitecustomize that this one hides, if there is one."""
    before = list(sys.path)
    sys.path[:] = [folder for folder in before if os.path.abspath(folder) != NOTES]
    own = sys.modules.pop("sitecustomize", None)
    try:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module("sitecustomize")
    finally:
        sys.path[:] = before
        if own is not None:
            sys.modules["sitecustomize"] = own  # or its importers find nothing


sys.meta_path.insert(0, Finder())
import_shadowed()
