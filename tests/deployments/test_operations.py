from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mainspring.deployments import Deploy, bundle
from mainspring.deployments.trial import try_package
from mainspring.errors import Conflict, InvalidInput, NotFound
from mainspring.lineage import Foundation, Lineage
from mainspring.operations import Role, acting, operations_of
from mainspring.records.base import Selector, from_json, to_json
from mainspring.records.models import Column, ModelVersion, Signature, Task
from mainspring.records.serving import RouteTable, Shadow, Target, table_digest
from mainspring.serving.bundle import STATE_FILE, State
from mainspring.storage import failpoints

X = Column(name="x", type="float64")


class Registry:
    """Versions of one model, with real package trees in the object store (their payloads are not loaded by deploy)."""

    def __init__(self, base: Foundation) -> None:
        self._base = base
        self._versions: dict[int, ModelVersion] = {}

    def add(
        self,
        version: int,
        *,
        inputs: list[Column] | None = None,
        task: Task = Task.BINARY,
        classes: tuple[str, ...] = ("0", "1"),
    ) -> ModelVersion:
        with self._base.objects.writing() as writer:
            tree = writer.tree(
                {
                    "model.json": writer.put(f"version {version}".encode()),
                    "model.onnx": writer.put(b"payload %d" % version),
                }
            )
        self._versions[version] = ModelVersion(
            model="m", version=version, package=tree.digest, format="onnx", created_at=datetime(2013, 1, 1, tzinfo=UTC), created_by="t",
            signature=Signature(inputs=inputs or [X], task=task, classes=list(classes)),
        )  # fmt: skip
        return self._versions[version]

    def get_version(self, model: str, selector: Selector = "latest") -> ModelVersion:
        number = max(self._versions) if selector in {"latest", "champion"} else int(selector)
        if model != "m" or number not in self._versions:
            raise NotFound("no such version", value=f"{model}@{selector}")
        return self._versions[number]

    def target(self, version: int, **options: Any) -> Target:
        return Target(model="m", version=version, package=self._versions[version].package, **options)

    def shadow(self, version: int, name: str, **options: Any) -> Shadow:
        return Shadow(
            model="m", version=version, package=self._versions[version].package, name=name, **options
        )


@pytest.fixture
def base(foundation_on_each_engine: Foundation) -> Foundation:
    return foundation_on_each_engine


@pytest.fixture
def registry(base: Foundation) -> Registry:
    found = Registry(base)
    for version in (1, 2, 3):
        found.add(version)
    return found


@pytest.fixture
def room(base: Foundation, registry: Registry) -> Deploy:
    return Deploy(base, registry)


@pytest.fixture(autouse=True)
def _disarmed() -> Any:
    yield
    failpoints.arm("")


def table(base: Foundation) -> RouteTable:
    found: RouteTable = from_json((base.home / "bundle" / "routes.json").read_bytes(), RouteTable)
    return found


def test_a_deployment_is_written_to_the_bundle(base: Foundation, room: Deploy, registry: Registry) -> None:
    room.deploy(deployment="delay", model="m", version=1, reason="first")
    written = table(base)
    assert written.digest == table_digest(written)
    assert [(t.version, t.role, t.weight) for t in written.deployments[0].targets] == [(1, "champion", 1.0)]
    package = base.home / "bundle" / "packages" / registry.get_version(model="m", selector="1").package
    assert (package / "model.onnx").read_bytes() == b"payload 1"
    assert room.get_deployment(name="delay") == room.list_deployments()[0] == written.deployments[0]


def test_numbers_grow_and_equal_routes_change_nothing(base: Foundation, room: Deploy) -> None:
    room.deploy(deployment="a", model="m", version=1, reason="r")
    first = table(base).number
    room.deploy(deployment="b", model="m", version=2, reason="r")
    room.deploy(deployment="b", model="m", version=2, reason="again")
    assert table(base).number == first + 1
    assert [c.number for c in room.list_changes(name="b")] == [first + 1]
    assert room.publish().written is False


def test_each_change_is_an_event_with_edges_and_history(base: Foundation, room: Deploy) -> None:
    with acting("ann", role=Role.OPERATOR):
        room.deploy(deployment="delay", model="m", version=1, reason="first")
        room.deploy(deployment="delay", model="m", version=2, reason="better")
    newest, oldest = room.list_changes(name="delay")
    assert (newest.actor, newest.reason) == ("ann", "better")
    assert oldest.routes is not None
    assert oldest.routes.targets[0].version == 1
    lineage = Lineage(base)
    events = lineage.list_events(subject="deployment:delay").items
    assert [e.kind for e in events] == ["deployment.routed"] * 2
    assert events[0].id == newest.event
    assert events[0].data["from"]["targets"][0]["version"] == 1
    assert {e.source for e in lineage.get_origin(ref="deployment:delay").edges} == {
        "model_version:m@1",
        "model_version:m@2",
    }
    assert base.ledger.verify().ok


