"""A function as Lambda's API describes one. Pure.

Source: AWS Lambda API reference, "FunctionConfiguration"."""

from __future__ import annotations

import base64
import datetime
from typing import Any

from weft.contracts.driver.function import LATEST
from weft.gateway.function.definition.names import make_arn
from weft.informer.view import Item
from weft.kinds.function import FunctionSpec, FunctionStatus
from weft.kinds.function_version import FunctionVersionSpec, FunctionVersionStatus
from weft.kinds.parts.function_code import FunctionCode

MIB = 2**20
_STATES = {"Ready": "Active", "Failed": "Failed"}


def describe_function(item: Item, qualifier: str = "") -> dict[str, Any]:
    """Describe the newest spec."""
    envelope, spec, status = item.envelope, item.spec(FunctionSpec), item.status(FunctionStatus)
    document = _describe(item, spec, envelope.name, LATEST, qualifier, spec.description)
    state = _STATES.get(status.phase, "Pending")
    document["State"] = state
    if status.observed_generation < envelope.generation:
        document["LastUpdateStatus"] = "InProgress"
    else:
        document["LastUpdateStatus"] = "Failed" if status.reason and state != "Pending" else "Successful"
    if status.reason:
        where = "StateReason" if state != "Active" else "LastUpdateStatusReason"
        document[where], document[f"{where}Code"] = f"{status.reason}: {status.message}", "InternalError"
    return document


def describe_version(item: Item) -> dict[str, Any]:
    """Describe a published version."""
    spec, status = item.spec(FunctionVersionSpec), item.status(FunctionVersionStatus)
    document = _describe(item, spec, spec.function, str(spec.number), str(spec.number), spec.description)
    document["State"] = _STATES.get(status.phase, "Pending")
    document["LastUpdateStatus"] = "Successful"
    return document


def describe_aliases(item: Item) -> list[dict[str, Any]]:
    envelope = item.envelope
    out = []
    for name, weights in sorted(item.spec(FunctionSpec).aliases.items()):
        shares = weights if isinstance(weights, dict) else {str(weights): 1.0}
        main = max(shares, key=lambda number: shares[number])
        alias: dict[str, Any] = {
            "AliasArn": make_arn(envelope.project or "", envelope.name, name),
            "Name": name,
            "FunctionVersion": main,
            "Description": "",
        }
        if others := {number: share for number, share in shares.items() if number != main}:
            alias["RoutingConfig"] = {"AdditionalVersionWeights": others}
        out.append(alias)
    return out


def _describe(
    item: Item, code: FunctionCode, name: str, version: str, qualifier: str, description: str
) -> dict[str, Any]:
    envelope = item.envelope
    made = datetime.datetime.fromtimestamp(envelope.created_at, datetime.UTC)
    document: dict[str, Any] = {
        "FunctionName": name,
        "FunctionArn": make_arn(envelope.project or "", name, qualifier),
        "Handler": code.handler,
        "CodeSize": code.code_size,
        "Description": description,
        "Timeout": max(1, round(code.timeout)),
        "MemorySize": max(1, code.memory // MIB),
        "LastModified": made.strftime("%Y-%m-%dT%H:%M:%S.000+0000"),
        "CodeSha256": base64.b64encode(bytes.fromhex(code.code)).decode() if code.code else "",
        "Version": version,
        "Environment": {"Variables": dict(code.env)},
        "PackageType": "Image" if code.image else "Zip",
        "Architectures": ["x86_64"],
        "EphemeralStorage": {"Size": max(1, code.scratch // MIB)},
        "RevisionId": f"{envelope.uid}.{envelope.generation}",
    }
    if not code.image:
        document["Runtime"] = "provided.al2023" if code.runtime == "provided" else code.runtime
    return document
