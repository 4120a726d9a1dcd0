"""Code of a function and what each run of it has: the part of a Function that a version keeps for good."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from weft.kinds.allocation import Word
from weft.kinds.constraint import Form, check_expressions
from weft.kinds.container import check_image_reference, refuse_secret
from weft.kinds.fields.affinity import check_affinity, check_near
from weft.kinds.fields.environment import check_env
from weft.kinds.fields.strategy import read_strategy
from weft.kinds.fields.taint import check_taints
from weft.kinds.parts.image.use import check_image_use
from weft.kinds.parts.placement_spec import MIB, DataHints, Preferred, Required, Strategy, Tolerated
from weft.kinds.parts.workload import MOST_CORES, MOST_MEMORY_BYTES
from weft.kinds.record import Index, Reference, Stored, keys_of
from weft.objects.code_limits import MOST_BYTES
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name, check_shared_name
from weft.objects.image.reference import held_name
from weft.objects.schema import field, suggest

RUNTIMES = {
    "python3.11": "a handler in Python 3.11",
    "provided": "an executable `bootstrap` that calls the Runtime API itself",
}
BASES = {"python3.11": "python3-11", "provided": "python3-11"}  # the image of each managed runtime
KERNEL = "python3-11"
BASES_PROJECT = "default"  # the project with such images, if a function's own has none
FUNCTIONS_BY_NETWORK = Index("functions and their versions by network")
Isolation = Literal["process", "container", "vm"]
DEFAULT_RUNTIME = "python3.11"
CODE_FOLDER = "code"  # within the folder of the server's blobs
MOST_TIMEOUT_SECONDS = 3600.0
LEAST_MEMORY_BYTES = 16 * MIB
LEAST_SCRATCH_BYTES, MOST_SCRATCH_BYTES = MIB, 10240 * MIB
DIGEST = re.compile(r"[0-9a-f]{64}")
_PYTHON_HANDLER = re.compile(r"[A-Za-z_]\w*(?:[./][A-Za-z_]\w*)*\.[A-Za-z_]\w*", re.ASCII)
_OF_THE_RUNTIME = re.compile(
    r"AWS_LAMBDA_(?:RUNTIME_API|FUNCTION_\w+|LOG_\w+|INITIALIZATION_TYPE)|LAMBDA_(?:TASK_ROOT|RUNTIME_DIR)|_HANDLER"
)


class FunctionCode(msgspec.Struct, kw_only=True):
    """Code that all instances of one version share: equal here, equal instances."""

    code: Annotated[str, field("Code: the SHA-256 of an uploaded zip; --code uploads one", change="live")] = ""
    code_size: Annotated[int, field("Size of that zip; set with it", ge=0, le=MOST_BYTES)] = 0
    runtime: Annotated[
        str, field("Runtime of the code: python3.11 (the default), or provided, for code with a bootstrap of its own")
    ] = ""
    image: Annotated[
        str,
        field(
            "OCI image with code and runtime, instead of code: REGISTRY/NAME:TAG, or @sha256:…, or the NAME of one that weft holds",
            max_length=512,
        ),
    ] = ""
    registry_secret: Annotated[str, field("Secret with the credentials for the image's registry")] = ""
    handler: Annotated[str, field("Handler: MODULE.FUNCTION, like app.handler", max_length=256)] = ""
    command: Annotated[list[Word], field("Command of an instance, instead of the runtime's or image's")] = []
    env: Annotated[
        dict[str, str], field("Environment variables of the code; visible to everyone who may read the function")
    ] = {}
    memory: Annotated[int, field("Memory of an instance", quantity="bytes")] = 256 * MIB
    cpu: Annotated[float, field("Cores of an instance; a fraction is a limit", quantity="cpu")] = 1.0
    timeout: Annotated[float, field("Timeout of one invocation", quantity="duration")] = 30.0
    scratch: Annotated[int, field("Size of /tmp, which goes with the instance", quantity="bytes")] = 512 * MIB
    isolation: Annotated[
        Isolation,
        field("process: namespaces and a seccomp filter; container: as a container runs; vm: a machine of its own"),
    ] = "container"
    network: Annotated[
        str | None,
        field(
            "Network of the project that the code reaches, and through it the outside; none if unset",
            name=True,
            shared=True,
        ),
    ] = None
    warm_calls: Annotated[
        int, field("Calls of the handler with {} before an instance counts as ready", ge=0, le=100)
    ] = 0
    constraint: Required = None
    prefer: Preferred = []
    strategy: Strategy = None
    tolerate: Tolerated = []
    data_hints: DataHints = []
    near: Annotated[
        str | None,
        field("Prefer nodes near the gateway of a device (device/NAME)", shown="device/NAME"),
    ] = None


def check_code(spec: FunctionCode) -> None:
    """Check what types can't say; what has several spellings gets its one. Raises InvalidInput."""
    _check_what_runs(spec)
    if spec.network and "/" in spec.network:
        raise InvalidInput(
            f"spec.network: {spec.network} is another project's, and functions reach only networks of their own",
            field="spec.network",
            hint="name a network of this project; containers and jobs can join a shared one",
        )
    check_near(spec.near, talkers=False)
    _check_sizes(spec)
    check_env(spec.env)
    kept = next((name for name in spec.env if _OF_THE_RUNTIME.fullmatch(name)), None)
    if kept is not None:
        raise InvalidInput(f"spec.env: {kept} is set by the runtime itself", field="spec.env", hint="leave it out")
    if any("\0" in word for word in spec.command) or (spec.command and not spec.command[0]):
        raise InvalidInput(
            "spec.command: a word contains a NUL character, or the first one is empty",
            field="spec.command",
            hint="give a program",
        )
    spec.constraint, preferred = check_expressions(spec.constraint, spec.prefer)
    spec.prefer = list[Form](preferred)
    if spec.strategy is not None:
        spec.strategy = read_strategy(spec.strategy)
    check_taints(spec.tolerate, "spec.tolerate")
    check_affinity([], [], [], spec.data_hints)