def test_a_canary_with_its_shadow_and_back(base: Foundation, room: Deploy, registry: Registry) -> None:
    frozen = registry.shadow(1, "frozen")
    room.set_routes(
        deployment="delay",
        targets=[registry.target(2, weight=0.9), registry.target(3, weight=0.1, role="canary")],
        shadows=[registry.shadow(2, "champion", on="canary"), registry.shadow(3, "candidate"), frozen],
        reason="canary",
    )
    after = room.deploy(deployment="delay", model="m", version=2, reason="rolled back")
    assert [t.version for t in after.targets] == [2]
    assert after.shadows == [frozen]


@pytest.mark.parametrize(
    "make",
    [
        lambda r: ([r.target(1, role="canary")], []),
        lambda r: ([r.target(1), r.target(2)], []),
        lambda r: ([r.target(1, weight=0.5), r.target(2, weight=0.4, role="canary")], []),
        lambda r: ([r.target(1, weight=1.5), r.target(2, weight=-0.5, role="canary")], []),
        lambda r: ([], []),
        lambda r: ([r.target(1)], [r.shadow(2, "s"), r.shadow(3, "s")]),
        lambda r: ([r.target(1)], [r.shadow(2, f"s{i}") for i in range(17)]),
        lambda r: ([Target(model="m", version=1, package="0" * 64)], []),
        lambda r: ([r.target(1)], [r.shadow(9, "s")]),
        lambda r: ([r.target(1)], [r.shadow(2, "../s")]),
    ],
)
def test_routes_that_cannot_be_right_are_refused(
    base: Foundation, room: Deploy, registry: Registry, make: Callable[[Registry], Any]
) -> None:
    registry.add(9, inputs=[X, Column(name="y", type="float64")])
    targets, shadows = make(registry)
    with pytest.raises(InvalidInput):
        room.set_routes(deployment="delay", targets=targets, shadows=shadows, reason="r")
    assert room.list_deployments() == []
    assert not (base.home / "bundle" / "routes.json").exists()


OTHERS = {
    "regression": ({"task": Task.REGRESSION, "classes": ()}, "its task is regression, not binary"),
    "order": ({"classes": ("1", "0")}, r"its classes are \['1', '0'\], not \['0', '1'\]"),
    "more": ({"task": Task.MULTICLASS, "classes": ("0", "1", "2")}, "its task is multiclass, not binary"),
}


@pytest.mark.parametrize("other", list(OTHERS))
def test_a_deployment_goes_on_answering_the_same_question(
    base: Foundation, room: Deploy, registry: Registry, other: str
) -> None:
    """Seen red without ``_check_same_question``: a regression model took over a binary deployment. The difference is named, and nothing
    changes."""
    options, difference = OTHERS[other]
    registry.add(9, **options)  # type: ignore[arg-type]
    room.deploy(deployment="delay", model="m", version=1, reason="r")
    before, number = room.get_deployment(name="delay"), table(base).number
    for attempt in (
        lambda: room.deploy(deployment="delay", model="m", version=9, reason="r"),
        lambda: room.set_routes(deployment="delay", targets=[registry.target(9)], reason="r"),
        lambda: room.set_routes(
            deployment="delay",
            targets=[registry.target(1, weight=0.9), registry.target(9, weight=0.1, role="canary")],
            reason="r",
        ),
        lambda: room.set_routes(
            deployment="delay", targets=[registry.target(1)], shadows=[registry.shadow(9, "s")], reason="r"
        ),
    ):
        with pytest.raises(InvalidInput, match=difference) as caught:
            attempt()
        assert caught.value.next_step
    assert room.get_deployment(name="delay") == before
    assert table(base).number == number
    room.deploy(deployment="another", model="m", version=9, reason="a name of its own")


def test_shadows_that_do_not_fit_the_new_champion_end(room: Deploy, registry: Registry) -> None:
    """Seen red with shadows kept unseen: the server then refused the whole deployment."""
    wide = [X, Column(name="y", type="float64")]
    for version in (7, 8):
        registry.add(version, inputs=wide)
    shadows = [registry.shadow(8, "wide"), registry.shadow(2, "narrow")]
    room.set_routes(deployment="delay", targets=[registry.target(7)], shadows=shadows, reason="r")
    assert [s.name for s in room.deploy(deployment="delay", model="m", version=1, reason="r").shadows] == [
        "narrow"
    ]


