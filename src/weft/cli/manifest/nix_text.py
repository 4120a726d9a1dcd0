"""nix, evaluated by ``nix-instantiate`` with no store, network, daemon or settings, in bounded time, memory and output.

The file is an expression, or a function that is called with ``{}``. It may import its neighbours in the same folder and
read nothing else.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import tempfile
from pathlib import Path as FilePath

from weft.cli.manifest.document import Document, Path, Position, unreadable
from weft.objects.errors import TooLarge, Unavailable

CPU_SECONDS = 10  # of processor time: on a busy machine a small expression takes long too
WAIT_SECONDS = 60  # for one that waits: the folder may hold a named pipe
MAX_OUTPUT_BYTES = 4 * 1024 * 1024
MAX_MEMORY_BYTES = 2 * 1024**3
_AT = re.compile(r"at (?P<file>\S.*?):(?P<line>\d+):(?P<column>\d+)")

# Beside the value, the place of every attribute that the file itself wrote.
_EXPRESSION = """
let
  given = import %(file)s;
  value = if builtins.isFunction given then given { } else given;
  places = path: v:
    if builtins.isAttrs v then
      builtins.concatLists (map
        (name:
          let at = builtins.unsafeGetAttrPos name v; here = path ++ [ name ]; in
          (if at == null || at.file != %(file)s then [ ] else [{ path = here; inherit (at) line column; }])
          ++ places here v.${name})
        (builtins.attrNames v))
    else if builtins.isList v then
      builtins.concatLists (builtins.genList (i: places (path ++ [ i ]) (builtins.elemAt v i)) (builtins.length v))
    else [ ];
in
{ inherit value; places = places [ ] value; }
"""


def read_nix(path: FilePath, file: str) -> list[Document]:
    """The one document that the expression in ``path`` gives; ``file`` is its name in messages.

    Raises InvalidInput with file, line and column, TooLarge, or Unavailable when nix-instantiate isn't installed."""
    whole = path.resolve()
    answer = _evaluate(whole, file)
    try:
        found = json.loads(answer)
    except ValueError as problem:
        raise unreadable(file, (1, 1), f"nix: the result isn't JSON: {problem}") from None
    places: dict[Path, Position] = {(): (1, 1)}
    places |= {tuple(at["path"]): (at["line"], at["column"]) for at in found["places"]}
    return [Document(found["value"], file, places)]


def _evaluate(path: FilePath, file: str) -> bytes:
    argv = ["nix-instantiate", "--eval", "--strict", "--json", "--show-trace", "--store", "dummy://"]
    argv += ["--option", "restrict-eval", "true", "-I", str(path.parent)]
    argv += ["--expr", _EXPRESSION % {"file": _quote(str(path))}]
    nowhere = "/nonexistent"
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": nowhere,
        "NIX_CONF_DIR": nowhere,
        "LC_ALL": "C.UTF-8",
    }
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                env=environment,
                timeout=WAIT_SECONDS,
                preexec_fn=_limit,
                check=False,
            )
        except FileNotFoundError:
            raise Unavailable(
                f"{file}: nix files need nix-instantiate, which isn't installed", hint="apt-get install nix-bin"
            ) from None
        except subprocess.TimeoutExpired:
            raise unreadable(file, (1, 1), f"nix: the expression did not end within {WAIT_SECONDS} s") from None
        if out.tell() >= MAX_OUTPUT_BYTES:
            raise TooLarge(f"{file}: nix: the expression gives more than {MAX_OUTPUT_BYTES // 2**20} MiB")
        if done.returncode == -signal.SIGKILL:
            what = f"was ended: it took more than {CPU_SECONDS} s of processor time, or the machine ran out of memory"
            raise unreadable(file, (1, 1), f"nix: the expression {what}")
        if done.returncode != 0:
            raise _translate(done.stderr.decode(errors="replace"), path, file)
        out.seek(0)
        return out.read()


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))  # the same twice, for SIGKILL: nix uses SIGXCPU
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES))


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return f'"{escaped}"'


def _translate(report: str, path: FilePath, file: str) -> Exception:
    """Translate nix's complaint, at the last place in this very file that it mentions."""
    first = re.search(r"^(?:error: )(.*)$", report, re.MULTILINE)
    what = first[1] if first else (report.strip().splitlines() or ["ended without a message"])[-1]
    place: Position = (1, 1)
    for match in _AT.finditer(report):
        if match["file"].split()[-1] == str(path) or match["file"] == str(path):
            place = int(match["line"]), int(match["column"])
    what = re.sub(rf"\s*at {re.escape(str(path))}:\d+:\d+", "", what)
    hint = None
    if "without required argument" in what:
        hint = "give every argument a default: weft calls the function with { }"
    elif "restricted mode" in what:
        hint = "a manifest may import files of the same folder, and read nothing else"
    return unreadable(file, place, f"nix: {what}", hint)