def _check_what_runs(spec: FunctionCode) -> None:
    if spec.image:
        if held_name(spec.image):
            check_shared_name(spec.image, "spec.image")
        else:
            check_image_reference(spec.image)
        for name in ("code", "runtime"):
            if getattr(spec, name):
                raise InvalidInput(
                    f"spec.{name}: an image brings its own",
                    field=f"spec.{name}",
                    hint=f"give {name} or image, not both",
                )
        spec.code_size = 0
        if spec.registry_secret:  # empty is none, as it is written out at admission
            check_name(spec.registry_secret, "spec.registry_secret")
            refuse_secret(spec.image)
        return
    if spec.registry_secret:
        raise InvalidInput(
            "spec.registry_secret: there is no image to pull", field="spec.registry_secret", hint="leave it out"
        )
    if not spec.code:
        raise InvalidInput(
            "spec.code is missing",
            field="spec.code",
            hint="weft function create NAME --code FOLDER uploads it; or give an image",
        )
    if not DIGEST.fullmatch(spec.code):
        raise InvalidInput(
            f"spec.code: {spec.code[:80]!r} is not a SHA-256",
            field="spec.code",
            hint="give the 64 lower-case hex digits of an uploaded zip; --code FOLDER uploads one",
        )
    spec.runtime = spec.runtime or DEFAULT_RUNTIME
    if spec.runtime not in RUNTIMES:
        meant = suggest(spec.runtime.lower(), list(RUNTIMES))
        raise InvalidInput(
            f"spec.runtime: {spec.runtime[:60]!r} is none of {', '.join(RUNTIMES)}",
            field="spec.runtime",
            hint=f"did you mean {meant}?" if meant else "use any other as provided, or in an image",
        )
    if spec.runtime != "provided" and not spec.handler:
        raise InvalidInput(
            "spec.handler is missing",
            field="spec.handler",
            hint="write it like app.handler, where app.py has def handler(event, context)",
        )
    if spec.runtime == "python3.11" and not _PYTHON_HANDLER.fullmatch(spec.handler):
        raise InvalidInput(
            f"spec.handler: {spec.handler[:80]!r} is not MODULE.FUNCTION",
            field="spec.handler",
            hint="write it like app.handler, where app.py has def handler(event, context); in a folder: shop/app.handler",
        )


def _check_sizes(spec: FunctionCode) -> None:
    for name, value, least, most in (
        ("memory", spec.memory, LEAST_MEMORY_BYTES, MOST_MEMORY_BYTES),
        ("scratch", spec.scratch, LEAST_SCRATCH_BYTES, MOST_SCRATCH_BYTES),
    ):
        if not least <= value <= most:
            raise InvalidInput(
                f"spec.{name}: {value} bytes is too {'little' if value < least else 'much'} for a function",
                field=f"spec.{name}",
                hint=f"{least // MIB}M to {most // MIB}M",
            )
    if spec.cpu > MOST_CORES:
        raise InvalidInput(
            f"spec.cpu: {spec.cpu:g} is more than an instance can have",
            field="spec.cpu",
            hint=f"at most {MOST_CORES}",
            details={"most": MOST_CORES},
        )
    if not 0.1 <= spec.timeout <= MOST_TIMEOUT_SECONDS:
        raise InvalidInput(
            f"spec.timeout: {spec.timeout:g} s is out of range", field="spec.timeout", hint="100ms to 1h"
        )


def networks_of_code(spec: FunctionCode) -> list[str]:
    """The networks that its instances reach."""
    return [spec.network] if spec.network else []


def networks_of_item(item: Stored) -> list[str]:
    """The keys of the networks that a function, or a version, reaches."""
    return keys_of("network", item, networks_of_code(item.spec(FunctionCode)))


def code_of(spec: FunctionCode) -> FunctionCode:
    """Only this part of a larger spec."""
    return FunctionCode(**{name: getattr(spec, name) for name in FunctionCode.__struct_fields__})


def name_base(runtime: str, image: str, isolation: str) -> str:
    """The name of the Image that a runtime is, or for an OCI image in a machine, whose kernel it gets; "" if it needs none."""
    if image:
        return KERNEL if isolation == "vm" else ""
    return BASES.get(runtime, runtime)


def base_of(code: FunctionCode) -> str:
    """Name the base as ``name_base`` does."""
    return name_base(code.runtime, code.image, code.isolation)


def code_references() -> tuple[Reference, ...]:
    """The objects that what it runs names."""
    return (
        Reference(
            "image",
            "spec.runtime",
            lambda spec: [base] if (base := base_of(spec)) else [],
            awaited=True,
            shared=BASES_PROJECT,
        ),
        Reference(
            "image",
            "spec.image",
            lambda spec: [name] if (name := held_name(spec.image)) else [],
            else_="write an image in a registry with its registry: REGISTRY/{}:TAG",
            suffices=check_image_use("function", "spec.image"),
            asks=lambda spec: spec.image,
        ),
        Reference(
            "secret", "spec.registry_secret", lambda spec: [spec.registry_secret] if spec.registry_secret else []
        ),
        Reference("network", "spec.network", networks_of_code),
    )