@pytest.mark.parametrize("damage", ["byte", "shorter", "missing", "extra", "link"])
def test_publishing_again_mends_a_damaged_package(
    base: Foundation, room: Deploy, registry: Registry, damage: str
) -> None:
    """And shows the route table anew, so that servers try again. Seen red with a folder that is there taken for good."""
    room.deploy(deployment="delay", model="m", version=1, reason="r")
    package = base.home / "bundle" / "packages" / registry.get_version(model="m", selector="1").package
    payload = package / "model.onnx"
    if damage == "byte":
        payload.write_bytes(b"Payload 1")
    elif damage == "shorter":
        payload.write_bytes(b"")
    elif damage == "missing":
        payload.unlink()
    elif damage == "extra":
        (package / "more").write_bytes(b"x")
    else:
        payload.rename(base.home / "elsewhere")
        payload.symlink_to(base.home / "elsewhere")
    before = (base.home / "bundle" / "routes.json").stat()
    assert room.publish().written
    assert payload.read_bytes() == b"payload 1"
    assert not payload.is_symlink()
    assert {p.name for p in package.iterdir()} == {"model.json", "model.onnx"}
    after = (base.home / "bundle" / "routes.json").stat()
    assert (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns)
    assert {p.name for p in package.parent.iterdir()} == {package.name}
    assert not room.publish().written


def test_a_version_that_a_server_cannot_load_is_refused_before_anything_is_decided(
    base: Foundation, registry: Registry
) -> None:
    """The package is opened in a process as a server's. Seen red without ``_try``: routes were decided that no server took."""
    room = Deploy(base, registry, trial=try_package)
    for attempt in (
        lambda: room.deploy(deployment="delay", model="m", version=1, reason="r"),
        lambda: room.set_routes(deployment="delay", targets=[registry.target(1)], reason="r"),
    ):
        with pytest.raises(
            InvalidInput, match=r"a server cannot load this version, so it was not deployed: model.json"
        ):
            attempt()
    assert room.list_deployments() == []
    assert not (base.home / "bundle" / "routes.json").exists()


def test_a_version_that_a_server_loads_is_tried_once(base: Foundation, registry: Registry) -> None:
    tried: list[Path] = []
    room = Deploy(base, registry, trial=tried.append)
    room.deploy(deployment="a", model="m", version=1, reason="r")
    room.deploy(deployment="b", model="m", version=1, reason="r")
    assert tried == [
        base.home / "bundle" / "packages" / registry.get_version(model="m", selector="1").package
    ]
    with base.ledger.decision():
        room.deploy(deployment="a", model="m", version=2, reason="within a larger decision")
    assert len(tried) == 1, "it would hold the writer's lock"


def test_unknown_names_are_not_found_with_near_ones(room: Deploy) -> None:
    room.deploy(deployment="delay", model="m", version=1, reason="r")
    with pytest.raises(NotFound, match="Did you mean 'delay'"):
        room.get_deployment(name="delai")
    with pytest.raises(NotFound):
        room.deploy(deployment="delay", model="m", version=8, reason="r")
    with pytest.raises(InvalidInput):
        room.deploy(deployment="../delay", model="m", version=1, reason="r")


def test_removing_leaves_history(base: Foundation, room: Deploy) -> None:
    room.deploy(deployment="delay", model="m", version=1, reason="r")
    room.remove_deployment(deployment="delay", reason="over")
    assert table(base).deployments == []
    assert [c.routes is None for c in room.list_changes(name="delay")] == [True, False]


def test_within_a_larger_decision_nothing_is_published_before_its_commit(
    base: Foundation, room: Deploy
) -> None:
    """Seen red with the check of ``in_transaction`` taken out: routes were served that were then rolled back."""
    room.deploy(deployment="delay", model="m", version=1, reason="r")
    with pytest.raises(RuntimeError, match="no"), base.ledger.decision():
        room.deploy(deployment="delay", model="m", version=2, reason="r")
        assert table(base).deployments[0].targets[0].version == 1
        with pytest.raises(Conflict):
            room.publish()
        raise RuntimeError("no")
    room.publish()
    assert table(base).deployments[0].targets[0].version == 1
    with base.ledger.decision():
        room.deploy(deployment="delay", model="m", version=3, reason="r")
    assert room.publish().written
    assert table(base).deployments[0].targets[0].version == 3


