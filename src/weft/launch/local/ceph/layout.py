"""The place of a local Ceph cluster, its ceph.conf and its commands. Pure.

Made for one machine and few disks: decisions of the monitor aren't held back, statistics come each second, and no OSD is left out
of an answer because another one is on the same machine. The weakest protocols are off.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

S3_PORT = 7480
USER = "weft"  # of the agents: may use RBD images in the pool, and look at the cluster
MON_PORT = 6789
GATEWAY = "rgw.s3"  # the daemon that offers the cluster as S3
BUCKET = "weft-backups"
_MIB = 1 << 20
_OSD_MEMORY_BYTES = 900 * _MIB  # the least that Ceph accepts


class CephPlan(msgspec.Struct, frozen=True):
    """A cluster in ``folder`` that listens at ``address``, with one pool of images."""

    folder: str
    address: str
    port: int = MON_PORT
    osds: int = 2
    osd_bytes: int = 8 << 30  # of each OSD's file, which is sparse
    pool: str = "weft"
    s3_port: int = 0  # 0: it has no S3

    @property
    def conf(self) -> Path:
        return Path(self.folder) / "ceph.conf"

    @property
    def keyring(self) -> Path:
        """The keyring of client.admin and the monitor."""
        return Path(self.folder) / "admin.keyring"

    @property
    def user_keyring(self) -> Path:
        return Path(self.folder) / f"client.{USER}.keyring"

    @property
    def monmap(self) -> Path:
        return Path(self.folder) / "monmap"

    @property
    def log(self) -> Path:
        return Path(self.folder) / "log"

    @property
    def sockets(self) -> Path:
        return Path(self.folder) / "run"

    def data(self, daemon: str) -> Path:
        return Path(self.folder) / "data" / daemon

    def made(self, daemon: str) -> Path:
        """The mark that is there once the daemon's store is whole."""
        return self.data(daemon) / "weft-made"

    @property
    def endpoint(self) -> str:
        """The endpoint of its S3."""
        return f"http://{self.address}:{self.s3_port}"

    def s3_key(self, name: str) -> Path:
        """The file with ``access_key`` or ``secret_key`` of the bucket's user."""
        return Path(self.folder) / "s3" / name

    @property
    def gateways(self) -> list[str]:
        return [GATEWAY] if self.s3_port else []

    @property
    def daemons(self) -> list[str]:
        """Their names, in the order in which they start."""
        return ["mon.a", "mgr.x", *(f"osd.{number}" for number in range(self.osds)), *self.gateways]

    def command(self, daemon: str) -> list[str]:
        """Runs it in the foreground."""
        kind, _, number = daemon.partition(".")
        if daemon == GATEWAY:
            words = ["radosgw", "-f", "-c", str(self.conf), "-n", f"client.{GATEWAY}"]
            words += ["--keyring", str(self.data(daemon) / "keyring"), "--rgw-data", str(self.data(daemon))]
            return [
                *words,
                "--rgw-frontends",
                f"beast endpoint={self.address}:{self.s3_port}",
                "--rgw-thread-pool-size",
                "32",
            ]
        keyring = self.keyring if kind == "mon" else self.data(daemon) / "keyring"
        return [f"ceph-{kind}", "-f", "-c", str(self.conf), "-i", number, "--keyring", str(keyring)]


def write_conf(plan: CephPlan, fsid: str) -> str:
    copies = min(plan.osds, 2)
    common = {
        "fsid": fsid,
        "mon_host": f"v1:{plan.address}:{plan.port}",
        "public_addr": plan.address,
        "cluster_addr": plan.address,
        "ms_bind_msgr2": "false",
        "run_dir": str(plan.sockets),
        "admin_socket": f"{plan.sockets}/$name.asok",
        "log_file": f"{plan.log}/$name.log",
        "log_max_recent": "100",
        **dict.fromkeys(("debug_mon", "debug_paxos", "debug_bluestore", "debug_bdev", "debug_rocksdb"), "0/1"),
        "mon_cluster_log_file_level": "warn",
        "crash_dir": f"{plan.folder}/crash",
        "auth_cluster_required": "cephx",
        "auth_service_required": "cephx",
        "auth_client_required": "cephx",
        "auth_allow_insecure_global_id_reclaim": "false",
        "mon_warn_on_insecure_global_id_reclaim": "false",
        "mon_warn_on_insecure_global_id_reclaim_allowed": "false",
        "mon_warn_on_msgr2_not_enabled": "false",
        "mon_warn_on_pool_no_redundancy": "false",
        "mon_allow_pool_size_one": "true",
        "mon_data_avail_warn": "2",
        "mon_data_avail_crit": "1",
        "osd_pool_default_size": str(copies),
        "osd_pool_default_min_size": "1",
        "osd_pool_default_pg_num": "8",
        "osd_pool_default_pg_autoscale_mode": "off",
        "osd_crush_chooseleaf_type": "0",
        "mon_max_pg_per_osd": "1000",
        "paxos_propose_interval": "0.05",
        "paxos_min_wait": "0.01",
        "mgr_stats_period": "1",
        "mgr_tick_period": "1",
        "mon_tick_interval": "1",
        "osd_mon_report_interval": "1",
        "osd_heartbeat_interval": "2",
        "osd_heartbeat_grace": "8",
    }
    parts = {
        "global": common,
        "mon": {"mon_data": str(plan.data("mon.a")), "mon_cluster_log_file": f"{plan.log}/cluster.log"},
        "mgr": {"mgr_data": str(plan.data("mgr.x")), "mgr_initial_modules": "rbd_support"},
        "osd": {
            "osd_data": f"{plan.folder}/data/osd.$id",
            "osd_objectstore": "bluestore",
            "bluestore_block_size": str(plan.osd_bytes),
            "bluestore_block_db_create": "false",
            "bluestore_block_wal_create": "false",
            "bluestore_fsck_on_mount": "false",
            "osd_memory_target": str(_OSD_MEMORY_BYTES),
            "osd_op_num_shards": "2",
            "osd_op_num_threads_per_shard": "1",
        },
        "client": {"log_file": "", "admin_socket": ""},
        f"client.{USER}": {"keyring": str(plan.user_keyring)},
        "client.admin": {"keyring": str(plan.keyring)},
    }
    return "\n".join(
        "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in values.items()), ""])
        for name, values in parts.items()
    )
