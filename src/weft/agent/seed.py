"""The seed disk: how user data reaches a guest. A plain tar, attached as a raw read-only disk with serial SERIAL."""

from __future__ import annotations

import io
import tarfile

from weft.agent.known import Wanted

SERIAL = "weft-seed"


def build_seed(wanted: Wanted) -> bytes:
    """A tar with ``./user-data`` and ``./meta-data``; the same bytes for the same allocation."""
    ref = wanted.spec.workload
    meta = f"instance-id: {ref.uid}\nlocal-hostname: {ref.name}\n"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in (("./user-data", wanted.spec.user_data), ("./meta-data", meta)):
            data = text.encode()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()
