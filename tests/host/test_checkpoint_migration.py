"""A container that was saved as it ran goes to another node as one file, with what it wrote and what it deleted; by the two sides
of a cold move, over TLS. What saves it isn't needed for that: here its processes are a file."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from container_lab import ContainerLab
from tests.node_key import make_node_key

from weft.agent.migration.cold import ColdSource, ColdTarget
from weft.agent.migration.credentials import Credentials
from weft.agent.migration.relay import Limit
from weft.agent.migration.role import MigrationContext, NodeContext
from weft.agent.migration.transport import TlsTransport
from weft.agent.samples.files import SampleFiles
from weft.agent.state.allocation import Checkpoint, MigrationState
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.workload.kind import Prepared
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import SystemClock
from weft.drivers.container.end import ContainerEnd
from weft.drivers.runtime.oci.driver import OciDriver
from weft.drivers.runtime.oci.record import ContainerRecord, read_record, write_record
from weft.drivers.runtime.oci.rootfs.overlay import make_folders
from weft.kinds.allocation import AllocatedContainer, AllocationSpec, Resources
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.objects.envelope import Envelope
from weft.objects.identity import Ref, short_id
from weft.trust.ca import Authority, read_csr

pytestmark = [pytest.mark.host]
CLOCK = SystemClock()
DISK_BYTES = 1 << 26
MARK = "trusted.overlay.opaque"


@pytest.fixture
async def labs() -> AsyncIterator[list[ContainerLab]]:
    if os.geteuid() != 0 or shutil.which("crun") is None or shutil.which("conmon") is None:
        pytest.skip("needs root, crun and conmon")
    labs = [ContainerLab("crun"), ContainerLab("crun")]
    try:
        yield labs
    finally:
        for lab in labs:
            await lab.close_drivers()
            lab.close()


def make_credentials(folder: Path, *uids: str) -> list[Credentials]:
    authority = Authority(folder / "server", CLOCK)
    for uid in uids:
        (folder / uid).mkdir()
        csr = read_csr(make_node_key(folder / uid / "node.key"))
        (folder / uid / "node.crt").write_text(authority.sign_node(csr, uid))
        (folder / uid / "ca.crt").write_text(authority.ca)
    return [Credentials(str(folder / uid)) for uid in uids]


def put_saved(lab: ContainerLab, driver: OciDriver, uid: str, *, disk: bool) -> None:
    """A saved container, as the driver would have left it: what it wrote lies on a ``disk`` of its own, or in its node's folder."""
    plan = msgspec.structs.replace(lab.plan("web"), id=short_id(uid), uid=uid)
    paths = driver._paths(plan.id)
    make_folders(paths, disk=disk)
    paths.saved.whole.mkdir()
    (paths.saved.whole / "pages-1.img").write_bytes(os.urandom(1 << 20))
    if disk:
        with paths.disk.open("wb") as file:
            file.truncate(DISK_BYTES)
            file.seek(DISK_BYTES // 2)
            file.write(b"mine")
    else:
        (paths.upper / "kept").write_text("mine\n")
        os.mknod(paths.upper / "deleted", stat.S_IFCHR, os.makedev(0, 0))
        (paths.upper / "replaced").mkdir()
        os.setxattr(paths.upper / "replaced", MARK, b"y")
        os.chown(paths.upper / "kept", 1000, 1000)
    shutil.rmtree(paths.run)
    end = ContainerEnd("suspended", "saved")
    write_record(paths, ContainerRecord(plan, "crun", "another boot", 1.0, first_user=0x7800_0000, end=end))


@pytest.mark.parametrize("disk", [True, False])
async def test_it_comes_whole_and_is_the_other_nodes_to_go_on_with(
    labs: list[ContainerLab], tmp_path: Path, disk: bool
) -> None:
    here, there = (lab.driver() for lab in labs)
    uids = str(uuid.uuid4()), str(uuid.uuid4())
    put_saved(labs[0], here, uids[0], disk=disk)
    credentials = make_credentials(tmp_path, "node-1", "node-2")
    allocated = AllocatedMigration(key="m", mode="cold", peer="n", peer_uid="", peer_allocation="", saves="must")

    def context_of(side: int, driver: OciDriver, allocated: AllocatedMigration) -> MigrationContext:
        spec = AllocationSpec(
            node=f"n{side + 1}",
            node_uid=f"node-{side + 1}",
            workload=Ref("container", "web", "web-1", "default"),
            workload_generation=1,
            incarnation=side + 1,
            resources=Resources(cpu=1, memory=1 << 26, disk=DISK_BYTES if disk else 0),
            container=AllocatedContainer(image="web"),
            migration=allocated,
        )
        wire, limit = TlsTransport(credentials[side], CLOCK), Limit(0, CLOCK)
        runtimes = Runtimes({"container": driver})
        context = NodeContext(
            labs[side].host,
            runtimes,
            None,
            None,
            SampleFiles(Path(labs[side].host.state_dir) / "samples"),
            wire,
            limit,
            CLOCK,
        )  # type: ignore[arg-type]  # not asked
        migration = MigrationState("m", "target" if side else "source", "", cold=True)

        allocation = Envelope(
            kind="allocation", name=f"n{side + 1}.a", uid=uids[side], spec=msgspec.Raw(msgspec.json.encode(spec))
        )
        store = CheckpointStore(str(tmp_path / f"n{side + 1}"))
        state = AllocationState(allocation, Checkpoint(migration=migration), store)
        return MigrationContext(state, state.local, migration, context)

    target = ColdTarget(context_of(1, there, msgspec.structs.replace(allocated, peer_uid="node-1")), Prepared())
    await target.open()
    told = msgspec.structs.replace(allocated, peer_uid="node-2", address=target.report.address)
    source = ColdSource(context_of(0, here, told))
    source.start()
    try:
        async with asyncio.timeout(60):
            while source.report.phase not in ("handedOver", "failed"):
                await asyncio.sleep(0.05)
        assert (source.report.phase, target.report.phase) == ("handedOver", "takenOver"), source.report.message
        assert source.report.plan is not None and source.report.plan.mode == "saved"
    finally:
        await source.close()
        await target.close()
    facts = await there.inspect(short_id(uids[1]))
    assert (facts.state, facts.uid, facts.incarnation) == ("suspended", uids[1], 2)
    old, new = here._paths(short_id(uids[0])), there._paths(short_id(uids[1]))
    pages = "pages-1.img"
    assert (new.saved.whole / pages).read_bytes() == (old.saved.whole / pages).read_bytes()
    if disk:
        assert new.disk.read_bytes() == old.disk.read_bytes() and new.disk.stat().st_blocks * 512 < 1 << 20
    else:
        status = (new.upper / "kept").stat()
        assert ((new.upper / "kept").read_text(), status.st_uid) == ("mine\n", 1000)
        deleted = (new.upper / "deleted").stat()
        assert stat.S_ISCHR(deleted.st_mode) and deleted.st_rdev == 0
        assert os.getxattr(new.upper / "replaced", MARK) == b"y"
    record = read_record(new)
    assert record is not None and record.first_user == 0x7800_0000, "its processes know themselves by their users there"
    assert not new.saved.carried.exists()
    for driver, uid in ((here, uids[0]), (there, uids[1])):
        await driver.remove(short_id(uid))
    assert labs[0].leftovers() == labs[1].leftovers() == []
