"""Checks a skops file before skops reads it: it must be a zip of one JSON schema and plain arrays that names only trusted types.

This module's own walk and list decide; skops' defaults are not used (its audit and its loader have disagreed before:
CVE-2025-54412, -54413, -54886). Nodes that call something (methods, partials, operators, reduce) are not in the table; a function may
be named only if it is on the list.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from mainspring.errors import UnsafeFormat
from mainspring.models.formats.trust import DEFAULT, FUNCTIONS, TrustPolicy

_SCALARS = frozenset(f"numpy.{n}" for n in ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool", "bool_", "str_", "intp", "longlong", "ulonglong"])  # fmt: skip
_PLAIN = frozenset(f"builtins.{n}" for n in ["str", "int", "float", "bool", "NoneType"])

LOADERS: dict[str, frozenset[str] | None] = {
    "DictNode": frozenset({"builtins.dict", "sklearn.utils._bunch.Bunch"}),
    "ListNode": frozenset({"builtins.list"}),
    "TupleNode": frozenset({"builtins.tuple"}),
    "SetNode": frozenset({"builtins.set"}),
    "SliceNode": frozenset({"builtins.slice"}),
    "JsonNode": _PLAIN,
    # The last are what a selector of columns names: abstract, so no value is of them.
    "TypeNode": _PLAIN | _SCALARS | {"builtins.object", "numpy.number", "numpy.integer", "numpy.floating"},
    "DTypeNode": frozenset({"numpy.dtype"}),
    "NdArrayNode": frozenset({"numpy.ndarray"}) | _SCALARS,
    "RandomStateNode": frozenset({"numpy.random.mtrand.RandomState"}),
    "RandomGeneratorNode": frozenset({"numpy.random._generator.Generator"}),
    "SparseMatrixNode": frozenset(
        f"scipy.sparse._{k}.{k}_{s}" for k in ("csr", "csc") for s in ("matrix", "array")
    ),
    "FunctionNode": FUNCTIONS,  # a reference by name; rebuilding calls nothing
    "CachedNode": None,  # a reference to another node, with no content of its own
    "ObjectNode": frozenset(),  # the trust policy's list
    "TreeNode": frozenset(),
    "LossNode": frozenset(),
}
"""Node kinds that are rebuilt, and the types each may name; an empty set means the trust policy's."""

READERS = frozenset(f"sklearn.feature_extraction.text.{n}Vectorizer" for n in ("Count", "Hashing", "Tfidf"))
"""Types that, by their parameter ``input``, may take a text for the name of a file and open it: it must be ``content``."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)

_TRUSTED = frozenset({"ObjectNode", "TreeNode", "LossNode"})
_MAX_NODES, _MAX_DEPTH, _MAX_SCHEMA = 5_000_000, 200, 256 << 20


def check_skops(data: bytes, *, trust: TrustPolicy = DEFAULT) -> list[str]:
    """Refuse anything but trusted, plain data; returns the type names the file uses (all of them trusted)."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _check_archive(archive, trust)
    except (
        zipfile.BadZipFile,
        json.JSONDecodeError,
        UnicodeDecodeError,
        NotImplementedError,
        EOFError,
        ValueError,
        RecursionError,
        OSError,
    ) as error:
        raise _refuse(f"these bytes are not a skops file: {str(error)[:200]}") from None


def _check_archive(archive: zipfile.ZipFile, trust: TrustPolicy) -> list[str]:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names) or "schema.json" not in names:
        raise _refuse("not a skops file: it needs one schema.json and no name twice")
    if sum(entry.file_size for entry in entries) > trust.max_bytes:
        raise _refuse("the file unpacks to more than the loader allows")
    for entry in entries:
        if entry.flag_bits & 0x1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refuse(f"an encrypted or oddly packed entry: {entry.filename!r}")
        if entry.filename.endswith(".npy"):
            _check_array(archive, entry)
        elif entry.filename.endswith(".npz"):
            _check_sparse(archive.read(entry), trust)
        elif entry.filename != "schema.json":
            raise _refuse(f"only arrays belong in a skops file, not {entry.filename!r}")
    if archive.getinfo("schema.json").file_size > _MAX_SCHEMA:
        raise _refuse("the schema is too large")
    raw = archive.read("schema.json")
    # Counted before parsing: twenty million empty lists are sixty kilobytes in the zip, and gigabytes in memory. First with the texts,
    # which is fast and counts too many, then without them.
    if _count_marks(raw) > _MAX_NODES and _count_marks(_STRING.sub(b"", raw)) > _MAX_NODES:
        raise _refuse("the schema holds too many nodes")
    schema = json.loads(raw)
    types = _walk(schema, trust)
    if types & READERS and not _reads_no_files(schema):
        raise _refuse("a vectorizer that takes texts for names of files, and would open them")
    archive.testzip()
    return sorted(types)


