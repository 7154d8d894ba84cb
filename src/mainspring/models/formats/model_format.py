"""The contract of a model format. Each format is one entry of the table in :mod:`mainspring.models.formats.table`.

The module of an entry imports no framework, because the control plane checks packages with it: what it needs for saving and for
predicting is imported inside the methods.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from mainspring.errors import MissingExtra
from mainspring.models.formats.predictor import Predictor
from mainspring.models.formats.trust import TrustPolicy
from mainspring.records.models import Package, Signature

Payloads: TypeAlias = Mapping[str, bytes]
"""The payload files of a package by name, each verified against the manifest."""

SKLEARN_LIBRARIES = ("scikit-learn", "numpy", "skl2onnx", "onnxruntime", "skops")
"""Libraries whose versions the package of a scikit-learn estimator records, in every form: all of them decide which form it gets."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a prediction may cost, over all values that its rows can have: decides whether a predictor may share a process with others.

    ``unbounded``: why time or memory may depend on the values of a request (then the model gets a process of its own); None: they
    depend on the number of rows alone. ``steps`` and ``deepest``: the most nodes of trees that a row can pass, over all trees and in
    the deepest one; the rows that a server times may pass fewer.
    """

    unbounded: str | None = None
    steps: int = 0
    deepest: int = 0


@dataclass(frozen=True, slots=True)
class Form:
    """One way to store an estimator. ``make`` returns the payload files, or raises InvalidInput if the estimator has no such form;
    ``notes`` go into the manifest."""

    name: str
    make: Callable[[], Payloads]
    notes: Mapping[str, Any] = field(default_factory=dict)


class ModelFormat(ABC):
    """One entry of the table. It holds no state: packages and payloads are passed in."""

    name: ClassVar[str]
    """The name of the format in ``model.json``."""
    payloads: ClassVar[tuple[str, ...]]
    """The names of its files: exact names, and patterns with ``*`` that each match at least one file. Other files are refused."""
    libraries: ClassVar[tuple[str, ...]]
    """Distributions whose versions the manifest records."""
    extra: ClassVar[str]
    """The extra of this project that installs what it imports."""
    modules: ClassVar[tuple[str, ...]]
    """Modules that predicting imports. A server imports them before it confines the process that opens the package."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Top-level packages that ``modules`` import in turn; a confined process may read their files too."""
    instead: ClassVar[Mapping[str, str]] = {}
    """What to fit instead, by the value of the refusal (the name of a class)."""
    next_step: ClassVar[str]
    """The next step for the user whose estimator this format refused, when no other format was wanted."""

    @abstractmethod
    def check(self, package: Package, payloads: Payloads, *, trust: TrustPolicy) -> None:
        """Raise :class:`~mainspring.errors.UnsafeFormat` unless the payloads are plain data of this format.

        Reads the structure only: imports no framework, and executes or allocates nothing because the payload says so. ``trust`` is
        the loader's; nothing in the package changes it.
        """

    @abstractmethod
    def open(self, package: Package, payloads: Payloads, *, trust: TrustPolicy) -> Predictor:
        """Make a predictor from payloads that passed :meth:`check`. Imports what it needs; call it under :func:`extra_needed`."""

    @abstractmethod
    def forms(self, estimator: Any, signature: Signature) -> Iterable[Form]:
        """The ways to store the estimator, best first; none if this format never takes its kind.

        The parity check decides which of them repeats the estimator, so a form that may be inexact can be tried too.
        """

    def cost(self, package: Package, payloads: Payloads) -> Cost:  # noqa: ARG002 - a format that can tell looks at them
        """What predictions may cost, read from the payloads. A format that cannot tell says that the cost has no bound."""
        return Cost(unbounded=f"models of format {self.name!r} may take any time")

    def names_files(self, paths: Sequence[str]) -> bool:
        """Whether a package of this format holds exactly such files."""
        patterns = [_pattern(payload) for payload in self.payloads]
        return (
            len(set(paths)) == len(paths)
            and all(any(p.fullmatch(path) for p in patterns) for path in paths)
            and all(any(p.fullmatch(path) for path in paths) for p in patterns)
        )


def _pattern(payload: str) -> re.Pattern[str]:
    """``*`` matches letters, digits, ``_`` and ``-`` only, so that no name leads to another folder."""
    return re.compile("[A-Za-z0-9_-]+".join(re.escape(part) for part in payload.split("*")))


@contextmanager
def extra_needed(entry: ModelFormat) -> Iterator[None]:
    """Turn a failed import inside into :class:`~mainspring.errors.MissingExtra`, which names the extra to install."""
    try:
        yield
    except ImportError as error:
        library = (error.name or entry.name).partition(".")[0]
        if library == "mainspring":
            raise
        raise MissingExtra.for_library(library, extra=entry.extra) from error
