"""Words of Docker, kubectl, Incus, Proxmox, virsh and Slurm, and weft's: the one table behind synonyms and "did you mean", for
words that spelling alone would match wrongly. Pure."""

from __future__ import annotations

from collections.abc import Collection

# Verbs that mean exactly one of weft's: they are understood, after a noun and alone.
SYNONYMS: dict[str, str] = {
    "ls": "list",
    "rm": "delete",
    "remove": "delete",
    "destroy": "delete",
    "show": "describe",
    "info": "describe",
    "inspect": "describe",
    "reboot": "restart",
    "move": "migrate",
}

# Verbs that are never proposed for a word that is merely spelled alike: what they end or remove doesn't come back.
DESTROYING = frozenset({"delete", "stop", "restart", "cancel", "drain", "undo"})

# Nouns, singular: the kind that comes nearest.
NOUNS: dict[str, str] = {
    **dict.fromkeys(("pod", "po", "ct", "lxc", "pct"), "container"),
    **dict.fromkeys(("deploy", "statefulset", "sts", "daemonset", "ds", "replicaset", "rs"), "deployment"),
    **dict.fromkeys(("instance", "machine", "guest", "domain", "dom", "qm", "qemu", "vmi"), "vm"),
    **dict.fromkeys(("cronjob", "cj", "task"), "job"),
    **dict.fromkeys(("namespace", "ns", "tenant"), "project"),
    **dict.fromkeys(("pvc", "pv", "persistentvolume", "persistentvolumeclaim", "disk", "pvesm"), "volume"),
    **dict.fromkeys(("host", "hypervisor", "member", "pvecm"), "node"),
    **dict.fromkeys(("ingress", "endpointslice", "loadbalancer"), "service"),
    **dict.fromkeys(("netpol", "networkpolicy", "firewall", "acl"), "securitygroup"),
    **dict.fromkeys(("net", "bridge", "vlan", "subnet"), "network"),
    **dict.fromkeys(("template", "iso", "img"), "image"),
    **dict.fromkeys(("lambda", "func"), "function"),
    **dict.fromkeys(("serviceaccount", "sa", "apikey"), "token"),
    **dict.fromkeys(("storageclass", "profile", "flavor"), "placementpolicy"),
}

# Other words: the command that does it, without `weft`. One that begins with a verb follows the noun that was typed.
COMMANDS: dict[str, str] = {
    # docker, podman
    "rmi": "image delete NAME",
    "load": "image add NAME FILE.tar",
    "import": "image add NAME FILE",
    "kill": "stop NAME",
    "unpause": "resume NAME",
    "stats": "top",
    "df": "capacity",
    "placement": "capacity",
    "monitor": "events -f",
    "compose": "apply FILE",
    "stack": "apply FILE",
    "up": "apply FILE",
    "down": "delete -f FILE",
    "prune": "apply -f DIR --prune",
    # kubectl
    "all": "ps",
    "cluster-info": "doctor",
    "port-forward": "forward NAME PORT",
    "expose": "set NAME --publish HOST:GUEST",
    "annotate": "label NAME KEY=VALUE",
    "patch": "set NAME --FIELD VALUE",
    "replace": "apply FILE",
    "api-resources": "schema KIND",
    "auth": "token list",
    "taint": "node set NAME --taint WORD",
    "proxy": "api GET PATH",
    # incus, lxd
    "launch": "vm create NAME --image IMAGE",
    "init": "vm create NAME --image IMAGE --hold",
    "shell": "exec -t NAME -- sh",
    "sh": "exec -t NAME -- sh",
    "file": "cp FROM TO",
    "push": "cp FROM NAME:TO",
    "query": "api GET PATH",
    "remote": "context",
    "switch": "context use",
    "evacuate": "node drain NAME",
    # proxmox, virsh
    "pvesh": "api GET PATH",
    "enter": "exec -t NAME -- sh",
    "terminal": "console NAME",
    "vncproxy": "screen NAME",
    "shutdown": "stop NAME",
    "poweroff": "stop NAME",
    "reset": "restart NAME",
    "status": "list",
    "importdisk": "image add NAME FILE",
    "undefine": "delete NAME",
    "dominfo": "describe NAME",
    "domstate": "get NAME",
    "log": "logs NAME",
    "ssh-copy-id": "ssh NAME",
    # their words for snapshots
    **dict.fromkeys(("listsnapshot", "snapshot-list"), "snapshot list"),
    **dict.fromkeys(("delsnapshot", "snapshot-delete"), "snapshot delete SNAPSHOT"),
    **dict.fromkeys(("snapshot-info", "snapshot-dumpxml"), "snapshot describe SNAPSHOT"),
    **dict.fromkeys(("checkpoint", "savevm"), "vm snapshot NAME --memory"),
    **dict.fromkeys(("snap", "take", "snapshot-create", "snapshot-create-as"), "vm snapshot NAME --name SNAPSHOT"),
    **dict.fromkeys(("rollback", "revert", "loadvm", "snapshot-revert"), "vm restore NAME --snapshot SNAPSHOT"),
    **dict.fromkeys(("copy", "virt-clone"), "vm clone NAME NEW_NAME"),
    # slurm
    "sbatch": "job run NAME --image IMAGE -- COMMAND",
    "srun": "job run NAME --image IMAGE -- COMMAND",
    "salloc": "vm create NAME --image IMAGE --lease immediate --duration 1h",
    "squeue": "queue, or weft job list",
    "scancel": "job cancel NAME",
    "sinfo": "node list, or weft capacity",
    "sacct": "job list, or weft usage",
    "scontrol": "describe job NAME, or weft node drain NAME",
    "sstat": "top jobs",
    "sprio": "queue",
    "sshare": "fairness",
    "sreport": "usage",
    "sacctmgr": "quota set --cpu N, or weft rolebinding create",
}

