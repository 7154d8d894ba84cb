"""Declarations: nothing without a policy."""

from __future__ import annotations

import pytest

from mainspring.operations import Kind, Role, current, delegating, operation, operations_of
from mainspring.rooms import ROOMS, room_class


class Good:
    room = "good"

    @operation(role=Role.VIEWER)
    def look(self, *, name: str, limit: int = 3) -> list[str]:
        """Look."""
        return [name] * limit


class Undeclared:
    room = "bad"

    def look(self, *, name: str) -> str:
        return name


class Unnamed:
    room = "bad"

    @operation(role=Role.VIEWER)
    def look(self, *names: str) -> str:
        return names[0]


class Poured:
    room = "bad"

    @operation(role=Role.EDITOR, changes=True, kind=Kind.UPLOAD)
    def put(self, body: bytes) -> int:
        return len(body)


def test_an_operation_knows_its_parameters_and_policy() -> None:
    look = operations_of(Good)["look"]
    assert look.id == "good.look"
    assert list(look.parameters) == ["name", "limit"]
    assert (look.policy.role, look.policy.changes, look.policy.kind) == (Role.VIEWER, False, Kind.UNARY)


class Better(Good):
    @operation(role=Role.VIEWER)
    def find(self, *, name: str) -> str:
        return name.upper()


def test_a_client_has_the_operations_of_its_room_and_nothing_else_of_it() -> None:
    class Client(delegating(Better)):  # type: ignore[misc]
        def __init__(self, operations: Better) -> None:
            self.operations = operations

        def find(self, *, name: str) -> str:
            return "mine: " + self.operations.find(name=name)

    client = Client(Better())
    assert client.look(name="x", limit=2) == ["x", "x"]
    assert client.find(name="x") == "mine: X"
    assert not isinstance(client, Good)
    with pytest.raises(AttributeError, match="lock"):
        client.lock(name="x")
    with pytest.raises(TypeError):
        client.look("x")


def test_a_public_method_without_policy_is_refused() -> None:
    """A01: seen red with the check removed from operations_of."""
    with pytest.raises(TypeError, match="declares no policy"):
        operations_of(Undeclared)


@pytest.mark.parametrize("room", [Unnamed, Poured])
def test_parameters_that_cannot_be_passed_by_name_are_refused(room: type) -> None:
    with pytest.raises(TypeError, match="passed by name"):
        operations_of(room)


def test_what_is_meant_may_go_without_its_name_and_is_noted_under_it() -> None:
    seen = []

    class Named:
        room = "named"

        @operation(role=Role.VIEWER)
        def look(self, dataset: str, selector: str = "latest", *, limit: int = 1) -> str:
            """Look."""
            seen.append(current())
            return dataset

    class Client(delegating(Named)):  # type: ignore[misc]
        operations = Named()

    for look in (Named().look, Client().look):
        assert look("d", "3", limit=2) == "d"
        assert seen[-1] is not None
        assert seen[-1].arguments == {"dataset": "d", "selector": "3", "limit": 2}
        with pytest.raises(TypeError):
            look("d", "3", 2)


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_every_room_declares_its_operations(name: str) -> None:
    room = room_class(name)
    assert room.room == name  # type: ignore[attr-defined]
    operations = operations_of(room)
    assert operations
    assert all(op.doc for op in operations.values()), [n for n, op in operations.items() if not op.doc]