def _count_marks(text: bytes) -> int:
    """An upper bound of how many values a JSON document holds."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _walk(schema: Any, trust: TrustPolicy) -> set[str]:
    """Check that each node's loader is in the table and its type trusted for that loader; returns the types."""
    if not isinstance(schema, dict) or "__loader__" not in schema:
        raise _refuse("the schema describes no object")
    types: set[str] = set()
    stack: list[tuple[Any, int]] = [(schema, 0)]
    count = 0
    while stack:
        value, depth = stack.pop()
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_NODES:
            raise _refuse("the schema is nested too deeply or holds too many nodes")
        if isinstance(value, dict):
            if "__loader__" in value or "__class__" in value or "__module__" in value:
                types.update(_check_node(value, trust))
            stack.extend((child, depth + 1) for child in value.values())
        elif isinstance(value, list):
            stack.extend((child, depth + 1) for child in value)
    return types


def _reads_no_files(schema: Any) -> bool:
    """Whether the state of every vectorizer has ``input='content'``, in the plain form that skops writes.

    skops builds only the first node with an id; for a later one with the same id it returns that object, whatever the later node
    says. So every node with an id that was checked here must pass the same check.
    """
    nodes = list(_list_nodes(schema))
    states, inputs = set(), set()
    for node in nodes:
        if f"{node.get('__module__')}.{node.get('__class__')}" in READERS:
            state = node.get("content")
            plain = node.get("__loader__") == "ObjectNode" and isinstance(state, dict)
            if not plain or state is None or not _takes_content(state):
                return False
            states.add(state.get("__id__"))
            inputs.add(state["content"]["input"].get("__id__"))
    if not all(isinstance(ident, int) for ident in states | inputs):
        return False
    return all(
        (n.get("__id__") not in states or _takes_content(n))
        and (n.get("__id__") not in inputs or _is_content(n))
        for n in nodes
    )


def _takes_content(state: Any) -> bool:
    return (
        isinstance(state, dict)
        and state.get("__loader__") == "DictNode"
        and isinstance(state.get("content"), dict)
        and _is_content(state["content"].get("input"))
    )


def _is_content(node: Any) -> bool:
    return (
        isinstance(node, dict) and node.get("__loader__") == "JsonNode" and node.get("content") == '"content"'
    )


def _list_nodes(schema: Any) -> Iterator[dict[str, Any]]:
    stack = [schema]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if isinstance(value.get("__id__"), list | dict):
                raise _refuse("an id of a node is no number")
            if "__loader__" in value:
                yield value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def _check_node(node: dict[str, Any], trust: TrustPolicy) -> set[str]:
    loader, name = node.get("__loader__"), f"{node.get('__module__')}.{node.get('__class__')}"
    if not isinstance(loader, str) or loader not in LOADERS:
        raise _refuse(f"a node of kind {loader!r} ({name}) could run code", value=name)
    allowed = trust.skops_types if loader in _TRUSTED else LOADERS[loader]
    if allowed is None:
        return set()
    if name not in allowed:
        raise _refuse(f"type {name!r} is not on the loader's list for {loader}", value=name)
    if loader == "FunctionNode" and "content" in node:
        raise _refuse("a function named in the way of skops' first protocol, which reads another field")
    return {name}


def _check_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Refuse an array of objects, which is a pickle, or one whose header claims more bytes than the entry has."""
    import numpy as np

    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        reader = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = reader(file)
        if dtype.hasobject:
            raise _refuse(f"array {entry.filename!r} holds pickled objects")
        if int(np.prod(shape, dtype=object)) * dtype.itemsize > entry.file_size:
            raise _refuse(f"array {entry.filename!r} claims more than it holds")


def _check_sparse(data: bytes, trust: TrustPolicy) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as inner:
        if sum(entry.file_size for entry in inner.infolist()) > trust.max_bytes:
            raise _refuse("the file unpacks to more than the loader allows")
        for entry in inner.infolist():
            if not entry.filename.endswith(".npy"):
                raise _refuse(f"only arrays belong in a sparse matrix, not {entry.filename!r}")
            _check_array(inner, entry)


INSTEAD = {
    "sklearn.svm._classes.SVC": "Use LinearSVC in CalibratedClassifierCV, or Nystroem with LogisticRegression.",
    "sklearn.svm._classes.NuSVC": "Use LinearSVC in CalibratedClassifierCV, or Nystroem with LogisticRegression.",
    "sklearn.svm._classes.SVR": "Use KernelRidge, or Nystroem with Ridge.",
    "sklearn.svm._classes.OneClassSVM": "Use IsolationForest, or a kernel that has a name.",
    "sklearn.svm._classes.NuSVR": "Use KernelRidge, or Nystroem with Ridge.",
}
"""What to fit instead of the types that are left out on purpose."""


def _refuse(why: str, *, value: object = None) -> UnsafeFormat:
    return UnsafeFormat(
        why,
        value=value,
        place="model.skops",
        next_step=INSTEAD.get(
            str(value), "Only the operator of the loader can widen what is trusted (TrustPolicy.skops_types)."
        ),
    )
