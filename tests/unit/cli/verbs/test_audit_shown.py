"""What `weft audit list` shows of a record where the terminal is narrow."""

from __future__ import annotations

import msgspec

from weft.cli.output.table import draw_table
from weft.cli.verbs import audit
from weft.trust.audit_chain import AuditRecord


def test_a_list_80_columns_wide_keeps_the_outcome_beside_a_token_s_long_name() -> None:
    record = msgspec.convert(
        {
            "sequence": 1,
            "at": "2026-11-24T21:00:00.000Z",
            "actor": {"kind": "person", "name": "token:access-583392a5-of-the-nightly-build", "id": "x"},
            "verb": "create",
            "project": "physics",
            "objects": [{"kind": "vm", "name": "a-machine-with-a-long-name", "uid": "u"}],
            "outcome": "refused",
            "reason": "forbidden",
        },
        AuditRecord,
        strict=False,
    )
    head, row = draw_table(audit._COLUMNS, [audit._row(record)], 80).splitlines()
    assert head.split()[:5] == ["TIME", "ACTOR", "VERB", "OBJECT", "OUTCOME"] and len(row) <= 80
    assert "token:acce" in row and "…" in row and "physics/vm/" in row and " create " in row and "refused" in row