@pytest.mark.parametrize(
    "point",
    [
        "deploy.committed",
        "deploy.package.written",
        "deploy.package.renamed",
        "deploy.routes.written",
        "deploy.routes.renamed",
    ],
)
def test_o04_a_crash_while_publishing_leaves_a_bundle_that_serves_and_is_repaired(
    base: Foundation, room: Deploy, registry: Registry, point: str
) -> None:
    """Bytes, then manifest, then reference. Seen red with ``routes.json`` written before the packages."""
    room.deploy(deployment="delay", model="m", version=1, reason="r")
    failpoints.arm(f"{point}:raise")
    with pytest.raises(RuntimeError):
        room.deploy(deployment="delay", model="m", version=2, reason="r")
    failpoints.arm("")
    shown = table(base)
    for digest in bundle.packages_of(shown):
        assert (base.home / "bundle" / "packages" / digest / "model.onnx").exists()
    assert room.get_deployment(name="delay").targets[0].version == 2
    room.publish()
    assert table(base).deployments[0].targets[0].version == 2
    with base.store.read() as tx:
        assert tx.scalar("SELECT count(*) AS n FROM bundles WHERE published_us IS NULL") == 0


def test_unneeded_packages_go_after_a_grace(base: Foundation, room: Deploy, registry: Registry) -> None:
    for version in (1, 2):
        room.deploy(deployment="delay", model="m", version=version, reason="r")
    folder = base.home / "bundle"
    first, second = (registry.get_version(model="m", selector=str(v)).package for v in (1, 2))
    assert bundle.prune(folder, {second}) == []
    os.utime(folder / "packages" / first, (0, 0))
    os.utime(folder / "packages" / second, (0, 0))
    assert bundle.prune(folder, {second}) == [first]
    assert {p.name for p in (folder / "packages").iterdir()} == {second}


def test_the_last_good_packages_stay_however_old(base: Foundation, room: Deploy, registry: Registry) -> None:
    """A server that restarts on a broken new table falls back on them. Seen red with only the new table's packages kept."""
    room.deploy(deployment="delay", model="m", version=1, reason="r")
    folder = base.home / "bundle"
    (folder / "log" / STATE_FILE).write_bytes(to_json(State(good=table(base))))
    room.deploy(deployment="delay", model="m", version=2, reason="r")
    first, second = (registry.get_version(model="m", selector=str(v)).package for v in (1, 2))
    for package in (first, second):
        os.utime(folder / "packages" / package, (0, 0))
    room.publish()
    assert {p.name for p in (folder / "packages").iterdir()} == {first, second}
    (folder / "log" / STATE_FILE).write_bytes(to_json(State(good=table(base))))
    os.utime(folder / "packages" / first, (0, 0))
    room.publish()
    assert {p.name for p in (folder / "packages").iterdir()} == {second}


def test_a_restored_database_never_takes_numbers_back(base: Foundation, room: Deploy) -> None:
    """Seen red with ``_newest`` ignoring what the bundle shows: a lower number was written, which serving refuses."""
    for version in (1, 2, 3):
        room.deploy(deployment="delay", model="m", version=version, reason="r")
    with base.store.write() as tx:  # as an old backup would look
        tx.execute("DELETE FROM bundles WHERE number > 1")
        tx.execute("UPDATE settings SET value = '1' WHERE name = 'routes_number'")
    shown = table(base).number
    assert room.publish().number == shown + 1
    assert table(base).number == shown + 1


def test_a_bundle_belongs_to_one_project(make_foundation: Callable[..., Foundation]) -> None:
    for project in ("one", "two"):
        base = make_foundation(project=project)
        registry = Registry(base)
        registry.add(1)
        if project == "one":
            Deploy(base, registry).deploy(deployment="delay", model="m", version=1, reason="r")
        else:
            with pytest.raises(Conflict, match="another project"):
                Deploy(base, registry).deploy(deployment="delay", model="m", version=1, reason="r")


def test_every_public_method_is_an_operation() -> None:
    assert set(operations_of(Deploy)) == {
        "check_version",
        "deploy",
        "set_routes",
        "remove_deployment",
        "list_deployments",
        "get_deployment",
        "list_changes",
        "publish",
    }


def test_serving_loads_nothing_of_the_control_plane() -> None:
    code = "import sys, mainspring.serving, mainspring.serving.worker, mainspring.serving.app, mainspring.models.formats; print([m for m in sys.modules if m.startswith(('sqlite3', 'psycopg', 'sqlalchemy', 'mainspring.storage.sql', 'mainspring.lineage', 'mainspring.workspace', 'mainspring.deployments', 'sklearn'))])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path("/")
    )
    assert done.stdout.strip() == "[]"