# Verbs of weft's own API that have a command of their own, so that each thing has one name.
ELSEWHERE: dict[str, str] = {
    "cancel-lease": "lease cancel NAME",
    "extend-lease": "lease extend NAME --by 1h",
    "flows": "network flows --vm NAME",
    "capture": "network capture vm/NAME > NAME.pcap",
    "files": "backup ls NAME",
    "contents": "backuprepository import NAME --dry-run",
    "receive": "cluster replicate vm/NAME --destination CLUSTER",
    "renew": "cluster replicate vm/NAME --destination CLUSTER",
}

# What people look for and weft hasn't got yet, with the command that comes nearest; empty where none does. A word leaves this table
# with the change that builds it.
NOT_YET: dict[str, str] = {
    "cluster": "node list",
    "dashboard": "top",
    "rebalance": "vm recommend NAME",
    "update": "set NAME",
}

# Words for what no object can have: another name.
RENAMES = frozenset({"rename", "mv", "domrename"})

# Words that are commands of weft's elsewhere, or of another noun: what they are after these nouns.
AFTER: dict[tuple[str, str], str] = {
    ("vm", "run"): "create NAME --image IMAGE",
    ("container", "run"): "create NAME IMAGE -- COMMAND",
    ("function", "run"): "invoke NAME",
    ("vm", "pause"): "suspend NAME",
    **dict.fromkeys((("vm", "scale"), ("container", "scale")), "set NAME --cpu N --memory SIZE"),
    ("node", "return"): "uncordon NAME",
    ("vm", "trace"): "network trace vm/NAME TO",
    ("container", "trace"): "network trace container/NAME TO",
    **dict.fromkeys((("vm", "publish"), ("vm", "template")), "image create IMAGE --from vm/NAME"),
    ("image", "pull"): "add NAME oci://IMAGE",
    **dict.fromkeys((("snapshot", "revert"), ("snapshot", "rollback")), "restore NAME"),
}

# Other tools, as the first word of what hands type: the kind that their verbs are of, where it is one. weft takes the verb itself.
PROGRAMS: dict[str, str | None] = {
    **dict.fromkeys(("docker", "podman", "nerdctl", "ctr", "crictl", "docker-compose", "podman-compose")),
    **dict.fromkeys(("kubectl", "oc", "k3s", "helm", "nomad", "incus", "lxd")),
    **dict.fromkeys(("lxc", "pct"), "container"),
    **dict.fromkeys(("virsh", "qm", "multipass", "vagrant"), "vm"),
}

