"""The OpenAPI 3.1 document, made from the same declarations as the routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mainspring.operations import Kind, Operation, operations_of
from mainspring.server.routes import PREFIX

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {k: {"type": "string"} for k in ("code", "message", "value", "place", "next_step")},
        }
    },
}


def build_document(rooms: Mapping[str, type], *, version: str) -> dict[str, Any]:
    """The whole API. Paths hold the project; errors share one shape."""
    operations = [op for room in rooms.values() for op in operations_of(room).values()]
    kinds = [t for op in operations for t in _list_json_types(op)]
    _, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "Mainspring", "version": version},
        "paths": {f"{PREFIX}/{{project}}/{op.room}/{op.name}": _describe_path(op) for op in operations},
        "components": {
            "schemas": components | {"Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _list_json_types(operation: Operation) -> list[Any]:
    kinds = [operation.types[n] for n in operation.parameters if n != "body"]
    return kinds + ([operation.returns] if operation.policy.kind in {Kind.UNARY, Kind.UPLOAD} else [])


def _schema_of(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    return schema


def _describe_path(operation: Operation) -> dict[str, Any]:
    posts = operation.policy.changes or operation.policy.kind is Kind.UPLOAD
    named = [n for n in operation.parameters if n != "body"]
    required = [n for n in named if operation.parameters[n].default is operation.parameters[n].empty]
    project = {"name": "project", "in": "path", "required": True, "schema": {"type": "string"}}
    entry: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.room],
        "summary": operation.doc.split("\n")[0],
        "description": operation.doc,
        "parameters": [project],
        "x-role": operation.policy.role.name.lower(),
        "x-deadline-seconds": operation.policy.deadline_s,
        "responses": {
            "200": _describe_answer(operation),
            "default": {
                "description": "error",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if posts and operation.policy.kind is not Kind.UPLOAD:
        schema = {
            "type": "object",
            "properties": {n: _schema_of(operation.types[n]) for n in named},
            "required": required,
            "additionalProperties": False,
        }
        entry["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        if operation.policy.keyed:
            entry["parameters"].append(
                {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 200}}
            )
    else:
        entry["parameters"] += [
            {"name": n, "in": "query", "required": n in required, "schema": _schema_of(operation.types[n])}
            for n in named
        ]
        if operation.policy.kind is Kind.UPLOAD:
            entry["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    return {"post" if posts else "get": entry}


def _describe_answer(operation: Operation) -> dict[str, Any]:
    if operation.policy.kind is Kind.DOWNLOAD:
        return {"description": "bytes", "content": {"application/octet-stream": {}}}
    return {
        "description": "result",
        "content": {"application/json": {"schema": _schema_of(operation.returns)}},
    }
