"""Generate the API page from the comments in proto/modelsat/v1."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from tools.docs.markdown import cell, code, table

PROTO = Path(__file__).resolve().parents[2] / "proto"
PACKAGE = "modelsat.v1"
# Field numbers in descriptor.proto; the path of a comment consists of them.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, NESTED, METHODS, VALUES = 2, 3, 2, 2
Comments = Mapping[tuple[int, ...], str]
HEAD = """# API

The gRPC API of the server, generated from the comments in proto/modelsat/v1. Reflection is on, so
`grpcurl` can list it too. See also [Status codes](status-codes.md) and
[How a candidate is chosen](../explanation/decisions.md).

"""


def page() -> str:
    """Return the page: services first, then every message and enum, file by file."""
    files = [(file, _comments(file)) for file in _files()]
    services = [
        _service(service, notes, (SERVICES, i))
        for file, notes in files
        for i, service in enumerate(file.service)
    ]
    types = [section for file, notes in files for section in _types(file, notes)]
    return HEAD + "\n".join(services + types)


def _files() -> list[FileDescriptorProto]:
    """Return descriptors of the .proto files, with comments, services first."""
    from grpc_tools import protoc

    sources = sorted((PROTO / PACKAGE.replace(".", "/")).glob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        flags = [f"-I{PROTO}", f"-I{well_known}", "--include_source_info"]
        code = protoc.main(["protoc", *flags, f"--descriptor_set_out={out}", *map(str, sources)])
        if code:
            raise RuntimeError(f"protoc failed with exit code {code}")
        descriptors = FileDescriptorSet.FromString(out.read_bytes())
    return sorted(descriptors.file, key=lambda file: (not file.service, file.name))


def _comments(file: FileDescriptorProto) -> Comments:
    return {tuple(at.path): at.leading_comments for at in file.source_code_info.location}


def _service(service: ServiceDescriptorProto, notes: Comments, path: tuple[int, ...]) -> str:
    parts = [f"## {service.name}\n", notes.get(path, "")]
    for i, method in enumerate(service.method):
        request = _kind(method.input_type, method.client_streaming)
        response = _kind(method.output_type, method.server_streaming)
        parts += [f"### {service.name}.{method.name}\n", f"{request} -> {response}\n"]
        parts.append(notes.get((*path, METHODS, i), ""))
    return "\n".join(parts)


def _types(file: FileDescriptorProto, notes: Comments) -> Iterator[str]:
    for i, message in enumerate(file.message_type):
        yield from _message(message, notes, (MESSAGES, i), "")
    for i, enum in enumerate(file.enum_type):
        yield _enum(enum, notes, (ENUMS, i), "")


def _message(
    message: DescriptorProto, notes: Comments, path: tuple[int, ...], outer: str
) -> Iterator[str]:
    name = outer + message.name
    rows = [
        [str(f.number), code(f.name), _type(f, message), cell(notes.get((*path, FIELDS, i), ""))]
        for i, f in enumerate(message.field)
    ]
    body = table(["number", "field", "type", "meaning"], rows) if rows else "No fields.\n"
    yield f"## {name}\n\n{cell(notes.get(path, ''))}\n\n{body}"
    for i, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _message(nested, notes, (*path, NESTED, i), f"{name}.")
    for i, enum in enumerate(message.enum_type):
        yield _enum(enum, notes, (*path, MESSAGES, i), f"{name}.")  # 4 is enum_type here


def _enum(enum: EnumDescriptorProto, notes: Comments, path: tuple[int, ...], outer: str) -> str:
    rows = [
        [str(v.number), code(v.name), cell(notes.get((*path, VALUES, i), ""))]
        for i, v in enumerate(enum.value)
    ]
    about = cell(notes.get(path, ""))
    return f"## {outer}{enum.name}\n\n{about}\n\n{table(['number', 'value', 'meaning'], rows)}"


def _type(field: FieldDescriptorProto, of: DescriptorProto) -> str:
    entry = field.type_name.rpartition(".")[2]
    maps = {n.name: n for n in of.nested_type if n.options.map_entry}
    if entry in maps:
        key, value = maps[entry].field
        return f"map of {_type(key, of)} to {_type(value, of)}"
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    words = ["repeated"] if repeated else ["optional"] if field.proto3_optional else []
    scalar = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    words.append(_kind(field.type_name) if field.type_name else scalar)
    if field.HasField("oneof_index") and not field.proto3_optional:
        words.append(f"(one of {of.oneof_decl[field.oneof_index].name})")
    return " ".join(words)


def _kind(type_name: str, streaming: bool = False) -> str:
    """Return a link to the section of a type of this API, or the full name of another type."""
    name = type_name.lstrip(".")
    own = name.removeprefix(f"{PACKAGE}.")
    anchor = own.lower().replace(".", "")
    shown = f"[{own}](#{anchor})" if own != name else f"`{name}`"
    return f"stream of {shown}" if streaming else shown
