"""An instance as the plan of a sandbox, in the same form as a container's. Pure."""

from __future__ import annotations

from weft.contracts.driver.container import ContainerMount, ContainerPlan, ContainerProcess, User
from weft.contracts.driver.function import Recipe, Roots, compose_command, compose_env

TASK = "/var/task"
FEWEST_SCRATCH_BYTES = 1 << 20


def plan_instance(id: str, recipe: Recipe, roots: Roots, user: User) -> ContainerPlan:
    """It has no rights and a read-only root; it can write to /tmp."""
    env = [f"{name}={value}" for name, value in compose_env(recipe, roots).items()]
    code = [ContainerMount(roots.code, TASK, read_only=True)] if roots.code else []
    return ContainerPlan(
        id=id,
        uid=recipe.function,
        name=recipe.name,
        incarnation=0,
        layers=list(roots.root),
        process=ContainerProcess(compose_command(recipe, roots), env, roots.workdir, user),
        cpu=recipe.cpu,
        memory_bytes=recipe.memory,
        pids=recipe.pids,
        mounts=[plan_scratch(bound_scratch(recipe)), *code],
        hostname=id,
        read_only_root=True,
    )


def plan_scratch(size_bytes: int) -> ContainerMount:
    return ContainerMount("", "/tmp", size_bytes=max(FEWEST_SCRATCH_BYTES, size_bytes))


def bound_scratch(recipe: Recipe) -> int:
    """Bytes of /tmp, which is in memory: at most half of the function's memory, so that a full one doesn't end it."""
    return min(recipe.scratch, recipe.memory // 2)
