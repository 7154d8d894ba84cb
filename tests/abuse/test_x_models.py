"""SAFETY X: a model package that would like to run code, or to be trusted."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mainspring.errors import InvalidInput, MainspringError, NotFound, UnsafeFormat
from mainspring.lineage import Foundation
from mainspring.lineage.uploads import Uploads
from mainspring.models import Models, ModelsClient, formats
from mainspring.models.formats.package import describe_file
from mainspring.models.formats.skops.schema import check_skops
from mainspring.records.base import to_json
from mainspring.records.models import Package, PackageFile


class _Payload:
    """Unpickled, it makes the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def _joblib(payload: Any) -> bytes:
    import joblib

    out = io.BytesIO()
    joblib.dump(payload, out, compress=3)
    return out.getvalue()


def _cloudpickle(payload: Any) -> bytes:
    import cloudpickle

    return bytes(cloudpickle.dumps(payload))


def _object_npy(payload: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([payload, None], dtype=object), allow_pickle=True)
    return out.getvalue()


def _zipped(name: str, data: bytes, *, flag: int = 0, bad_crc: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, data)
        archive.writestr("schema.json", b"{}")
    raw = bytearray(out.getvalue())
    at = raw.rfind(b"PK\x01\x02", 0, raw.rfind(b"PK\x01\x02"))
    if flag:
        raw[at + 8] |= flag
    if bad_crc:
        raw[at + 16] ^= 0xFF
    return bytes(raw)


KINDS: dict[str, Callable[[Any], bytes]] = {
    "pickle": pickle.dumps,
    "pickle-0": lambda payload: pickle.dumps(payload, protocol=0),
    "joblib": _joblib,
    "cloudpickle": _cloudpickle,
    "object-npy": _object_npy,
    "torch-zip": lambda payload: _zipped("archive/data.pkl", pickle.dumps(payload)),
    "skops-zip-object-npy": lambda payload: _zipped("1.npy", _object_npy(payload)),
    "zip-bad-crc": lambda payload: _zipped("archive/data.pkl", pickle.dumps(payload), bad_crc=True),
    "zip-encrypted-flag": lambda payload: _zipped("archive/data.pkl", pickle.dumps(payload), flag=1),
}
NAMES = [
    "model.onnx",
    "model.skops",
    "model.pkl",
    "model.joblib",
    "model.bin",
    "model.pt",
    "model.npy",
    "model.json",
    "data.pkl",
]


def _manifest(name: str, data: bytes, form: str, **extra: Any) -> bytes:
    described = describe_file(name, data)
    fields = {
        "format": form,
        "signature": {"inputs": [{"name": "x", "type": "float64"}], "task": "binary", "classes": ["a", "b"]},
        "files": [json.loads(to_json(described))],
        "created_at": "2013-01-01T00:00:00Z",
    }
    return json.dumps(fields | extra).encode()


def _write(folder: Path, name: str, data: bytes, manifest: bytes) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / name).write_bytes(data)
    if name != "model.json":
        (folder / "model.json").write_bytes(manifest)
    return folder