# Verbs of theirs, alone, that are something else here; empty where nothing is like it.
OTHERWISE: dict[str, str] = {
    "attach": "logs -f NAME",
    "build": "image add NAME FILE.tar",
    "explain": "schema KIND",
    "list": "ps",
    "ls": "ps",
    "pull": "image add NAME oci://IMAGE",
    "push": "",
    "status": "ps",
    "update": "set NAME --cpu N --memory SIZE",
}

# Options: what they are called here. The first that the command has is named.
OPTIONS: dict[str, tuple[str, ...]] = {
    "-e": ("--env",),
    "-v": ("--mount", "--volume"),
    "--volume": ("--mount",),
    "-m": ("--memory",),
    "--mem": ("--memory",),
    "--ram": ("--memory",),
    "-c": ("--cpu",),
    "--cpus": ("--cpu",),
    "--vcpus": ("--cpu",),
    "--cores": ("--cpu",),
    "--port": ("--publish",),
    "--expose": ("--publish",),
    "--net": ("--network",),
    "-d": ("--detach",),
    "--target": ("--to",),
    "--node": ("--to",),
    "--target-node": ("--to",),
    "--online": ("--live",),
    "--with-local-disks": ("--live",),
    "--namespace": ("--project",),
    "-n": ("--tail", "--project"),
    "--all": ("--all-projects",),
    "--all-namespaces": ("--all-projects",),
    "--format": ("--output",),
    "--force": ("--yes",),
    "--filter": ("--field", "--selector"),
    "--field-selector": ("--field",),
    "--entrypoint": ("--command",),
    "--payload": ("--data",),
    "--grace-period": ("--grace",),
    "--suspendable": ("--preemptible",),
    "--interruptible": ("--preemptible",),
    "--spot": ("--preemptible",),
}

# Fields, where a name of them is written: --what-if mem=8G.
FIELDS: dict[str, str] = {
    "mem": "memory",
    "ram": "memory",
    "cpus": "cpu",
    "vcpus": "cpu",
    "cores": "cpu",
    "ports": "publish",
    "net": "network",
    "volumes": "volume",
}


def find_kind_meant(word: str) -> str | None:
    """The name of the kind that another tool's ``word``, singular or plural, comes nearest to."""
    word = word.lower()
    singular = word.removesuffix("es") if word.endswith("sses") else word.removesuffix("s")
    return NOUNS.get(word) or NOUNS.get(singular)


def find_command_meant(word: str, noun: str | None, verbs: Collection[str], nouns: Collection[str] = ()) -> str | None:
    """The command that another tool's ``word`` is, tried after ``noun`` (or alone), which has ``verbs``. After a noun it is none
    that another of the ``nouns`` begins."""
    if word in ELSEWHERE:
        return f"weft {ELSEWHERE[word]}"
    after = AFTER.get((noun or "", word.lower()))
    command = after or COMMANDS.get(word.lower())
    if command is None:
        return None
    first = command.split(",")[0].split()[0]
    if noun is not None and first in verbs:
        return f"weft {command}" if first in nouns else f"weft {noun} {command}"
    is_of_another = after is None and noun is not None and first in nouns and first != noun
    return None if is_of_another else f"weft {command}"


def find_missing(word: str, noun: str | None, verbs: Collection[str]) -> str | None:
    """The nearest command to what weft hasn't got yet; None for a word that isn't known as such."""
    nearest = NOT_YET.get(word.lower())
    if not nearest:
        return nearest
    own = noun is not None and nearest.split()[0] in verbs
    return f"weft {noun} {nearest}" if own else f"weft {nearest}"


def find_option_meant(option: str, known: Collection[str]) -> str | None:
    """Find the one of the ``known`` options that another tool's ``option`` means."""
    return next((name for name in OPTIONS.get(option, ()) if name in known), None)
