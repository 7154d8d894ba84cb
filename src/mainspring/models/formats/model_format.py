"""The contract of a model format. Each format is one entry of the table in :mod:`mainspring.models.formats.table`.

The module of an entry imports no framework, since the control plane checks packages with it: what saves and what predicts is
imported inside the methods.
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
"""What the package of a scikit-learn estimator records, in whichever form: all of these decide which form it gets."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a prediction may cost, whatever values its rows have: decides whether a predictor may share a process with others.

    ``unbounded``: why time or memory may follow from the values of a request (the model gets a process of its own then); None: they
    follow from the number of rows alone. ``steps`` and ``deepest``: how many nodes of trees a row can pass, in all and in the
    deepest tree; the rows that a server measures may pass fewer.
    """

    unbounded: str | None = None
    steps: int = 0
    deepest: int = 0


@dataclass(frozen=True, slots=True)
class Form:
    """One way to store an estimator. ``make`` raises InvalidInput where there is none; ``notes`` go into the manifest."""

    name: str
    make: Callable[[], Payloads]
    notes: Mapping[str, Any] = field(default_factory=dict)


class ModelFormat(ABC):
    """One entry of the table. It holds no state: what it is asked about is passed in."""

    name: ClassVar[str]
    """What stands in ``model.json``."""
    payloads: ClassVar[tuple[str, ...]]
    """The names of its files: exact ones, and patterns with ``*`` for one or several files. Each must be there."""
    libraries: ClassVar[tuple[str, ...]]
    """Distributions whose versions the manifest records."""
    extra: ClassVar[str]
    """The extra of ours that brings what it imports."""
    modules: ClassVar[tuple[str, ...]]
    """What predicting imports. A server imports them before it confines the process that opens the package."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Top-level names that ``modules`` import in turn; servers may read these as well."""
    instead: ClassVar[Mapping[str, str]] = {}
    """What to fit instead, by the value of a refusal (the name of a class)."""
    next_step: ClassVar[str]
    """What to do about an estimator that this format alone was asked to store, and refused."""

    @abstractmethod
    def check(self, package: Package, payloads: Payloads, *, trust: TrustPolicy) -> None:
        """Raise :class:`~mainspring.errors.UnsafeFormat` unless the payloads are plain data of this format.

        Reads the structure only: imports no framework, executes and allocates nothing on the payload's word. ``trust`` is the
        loader's and decides; the package has no say in it.
        """

    @abstractmethod
    def open(self, package: Package, payloads: Payloads, *, trust: TrustPolicy) -> Predictor:
        """A predictor, from payloads that passed :meth:`check`. Imports what it needs; see :func:`extra_needed`."""

    @abstractmethod
    def forms(self, estimator: Any, signature: Signature) -> Iterable[Form]:
        """The ways to store the estimator, best first; none if it is of a kind that this format never takes.

        The parity check decides which of them repeats the estimator, so a form need not be exact to be tried.
        """

    def cost(self, package: Package, payloads: Payloads) -> Cost:  # noqa: ARG002 - a format that can tell looks at them
        """What predictions may cost, read off the payloads. Unless a format can tell, anything."""
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
    """``*`` stands for letters, digits, ``_`` and ``-``: a name can never lead to another folder."""
    return re.compile("[A-Za-z0-9_-]+".join(re.escape(part) for part in payload.split("*")))


@contextmanager
def extra_needed(entry: ModelFormat) -> Iterator[None]:
    """An import that fails in here is :class:`~mainspring.errors.MissingExtra`, with the extra that brings the library."""
    try:
        yield
    except ImportError as error:
        library = (error.name or entry.name).partition(".")[0]
        if library == "mainspring":
            raise
        raise MissingExtra.for_library(library, extra=entry.extra) from error