@pytest.mark.parametrize("kind", list(KINDS))
def test_X01_code_in_a_payload_never_runs(kind: str, tmp_path: Path, foundation: Foundation) -> None:
    """Every kind of pickle under every name, through verify, load, fetch, register, list and card: the marker stays absent.

    Seen red three ways: with `pickle.loads` tried on each file first (the marker appears), without the format table's check,
    and without the structural checks (the registry accepts the package).
    """
    marker = tmp_path / "marker"
    data = KINDS[kind](_Payload(marker))
    objects, ops = Uploads(foundation), Models(foundation)
    for name in NAMES:
        for form in ("onnx", "skops", "pickle", "joblib", "torch", "auto"):
            manifest = data if name == "model.json" else _manifest(name, data, form)
            folder = _write(tmp_path / "package", name, data, manifest)
            with pytest.raises(MainspringError) as caught:
                formats.load(folder)
            if name != "model.json":
                assert caught.value.code == "unsafe_format", (name, form)
            files = {path.name: objects.put(body=[path.read_bytes()]) for path in folder.iterdir()}
            tree = objects.create_tree(files=files)
            with pytest.raises(MainspringError):
                ops.register(model="evil", package=tree.digest)
    with pytest.raises(NotFound):
        ops.get_card(model="evil", version=1)
    assert ops.list_models() == []
    assert not marker.exists()
    pickle.loads(pickle.dumps(_Payload(marker)))
    assert marker.exists(), "the payload itself works"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A good skops package of a forest."""
    from sklearn.ensemble import RandomForestClassifier

    x = np.linspace(-1, 1, 60)
    estimator = RandomForestClassifier(3, random_state=0).fit(x[:, None], x > 0)
    signature = formats.infer_signature({"x": x}, task="binary")
    formats.save(estimator, tmp_path / "good", signature=signature, sample={"x": x}, format="skops")
    return tmp_path / "good"


@pytest.mark.parametrize(
    "field", ["trusted_types", "loader_module", "allow_pickle", "trust_remote_code", "_instantiator"]
)
def test_X02_a_package_cannot_ask_for_trust(field: str, package: Path) -> None:
    """Our manifest refuses the field by name (stricter than "ignored and reported": nothing reads on).

    Seen red with `forbid_unknown_fields` off in the decoder.
    """
    manifest = json.loads((package / "model.json").read_bytes())
    for place in (manifest, manifest["signature"], manifest["files"][0]):
        place[field] = ["builtins.eval"]
        (package / "model.json").write_text(json.dumps(manifest))
        for look in (formats.load, formats.verify):
            with pytest.raises(InvalidInput, match="a field that this program does not define") as caught:
                look(package)
            assert caught.value.value == field
        del place[field]


def _rewrite_schema(
    package: Path, change: Callable[[Any], None], *, notes: dict[str, Any] | None = None
) -> None:
    """Edit the skops schema and make the manifest agree, as an author of evil packages would."""
    with zipfile.ZipFile(package / "model.skops") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(entries["schema.json"])
    change(schema)
    entries["schema.json"] = json.dumps(schema).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    (package / "model.skops").write_bytes(out.getvalue())
    manifest = msgspec.json.decode((package / "model.json").read_bytes(), type=Package)
    files: list[PackageFile] = [describe_file("model.skops", out.getvalue())]
    (package / "model.json").write_bytes(
        to_json(msgspec.structs.replace(manifest, files=files, notes=notes or {}))
    )


@pytest.mark.parametrize(
    ("module", "name", "loader"),
    [
        ("os", "system", "FunctionNode"),
        ("builtins", "eval", "TypeNode"),
        ("subprocess", "Popen", "ObjectNode"),
        ("sklearn.utils._testing", "_Raises", "ObjectNode"),
        ("builtins", "str", "MethodNode"),
        ("operator", "attrgetter", "OperatorFuncNode"),
        ("functools", "partial", "PartialNode"),
    ],
)
def test_X02_only_the_loaders_operator_widens_what_skops_may_build(
    module: str, name: str, loader: str, package: Path
) -> None:
    """A node outside our list, with notes that ask to trust it. Seen red with the walk in `skops.schema` skipped."""

    def change(schema: Any) -> None:
        schema["content"]["content"]["evil"] = {
            "__module__": module,
            "__class__": name,
            "__loader__": loader,
            "__id__": 1,
            "content": {},
        }

    _rewrite_schema(
        package, change, notes={"trusted_types": [f"{module}.{name}"], "skops_types": [f"{module}.{name}"]}
    )
    formats.verify(package)
    with pytest.raises(UnsafeFormat, match=r"could run code|not on the loader's list"):
        formats.load(package)


def _vectorizer(texts: list[str]) -> bytes:
    import skops.io
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    fitted = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [0, 1] * (len(texts) // 2))
    data: bytes = skops.io.dumps(fitted)
    return data


@pytest.mark.parametrize("how", ["plainly", "another's id", "another's state", "not said"])
def test_X02_a_vectorizer_that_opens_files_is_refused(how: str) -> None:
    """``input="filename"`` makes a text of a request the name of a file to read. Seen red (plainly) without the look at it, and (ids) with
    a look at the vectorizer's own state alone: skops builds the first node with an id, and gives it for all others."""
    data = _vectorizer(["good day", "bad night"])
    check_skops(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(entries["schema.json"])
    state = next(n for n in _all_nodes(schema) if n.get("__class__") == "TfidfVectorizer")["content"]
    evil = {**state["content"]["input"], "content": '"filename"'}
    first = schema["content"]["content"]
    if how == "plainly":
        state["content"]["input"] = evil
    elif how == "another's id":
        schema["content"]["content"] = {"a": evil, **first}
    elif how == "another's state":
        other = {**state, "content": {**state["content"], "input": {**evil, "__id__": 7}}}
        schema["content"]["content"] = {"a": other, **first}
    else:
        del state["content"]["input"]
    entries["schema.json"] = json.dumps(schema).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(UnsafeFormat, match="names of files"):
        check_skops(out.getvalue())


def _all_nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    for inner in value if isinstance(value, list) else []:
        yield from _all_nodes(inner)


def test_X02_a_schema_that_unpacks_to_millions_of_values_is_refused_unread() -> None:
    """Sixty kilobytes packed, gigabytes as objects. Seen red with the values counted after they were built: 1.6 GB, 19 s."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", '{"__loader__": "JsonNode", "x": [' + "[]," * 20_000_000 + "[]]}")
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeFormat, match="too many nodes"):
            check_skops(out.getvalue())
        assert tracemalloc.get_traced_memory()[1] < 400 << 20
    finally:
        tracemalloc.stop()


def test_X02_a_narrower_policy_refuses_what_the_default_allows(package: Path) -> None:
    formats.load(package)
    with pytest.raises(UnsafeFormat, match="not on the loader's list"):
        formats.load(package, trust=formats.TrustPolicy(skops_types=frozenset({"sklearn.pipeline.Pipeline"})))


def test_X03_the_declared_format_must_match_the_bytes(package: Path) -> None:
    """A good skops file called ONNX is refused, never loaded by another loader."""
    data = (package / "model.skops").read_bytes()
    folder = _write(package.parent / "p", "model.onnx", data, _manifest("model.onnx", data, "onnx"))
    with pytest.raises(UnsafeFormat):
        formats.load(folder)


def _onnx(change: Callable[[Any], None]) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.ones((1, 2), dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["numeric", "w"], ["p"])],
        "g",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [None, 2])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    change(model)
    return bytes(onnx.ModelProto.SerializeToString(model))


def _external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def _external_in_a_subgraph(model: Any) -> None:
    from onnx import helper

    inner = type(model.graph)()
    inner.CopyFrom(model.graph)
    _external(type("M", (), {"graph": inner}))
    model.graph.node.append(helper.make_node("If", ["p"], ["q"], then_branch=inner, else_branch=inner))


def _other_domain(model: Any) -> None:
    model.opset_import.add(domain="com.evil", version=1)


def _other_domain_node(model: Any) -> None:
    model.graph.node[0].domain = "com.microsoft"


def _function(model: Any) -> None:
    model.functions.add(name="f", domain="ai.onnx")


def _loop(model: Any) -> None:
    model.graph.node[0].op_type = "Loop"


def _config(model: Any) -> None:
    model.metadata_props.add(key="ort_config", value='{"session_options": {}}')


CHANGES = {
    _external: "external_data",
    _external_in_a_subgraph: "external_data",
    _other_domain: "operators of domain",
    _other_domain_node: "operators of domain",
    _function: "model-local functions",
    _loop: "without end",
    _config: "session configuration",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__.strip("_"))
def test_X04_onnx_that_reaches_outside_itself_is_refused(change: Any, tmp_path: Path) -> None:
    """Seen red with the matching branch of `onnx.wire` removed. The unchanged model loads."""
    good = _onnx(lambda _: None)
    formats.load(_write(tmp_path / "p", "model.onnx", good, _manifest("model.onnx", good, "onnx")))
    data = _onnx(change)
    with pytest.raises(
        UnsafeFormat, match=CHANGES[change]
    ):  # ours: ONNX Runtime, which refuses some too, is not asked
        formats.load(_write(tmp_path / "p", "model.onnx", data, _manifest("model.onnx", data, "onnx")))


def test_X04_an_ort_flatbuffer_is_refused(tmp_path: Path) -> None:
    good = _onnx(lambda _: None)
    data = good[:4] + b"ORTM" + good[8:]
    with pytest.raises(UnsafeFormat, match="flatbuffer"):
        formats.load(_write(tmp_path / "p", "model.onnx", data, _manifest("model.onnx", data, "onnx")))


def test_X04_damaged_onnx_is_an_error_never_a_crash(tmp_path: Path) -> None:
    """Truncations and byte flips end in our error or in a model that answers; the process lives."""
    good = _onnx(lambda _: None)
    rng = np.random.default_rng(3)
    outcomes = set()
    for i in range(150):
        bad = bytearray(good[: rng.integers(1, len(good))] if i % 3 == 0 else good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        data = bytes(bad)
        try:
            formats.load(_write(tmp_path / "p", "model.onnx", data, _manifest("model.onnx", data, "onnx")))
            outcomes.add("loaded")
        except MainspringError as error:
            outcomes.add(error.code)
    assert "unsafe_format" in outcomes


def test_a_card_shows_markup_as_text(tmp_path: Path, foundation: Foundation, package: Path) -> None:
    """B-flavoured: tags and reasons are data. Seen red with autoescape off."""
    client = ModelsClient(Models(foundation), Uploads(foundation))
    evil = "<script>alert(1)</script> | [x](javascript:1) <img src=x onerror=y>"
    client.register_folder(package, model="delay", tags={"caveats": evil, "note": evil})
    client.operations.set_alias(model="delay", alias="champion", version=1, reason=evil)
    card = client.operations.get_card(model="delay", version=1)
    for text in (card.html, card.markdown):
        assert "alert(1)" in text.replace("\\", "")
        assert "<script" not in text
        assert "<img" not in text
    assert "[x](javascript" not in card.markdown
