"""One code, one class; an error keeps its code and status wherever it goes."""

from __future__ import annotations

import pytest

from mainspring import errors
from mainspring.errors import Conflict, InvalidInput, MainspringError, Overloaded, from_dict


def test_a_code_names_one_class() -> None:
    with pytest.raises(TypeError, match=r"conflict.*Conflict"):

        class Other(InvalidInput):
            code = "conflict"

    assert errors._BY_CODE["conflict"] is Conflict


def test_an_error_comes_back_as_what_it_was() -> None:
    sent = Overloaded("all slots are taken", value=3, place="model", next_step="Try again.")
    came = from_dict(sent.to_dict())
    assert type(came) is Overloaded
    assert came.to_dict() == sent.to_dict()


def test_an_error_of_a_class_that_is_not_loaded_keeps_code_and_status() -> None:
    sent = {"code": "of_tomorrow", "status": 429, "message": "slower"}
    came = from_dict(sent)
    assert type(came) is MainspringError
    assert came.to_dict() == sent
    assert MainspringError("x").code == "error"


@pytest.mark.parametrize("status", [200, 0, 999, "404", None, True])
def test_a_status_that_is_none_is_not_taken(status: object) -> None:
    assert from_dict({"code": "of_tomorrow", "status": status, "message": "x"}).status == 500
