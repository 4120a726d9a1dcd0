"""The files in a container's /etc that tell it its name and who answers for names. Pure."""

from __future__ import annotations

from weft.contracts.driver.container import ContainerPlan

HOSTS, HOSTNAME, RESOLV_CONF = "hosts", "hostname", "resolv.conf"


def plan_name_files(plan: ContainerPlan) -> dict[str, str]:
    """Plan the contents of each name file. A NIC of its own has the address that its name stands for."""
    name, address = plan.hostname or plan.name, plan.nics[0].address if plan.nics else "127.0.1.1"
    words = [f"nameserver {server}" for server in plan.name_servers]
    words += [f"search {' '.join(plan.search)}"] if plan.search else []
    return {
        HOSTS: f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{address} {name}\n",
        HOSTNAME: f"{name}\n",
        RESOLV_CONF: "".join(f"{word}\n" for word in words),
    }
