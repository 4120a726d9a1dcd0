"""What a node needs to run instances of a function, and what a way to isolate them offers.

A *recipe* is one version of a function, whole: all that its instances share. An *instance* serves one invocation at a time: its
runtime asks the node for the next one over the AWS Lambda Runtime API, on a socket that only this instance reaches. A driver
starts, pauses and ends instances; it knows nothing of invocations. Instances are opportunistic: they have no allocation, and
whatever of them is left behind by an agent that was killed is ended when the next one begins.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, runtime_checkable

import msgspec

from weft.contracts.driver.sandbox import Sandbox

Isolation = Literal["process", "container", "vm"]
LATEST = "$LATEST"
REGION = "weft"  # of ARNs, of what AWS's SDKs sign, and what functions are told of where they run
HANDLER = "{handler}"
RUNTIME_API_PORT = 9001  # on 127.0.0.1 inside an instance, or where its driver says


class Blob(msgspec.Struct, frozen=True):
    """Something the server keeps, by digest. ``ticket`` lets a node fetch it that has no allocation with it."""

    sha256: str
    size: int
    name: str = ""  # for people: of an image
    ticket: str = ""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a function. ``digest`` is of all that its instances depend on: equal digests, equal instances.

    ``base`` is the image bundle of a managed runtime (``runtime`` names it), whose root file system the instance sees, and
    ``code`` the zip that lies in /var/task; with ``image`` root and code are an OCI image's instead, out of ``archive`` if the
    fabric holds it itself. One whose image has no digest yet is only prepared, which tells the digest: instances are of images
    that a digest names. ``registry_secret`` names the secret that opens the image's registry, and ``registry_ticket`` lets the
    node that has it ask what is in there. ``command`` is what to run: empty means as the base, or the image, says. Sizes in bytes,
    times in seconds."""

    digest: str
    function: str  # uid
    project: str
    name: str
    version: str = LATEST
    isolation: Isolation = "process"
    runtime: str = ""
    base: Blob | None = None
    code: Blob | None = None
    image: str = ""
    archive: Blob | None = None
    registry_secret: str = ""
    registry_ticket: str = ""
    command: list[str] = []
    handler: str = ""
    env: dict[str, str] = {}
    cpu: float = 1.0
    memory: int = 0
    timeout: float = 0.0
    scratch: int = 0  # of /tmp
    pids: int = 256
    network: str = ""  # uid of the network that instances reach; "" is none
    warm_calls: int = (
        0  # how often the handler is run with an empty event before an instance counts as ready: only if asked for
    )

    @property
    def what(self) -> str:
        """For people: function/thumb, or function/thumb:3."""
        return f"function/{self.name}" + ("" if self.version == LATEST else f":{self.version}")

    @property
    def is_open(self) -> bool:
        """Whether its image is a tag that may come to mean another."""
        return bool(self.image) and "@" not in self.image


class EgressEndpoint(msgspec.Struct, frozen=True):
    """Where instances reach a network: a network namespace of the node's that has one address in it, at the path ``namespace``.
    What they send leaves with that address, and nothing is opened to them. ``name_server`` answers for the network's names, which
    end in ``domain``."""

    namespace: str
    name_server: str
    domain: str
    mtu: int


class Roots(msgspec.Struct, frozen=True):
    """Where a recipe's parts lie on this node, unpacked and whole; nobody may write in them."""

    root: list[str]  # directories, the uppermost first
    code: str = ""
    command: list[str] = []  # that the image or base runs
    env: Mapping[str, str] = {}  # that it sets
    workdir: str = "/var/task"
    user: tuple[int, int] = (0, 0)  # uid, gid
    bundle: str = ""  # the folder of a managed runtime's files; its kernel and initrd too, if it has them
    egress_endpoint: EgressEndpoint | None = None  # of a recipe that names a network


class Ready(msgspec.Struct, frozen=True):
    """Paused copies of one recipe, and the bytes that they take as far as that is known."""

    count: int
    memory: int


class Instance(Sandbox, Protocol):
    """One running instance, which ends at once when it is stopped: nothing in it is asked."""

    runtime_api: socket.socket  # listens, non-blocking: on it this instance, and nothing else, calls the Runtime API
    output: int  # a pipe with all that it prints

    async def flush(self) -> None:
        """All that it has printed by now is in ``output``, unless that takes longer than anybody should wait."""


class InstanceDriver(Protocol):
    """One way to isolate. Raises DriverFailed, whose reason tells: ``Runtime.ImportModuleError`` and the like pass through as
    the runtime
    said them."""

    isolation: Isolation

    async def probe(self) -> str:
        """Why this node can't, for people; "" if it can."""

    async def recover(self) -> int:
        """End what an agent before this one left behind; how many."""

    async def start(self, id: str, recipe: Recipe, roots: Roots) -> Instance:
        """A new instance, on its way to its first call of the Runtime API. Cancelled or failed: nothing is left."""

    async def forget(self, digest: str) -> None:
        """No more instances of that recipe will be asked for: what they shared (a template) goes."""

    async def close(self) -> None: ...


@runtime_checkable
class HasTemplates(Protocol):
    """A driver whose instances are copies of one that has come up. With it ``start`` is quick, and nothing of the function
    runs twice."""

    async def prepare(self, recipe: Recipe, roots: Roots) -> None:
        """Make the template unless it is there: booted, runtime loaded, code imported, the first request held. Raises
        DriverFailed with
        what the runtime said if the code can't be loaded."""

    async def keep_ready(self, recipe: Recipe, roots: Roots, count: int) -> int:
        """Have ``count`` paused copies ahead of demand, which ``start`` takes from; how many there are now."""

    def count_ready(self) -> dict[str, Ready]:
        """The paused copies that there are, by recipe."""

    def bound_ready(self, memory: int) -> None:
        """Paused copies may take so many bytes from now on; those for which that is too little end."""

    def templates(self) -> set[str]:
        """The digests of the recipes whose template is here and fits this node, also of those that an agent before this made."""

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
