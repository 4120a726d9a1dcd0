"""The contract between a node that runs instances of a function, and the ways to isolate them.

A *recipe* is one version of a function, whole: all that its instances share. An *instance* serves one invocation at a time: its
runtime asks the node for the next one over the AWS Lambda Runtime API, on a socket that only this instance reaches. A driver
starts, pauses and ends instances; it knows nothing of invocations. Instances are opportunistic: they have no allocation, and
those that a killed agent left behind end when the next agent begins.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, runtime_checkable

import msgspec

from weft.contracts.driver.sandbox import Sandbox

Isolation = Literal["process", "container", "vm"]
LATEST = "$LATEST"
REGION = "weft"  # of ARNs, of what AWS's SDKs sign, and of functions' environment
HANDLER = "{handler}"
RUNTIME_API_PORT = 9001  # on 127.0.0.1 inside an instance, or where its driver says


class Blob(msgspec.Struct, frozen=True):
    """Something the server keeps, by digest."""

    sha256: str
    size: int
    name: str = ""  # for people: of an image
    ticket: str = ""  # lets a node without an allocation of it fetch it


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a function. Sizes in bytes, times in seconds."""

    digest: str  # of all that its instances depend on: equal digests, equal instances
    function: str  # uid
    project: str
    name: str
    version: str = LATEST
    isolation: Isolation = "process"
    runtime: str = ""  # the managed runtime of ``base``
    base: Blob | None = None  # image bundle of a managed runtime, whose root file system the instance sees
    code: Blob | None = None  # the zip that is unpacked in /var/task
    image: str = (
        ""  # an OCI image, in place of base and code; without a digest it is only prepared, which finds the digest
    )
    archive: Blob | None = None  # the image, if the fabric keeps it itself
    registry_secret: str = ""  # name of the secret for the image's registry
    registry_ticket: str = ""  # lets its node read that secret
    command: list[str] = []  # empty: the base's, or the image's
    handler: str = ""
    env: dict[str, str] = {}
    cpu: float = 1.0
    memory: int = 0
    timeout: float = 0.0
    scratch: int = 0  # of /tmp
    pids: int = 256
    network: str = ""  # uid of the network that instances reach; "" is none
    warm_calls: int = 0  # calls of the handler with an empty event before an instance counts as ready

    @property
    def what(self) -> str:
        """The function's name for people: function/thumb, or function/thumb:3."""
        return f"function/{self.name}" + ("" if self.version == LATEST else f":{self.version}")

    @property
    def is_open(self) -> bool:
        """Whether its image is a tag, which may come to mean another image."""
        return bool(self.image) and "@" not in self.image


class EgressEndpoint(msgspec.Struct, frozen=True):
    """The place where instances reach a network: what they send leaves with its address, and nothing can be opened to them."""

    namespace: str  # path of a network namespace of the node that has the address
    name_server: str  # for the network's names
    domain: str  # of these names
    mtu: int


class Roots(msgspec.Struct, frozen=True):
    """The places of a recipe's parts on this node, unpacked and whole; nobody may write to them."""

    root: list[str]  # directories, the uppermost first
    code: str = ""
    command: list[str] = []  # of the image or base
    env: Mapping[str, str] = {}  # of the image or base
    workdir: str = "/var/task"
    user: tuple[int, int] = (0, 0)  # uid, gid
    bundle: str = ""  # the folder of a managed runtime's files; its kernel and initrd too, if it has them
    egress_endpoint: EgressEndpoint | None = None  # of a recipe that names a network


class Ready(msgspec.Struct, frozen=True):
    """Paused copies of one recipe, and the bytes that they use as far as that is known."""

    count: int
    memory: int


class Instance(Sandbox, Protocol):
    """One running instance. Stopping ends it at once, without asking it."""

    runtime_api: socket.socket  # listens, non-blocking: on it this instance, and nothing else, calls the Runtime API
    output: int  # a pipe with all that it prints

    async def flush(self) -> None:
        """Wait until ``output`` has all that it printed by now, or for as long as is reasonable."""


class InstanceDriver(Protocol):
    """One way to isolate. Raises DriverFailed, whose reason is the runtime's own where it has one
    (``Runtime.ImportModuleError``)."""

    isolation: Isolation

    async def probe(self) -> str:
        """Why this node can't use it, for people; "" if it can."""

    async def recover(self) -> int:
        """End what an earlier agent left behind; returns how many."""

    async def start(self, id: str, recipe: Recipe, roots: Roots) -> Instance:
        """A new instance, on its way to its first call of the Runtime API. Cancelled or failed: nothing is left."""

    async def forget(self, digest: str) -> None:
        """Remove what instances of that recipe shared (a template): nobody will ask for more of them."""

    async def close(self) -> None: ...


@runtime_checkable
class HasTemplates(Protocol):
    """A driver whose instances are copies of one that has come up. With it ``start`` is quick, and nothing of the function
    runs twice."""

    async def prepare(self, recipe: Recipe, roots: Roots) -> None:
        """Make the template unless it is there: booted, runtime loaded, code imported, the first request held. Raises
        DriverFailed with the runtime's error if the code can't be loaded."""

    async def keep_ready(self, recipe: Recipe, roots: Roots, count: int) -> int:
        """Keep ``count`` paused copies ahead of demand for ``start``; returns how many there are now."""

    def count_ready(self) -> dict[str, Ready]:
        """The paused copies of each recipe."""

    def bound_ready(self, memory: int) -> None:
        """Bound the bytes of paused copies from now on; those over the bound end."""

    def templates(self) -> set[str]:
        """Digests of the recipes whose template is here and fits this node, whichever agent made it."""

    def follow(self, changed: Callable[[], None]) -> None:
        """``changed`` is called whenever ``count_ready`` or ``templates`` gives something else."""


def compose_env(recipe: Recipe, roots: Roots) -> dict[str, str]:
    """Pure. All of an instance's environment: what root or image set, what functions expect of AWS Lambda (in force whatever else
    says), and between them the function's own. AWS_LAMBDA_RUNTIME_API is where it calls from inside."""
    task, path = (
        roots.workdir if not roots.code else "/var/task",
        "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
    )
    given = {"PATH": path, "LANG": "C.UTF-8", "TZ": ":UTC", "HOME": "/tmp", "TMPDIR": "/tmp", **roots.env, **recipe.env}
    return given | {
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{RUNTIME_API_PORT}",
        "AWS_LAMBDA_FUNCTION_NAME": recipe.name,
        "AWS_LAMBDA_FUNCTION_VERSION": recipe.version,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(max(1, recipe.memory >> 20)),
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{recipe.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": recipe.version,
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_REGION": given.get("AWS_REGION", REGION),
        "AWS_DEFAULT_REGION": given.get("AWS_DEFAULT_REGION", REGION),
        "LAMBDA_TASK_ROOT": task,
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "_HANDLER": recipe.handler,
    }


def compose_command(recipe: Recipe, roots: Roots) -> list[str]:
    """Pure. What an instance runs; ``{handler}`` in a managed runtime's command stands for the function's."""
    return recipe.command or [recipe.handler if word == HANDLER else word for word in roots.command]
