"""A machine's configuration for its function: records in a cpio archive that follows the initial RAM file system's own.
Pure."""

from __future__ import annotations

from weft.contracts.driver.function import Recipe, Roots, compose_command, compose_env
from weft.drivers.function.egress import render_resolver
from weft.objects.errors import DriverFailed

FUNCTION_USER = (1000, 1000)
PRACTICE_CALLS = 3
KERNEL_BYTES = 64 << 20  # of the guest's memory: its kernel and what weft has in it
LEAST_MEMORY = 64 << 20
MOST_WORDS = 500
NOTES = "/run/weft"


def choose_memory(recipe: Recipe) -> int:
    """Memory of the machine, in bytes: what the function was promised, plus its kernel's, in whole 2 MiB."""
    step = 2 << 20
    return -(-(max(recipe.memory, LEAST_MEMORY) + KERNEL_BYTES) // step) * step


def compose_config(recipe: Recipe, roots: Roots, *, now_ns: int, seed: bytes) -> bytes:
    """Raises DriverFailed for a recipe that no record can hold."""
    env = {**compose_env(recipe, roots)}
    env["PYTHONPATH"] = ":".join([NOTES, *filter(None, [env.get("PYTHONPATH", "")])])
    command = compose_command(recipe, roots)
    uid, gid = FUNCTION_USER if recipe.runtime and roots.user == (0, 0) else roots.user
    memory = max(recipe.memory, LEAST_MEMORY)
    records = [("now", str(now_ns)), ("seed", seed.hex())]
    records += [("argument", word) for word in command]
    records += [("env", f"{name}={value}") for name, value in env.items()]
    records += [("workdir", roots.workdir or "/"), ("uid", str(uid)), ("gid", str(gid)), ("pids", str(recipe.pids))]
    records += [("memory", str(memory)), ("tmp", str(min(recipe.scratch or memory, memory // 2)))]
    records += [("timeout", str(int((recipe.timeout or 3.0) * 1000))), ("warm", str(recipe.warm_calls))]
    records += [("practice", str(PRACTICE_CALLS)), *([("code", "1")] if roots.code else [])]
    if roots.egress_endpoint is not None:
        records += [("mtu", str(roots.egress_endpoint.mtu)), ("resolver", render_resolver(roots.egress_endpoint))]
    records.append(("arn", f"arn:weft:lambda:weft:{recipe.project}:function:{recipe.name}"))
    if len(command) > MOST_WORDS or len(env) > MOST_WORDS or any("\0" in value for _, value in records):
        raise DriverFailed(
            f"{recipe.what}: its command or environment has more than {MOST_WORDS} words, or a zero byte",
            details={"step": "config"},
        )
    return b"".join(f"{key} {value}\0".encode() for key, value in records)


def pack_config(content: bytes) -> bytes:
    """A newc archive with that one file."""
    out = bytearray()
    for number, name, body in ((1, b"config\0", content), (2, b"TRAILER!!!\0", b"")):
        mode = 0o100600 if body else 0
        fields = (number, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name
        out += bytes(-len(out) % 4) + body
        out += bytes(-len(out) % 4)
    return bytes(out)
