"""The bucket of a local Ceph cluster for backups, with Object Lock, and the user that has it. Each step looks first.

Its keys are in files that only their owner reads; they are on no command line.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from typing import Any

from weft.contracts.clock import Clock
from weft.launch.local.ceph.layout import BUCKET, CephPlan
from weft.launch.local.ceph.make import wait_answers
from weft.launch.local.commands import run
from weft.launch.local.daemon import write_whole
from weft.objects.errors import DriverFailed

KEYS = ("access_key", "secret_key")
_USER, _SECONDS = "weft-backups", 60.0


async def ensure_bucket(plan: CephPlan, clock: Clock) -> None:
    """Ensure the bucket once the cluster is ready. Raises DriverFailed, TimedOut."""
    await asyncio.to_thread(_ensure_user, plan)
    await wait_answers(clock, "its S3 has the bucket", lambda: _has_bucket(plan))


def _ensure_user(plan: CephPlan) -> None:
    """radosgw-admin draws the keys, so no command line has them."""
    folder = plan.s3_key(KEYS[0]).parent
    folder.mkdir(mode=0o700, exist_ok=True)
    if all(plan.s3_key(name).exists() for name in KEYS):
        return
    admin = ["radosgw-admin", "-c", str(plan.conf), "user"]
    known = json.loads(run([*admin, "list"], timeout_seconds=_SECONDS))
    words = ["info"] if _USER in known else ["create", "--display-name", "weft backups"]
    user = json.loads(run([*admin, *words, "--uid", _USER], timeout_seconds=_SECONDS))
    for name in KEYS:
        write_whole(plan.s3_key(name), user["keys"][0][name].encode())


def _has_bucket(plan: CephPlan) -> bool:
    try:
        boto3, errors = importlib.import_module("boto3"), importlib.import_module("botocore.exceptions")
    except ModuleNotFoundError as missing:
        raise DriverFailed(f"the bucket needs the Python package boto3: {missing}", hint="make install") from None
    access, secret = (plan.s3_key(name).read_text() for name in KEYS)
    s3: Any = boto3.session.Session().client(
        "s3",
        endpoint_url=plan.endpoint,
        region_name="us-east-1",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
    )
    try:
        if BUCKET not in [one["Name"] for one in s3.list_buckets()["Buckets"]]:
            s3.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
    except (errors.BotoCoreError, errors.ClientError):
        return False
    return True
