"""Whether what an ONNX graph costs follows from the number of rows alone, never from the values in them.

Only then can one measurement at load bound every request (``serving.hosting``), and only then may the graph run on the event loop
of a server that others share. A standard operator can allocate what a value asks for (``ConstantOfShape``, ``Range``, ``Tile``) or
loop as long as a value says (``Scan`` over such a tensor): cheap with the sample, gigabytes with one request. So each operator
must be one of ``BOUNDED``, and every input that decides a shape must be a constant of the file, or for ``FROM_SHAPE`` the shape
of something, handed on unchanged: arithmetic on a shape could name one number of rows for which the size explodes.

A shape that a value decides is refused at the door; an operator that is not known to be bounded is served from a process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from mainspring.models.formats.onnx.steps import Steps


@dataclass(slots=True)
class Node:
    """One operator of a graph. ``graphs``: those in its attributes."""

    op: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    steps: Steps | None = None
    """Of a tree ensemble: how far a row can go in it, if that is known."""
    graphs: list[Graph] = field(default_factory=list)


@dataclass(slots=True)
class Graph:
    """What decides how much a graph can cost: its operators, and which values are constants."""

    inputs: set[str] = field(default_factory=set)
    constants: set[str] = field(default_factory=set)
    nodes: list[Node] = field(default_factory=list)

    def operators(self) -> set[str]:
        """Operators used here and in nested graphs."""
        found = {node.op for node in self.nodes}
        return found.union(*(g.operators() for node in self.nodes for g in node.graphs))


@dataclass(frozen=True, slots=True)
class Cost:
    """Why the cost of a graph may be unbounded. ``by_values``: a value of the request is the size of a tensor. ``by_operator``:
    an operator of which we do not know that its cost follows from the shapes of its inputs. ``steps`` and ``deepest``: what a row
    can cost in trees (``steps``), whatever the rows that were measured did."""

    by_values: str | None = None
    by_operator: str | None = None
    steps: int = 0
    deepest: int = 0

    @property
    def bounded(self) -> bool:
        return self.by_values is None and self.by_operator is None


class Known(IntEnum):
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
"""Operators whose cost follows from where a row turns, within what :func:`steps.tree_steps` says."""

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
"""Inputs that decide the shape of the answer: constants only."""

FROM_SHAPE = {"Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,)}
"""The same; these may also be taken from the shape of something."""

_HANDS_ON = frozenset({"Gather", "Slice", "Squeeze", "Unsqueeze", "Concat", "Identity", "Cast", "Reshape"})
"""Operators that pick and rearrange the numbers of a shape, and change none."""


def examine(graph: Graph) -> Cost:
    """What is known of the cost of ``graph``. Nested graphs (``If``, ``Scan``) are not followed: they are not bounded."""
    known = dict.fromkeys(graph.constants, Known.CONSTANT)
    known |= dict.fromkeys(graph.inputs, Known.VALUES)  # an initializer that is also an input may be given
    by_values = by_operator = None
    steps = deepest = 0
    for node in graph.nodes:
        if node.op not in BOUNDED or node.graphs:
            by_operator = (
                by_operator or f"the cost of operator {node.op!r} may depend on the values of a request"
            )
        if node.op in TREES and node.steps is None:
            by_operator = by_operator or f"how far a row goes in the trees of {node.op!r} is not known"
        elif node.steps is not None:
            steps, deepest = steps + node.steps.per_row, max(deepest, node.steps.deepest)
        sized_by = _sized_by(node, known)
        if sized_by is Known.VALUES:
            by_values = (
                by_values or f"operator {node.op!r} makes a tensor as large as a value of the request says"
            )
        elif sized_by is Known.ROWS:
            by_operator = by_operator or f"operator {node.op!r} computes a size from the number of rows"
        depends = _depends(node, known)
        for output in node.outputs:
            known[output] = max(depends, known.get(output, Known.CONSTANT))
    return Cost(by_values=by_values, by_operator=by_operator, steps=steps, deepest=deepest)


def _sized_by(node: Node, known: dict[str, Known]) -> Known:
    """What decides the size of the answer, beyond what is allowed to."""
    found = [
        (_known(node.inputs[index], known), allowed)
        for allowed, table in ((Known.CONSTANT, FROM_CONSTANTS), (Known.ROWS, FROM_SHAPE))
        for index in table.get(node.op, ())
        if index < len(node.inputs) and node.inputs[index]
    ]
    return max((depends for depends, allowed in found if depends > allowed), default=Known.CONSTANT)


def _depends(node: Node, known: dict[str, Known]) -> Known:
    inputs = [_known(name, known) for name in node.inputs if name]
    highest = max(inputs, default=Known.CONSTANT)
    if node.op in {"Shape", "Size"}:
        return min(highest, Known.ROWS)
    if highest is Known.ROWS:
        picked = node.op == "Concat" or max(inputs[1:], default=Known.CONSTANT) is Known.CONSTANT
        return Known.ROWS if node.op in _HANDS_ON and picked else Known.VALUES
    return highest


def _known(name: str, known: dict[str, Known]) -> Known:
    return known.get(name, Known.VALUES)  # a name from nowhere: ONNX Runtime will refuse it
