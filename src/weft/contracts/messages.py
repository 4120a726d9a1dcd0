"""Protocol buffers' messages from a table of names and numbers, for those who speak with a gRPC service of others: there is
no generated code to keep. Needs the package ``protobuf``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# FieldDescriptorProto.Type
_SCALARS = {"bytes": 12, "string": 9, "bool": 8, "int64": 3, "uint64": 4, "int32": 5, "uint32": 13}
_MESSAGE = 11


def make_messages(package: str, table: Mapping[str, str]) -> dict[str, Any]:
    """A class for each message of ``table``: name → its fields, "name type number" each, separated by commas; "*" before the type
    repeats, "|" is one of the message's single choice. ``package`` is a name that nobody else here has; it never travels."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in table.items():
        message = file.message_type.add(name=name)
        for text in filter(None, fields.split(",")):
            label, kind, number = text.split()
            field = message.field.add(name=label, number=int(number), label=3 if kind[0] == "*" else 1)
            if kind[0] == "|":
                if not message.oneof_decl:
                    message.oneof_decl.add(name="choice")
                field.oneof_index = 0
            kind = kind.lstrip("*|")
            field.type = _SCALARS.get(kind, _MESSAGE)
            if kind not in _SCALARS:
                field.type_name = f".{package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in table}
