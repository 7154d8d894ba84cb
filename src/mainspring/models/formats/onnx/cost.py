"""Decides whether the cost of an ONNX graph depends on the number of rows alone, and never on the values in them.

Only then can one measurement at load bound every request (``serving.hosting``), and only then may the graph run on the event loop of a
server, which other requests share. A standard operator can allocate as much as a value says (``ConstantOfShape``, ``Range``,
``Tile``) or loop as long as a value says (``Scan`` over such a tensor): cheap on the sample, gigabytes on one request. So each
operator must be in ``BOUNDED``, and every input that decides a shape must be a constant of the file, or for ``FROM_SHAPE`` the
unchanged shape of a tensor: with arithmetic on a shape, one number of rows could make the size explode.

A graph with a shape that a value decides is refused (:mod:`wire`); one with an operator that is not known to be bounded is served from
a process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from mainspring.models.formats.onnx.steps import Steps


@dataclass(slots=True)
class Node:
    """One operator of a graph. ``graphs``: the graphs in its attributes."""

    op: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    steps: Steps | None = None
    """Of a tree ensemble: how many nodes a row can pass; None if that is not known."""
    graphs: list[Graph] = field(default_factory=list)


@dataclass(slots=True)
class Graph:
    """The parts of a graph that decide its cost: the operators, the inputs, and which tensors are constants."""

    inputs: set[str] = field(default_factory=set)
    constants: set[str] = field(default_factory=set)
    nodes: list[Node] = field(default_factory=list)

    def operators(self) -> set[str]:
        """Operators used here and in nested graphs."""
        operators = {node.op for node in self.nodes}
        return operators.union(*(g.operators() for node in self.nodes for g in node.graphs))


@dataclass(frozen=True, slots=True)
class Cost:
    """Why the cost of a graph may be unbounded, None if it is bounded in that way.

    ``by_values``: a value of the request is the size of a tensor. ``by_operator``: an operator whose cost is not known to follow from
    the shapes of its inputs. ``steps`` and ``deepest``: nodes that a row passes at most in all trees, and in one (:class:`Steps`).
    """

    by_values: str | None = None
    by_operator: str | None = None
    steps: int = 0
    deepest: int = 0

    @property
    def bounded(self) -> bool:
        """Whether the cost depends on the number of rows alone."""
        return self.by_values is None and self.by_operator is None


class Dependence(IntEnum):
    """What a value depends on: nothing, only the number of rows, or the request."""

    CONSTANT = 0
    ROWS = 1
    VALUES = 2


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTWISE = _words(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip "
    "Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less "
    "LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus "
    "Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor"
)
_STRUCTURAL = _words(
    "ArgMax ArgMin BatchNormalization Concat Constant CumSum Einsum EyeLike Flatten Gather GatherElements GatherND Gemm Hardmax "
    "LayerNormalization LogSoftmax LpNormalization MatMul MeanVarianceNormalization ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare ScatterElements ScatterND Shape Size Slice Softmax Split "
    "Squeeze Transpose Trilu Unsqueeze TopK OneHot Pad Tile Reshape Expand ConstantOfShape Range "
    "GlobalAveragePool GlobalMaxPool"
)
TREES = _words("TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor")
"""Operators whose cost depends on the path of a row, within the bound of :func:`steps.tree_steps`."""

_MODELS = TREES | _words(
    "ArrayFeatureExtractor Binarizer CategoryMapper FeatureVectorizer Imputer LabelEncoder LinearClassifier LinearRegressor "
    "Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler StringNormalizer TfIdfVectorizer"
)
BOUNDED = _ELEMENTWISE | _STRUCTURAL | _MODELS
"""Operators whose time and memory follow from the shapes of their inputs and from the constants of the file."""

FROM_CONSTANTS = {
    "CumSum": (1,), "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,),
    "Trilu": (1,), "Unsqueeze": (1,),
} | {op: (1,) for op in BOUNDED if op.startswith("Reduce")}  # fmt: skip
"""Positions of the inputs that decide the shape of the output: these must be constants."""

FROM_SHAPE = {"Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,)}
"""Such inputs that may also be the shape of a tensor."""

_REARRANGE = frozenset({"Gather", "Slice", "Squeeze", "Unsqueeze", "Concat", "Identity", "Cast", "Reshape"})
"""Operators that select and rearrange the numbers of a shape without changing any."""


def examine(graph: Graph) -> Cost:
    """Bound the cost of ``graph``. An operator with a nested graph (``If``, ``Scan``) counts as unbounded, so those are not followed."""
    known = dict.fromkeys(graph.constants, Dependence.CONSTANT)
    # A request may replace an initializer that is an input too, so inputs come last.
    known |= dict.fromkeys(graph.inputs, Dependence.VALUES)
    by_values = by_operator = None
    steps = deepest = 0
    for node in graph.nodes:
        if node.op not in BOUNDED or node.graphs:
            by_operator = (
                by_operator or f"the cost of operator {node.op!r} may depend on the values of a request"
            )
        if node.op in TREES and node.steps is None:
            by_operator = (
                by_operator or f"how many nodes a row passes in the trees of {node.op!r} is not known"
            )
        elif node.steps is not None:
            steps, deepest = steps + node.steps.per_row, max(deepest, node.steps.deepest)
        sized_by = _sized_by(node, known)
        if sized_by is Dependence.VALUES:
            by_values = (
                by_values or f"operator {node.op!r} makes a tensor as large as a value of the request says"
            )
        elif sized_by is Dependence.ROWS:
            by_operator = by_operator or f"operator {node.op!r} computes a size from the number of rows"
        depends = _depends(node, known)
        for output in node.outputs:
            known[output] = max(depends, known.get(output, Dependence.CONSTANT))
    return Cost(by_values=by_values, by_operator=by_operator, steps=steps, deepest=deepest)


def _sized_by(node: Node, known: dict[str, Dependence]) -> Dependence:
    """What decides the size of the output, if it may not; CONSTANT if nothing forbidden does."""
    dependences = [
        (_dependence_of(node.inputs[index], known), allowed)
        for allowed, table in ((Dependence.CONSTANT, FROM_CONSTANTS), (Dependence.ROWS, FROM_SHAPE))
        for index in table.get(node.op, ())
        if index < len(node.inputs) and node.inputs[index]
    ]
    return max(
        (depends for depends, allowed in dependences if depends > allowed), default=Dependence.CONSTANT
    )


def _depends(node: Node, known: dict[str, Dependence]) -> Dependence:
    """What the values of the operator's outputs depend on."""
    inputs = [_dependence_of(name, known) for name in node.inputs if name]
    highest = max(inputs, default=Dependence.CONSTANT)
    if node.op in {"Shape", "Size"}:
        return min(highest, Dependence.ROWS)
    if highest is Dependence.ROWS:
        unchanged = node.op == "Concat" or max(inputs[1:], default=Dependence.CONSTANT) is Dependence.CONSTANT
        return Dependence.ROWS if node.op in _REARRANGE and unchanged else Dependence.VALUES
    return highest


def _dependence_of(name: str, known: dict[str, Dependence]) -> Dependence:
    return known.get(name, Dependence.VALUES)  # an undefined name: ONNX Runtime will refuse it
