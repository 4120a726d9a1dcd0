"""FunctionVersion: an unchangeable copy of a function as it was published. Its name is the function's with its number, which
grows and is never used twice; it is deleted with its function."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, size, text
from weft.kinds.parts.function_code import (
    FUNCTIONS_BY_NETWORK,
    FunctionCode,
    check_code,
    code_references,
    networks_of_item,
)
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Lifetime, uid_of_owner
from weft.objects.schema import field


class FunctionVersionSpec(FunctionCode, msgspec.Struct, kw_only=True):
    function: Annotated[str, field("Function of this version", change="never", name=True)]
    number: Annotated[int, field("Number of the version", change="never", ge=1)]
    description: Annotated[str, field("What is new in the version", change="never", max_length=200)] = ""


class FunctionVersionStatus(msgspec.Struct, kw_only=True):
    """Status of a version, as a function's."""

    phase: Literal["Pending", "Preparing", "Ready", "Failed"] = "Pending"
    reason: str = ""
    message: str = ""
    digest: str = ""  # digest of its recipe
    nodes: list[str] = []


VERSIONS_BY_FUNCTION = Index("function versions by function")

FUNCTION_VERSION = Kind(
    name="functionversion",
    plural="functionversions",
    title="function version",
    summary="A published version of a function",
    spec=FunctionVersionSpec,
    status=FunctionVersionStatus,
    indexes={VERSIONS_BY_FUNCTION: uid_of_owner, FUNCTIONS_BY_NETWORK: networks_of_item},
    references=code_references(),
    access=Access(readers="project", writer="fabric", removable=True, status_writer="gateway"),
    admission=Admission(check=check_code, uploads=lambda spec: [spec.code] if spec.code else []),
    display=Display(
        columns=(
            NAME,
            Column("FUNCTION", text("spec.function")),
            Column("VERSION", text("spec.number"), align="right"),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("RUNTIME", lambda obj: obj["spec"].get("image") or obj["spec"].get("runtime") or "–", flexible=True),
            Column("MEMORY", size("spec.memory"), align="right"),
            Column("DESCRIPTION", text("spec.description", ""), flexible=True),
            Column("AUTHOR", text("created_by", "–")),
            AGE,
            Column("NOTE", text("status.message", ""), flexible=True),
        ),
    ),
    lifetime=Lifetime(goes_with_owner=True),
)
