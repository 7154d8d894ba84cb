"""Declarations: nothing without a policy."""

from __future__ import annotations

import pytest

from mainspring.operations import Kind, Role, delegating, operation, operations_of
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


class Positional:
    room = "bad"

    @operation(role=Role.VIEWER)
    def look(self, name: str) -> str:
        return name


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


def test_positional_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match="keyword-only"):
        operations_of(Positional)


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_every_room_declares_its_operations(name: str) -> None:
    room = room_class(name)
    assert room.room == name  # type: ignore[attr-defined]
    operations = operations_of(room)
    assert operations
    assert all(op.doc for op in operations.values()), [n for n, op in operations.items() if not op.doc]
