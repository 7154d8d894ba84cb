"""What the constants of a step's code name: files that it reads, and variables of the environment."""

from __future__ import annotations

import ast
from collections.abc import Iterable

_WRITES = frozenset({"write_text", "write_bytes", "touch", "mkdir", "unlink", "rmdir"})
_JOINS = frozenset({"Path", "PurePath", "join", "joinpath"})


def texts_in(nodes: Iterable[ast.AST]) -> set[str]:
    """Text constants, and what constants are joined to: ``ROOT / "data" / "x.csv"`` names ``data/x.csv`` too. Not what is only written."""
    every = list(nodes)
    written = {id(n) for call in every if isinstance(call, ast.Call) for n in _written(call)}
    found = set()
    for node in every:
        if id(node) not in written:
            pieces = _pieces(node)
            found |= {"/".join(pieces)} if pieces else set()
    return found


def variables_in(nodes: Iterable[ast.AST]) -> set[str]:
    """Variables of the environment that are read by a constant name: ``os.environ["X"]``, ``environ.get("X")``, ``os.getenv("X")``."""
    found = set()
    for node in nodes:
        name: ast.expr | None = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and _is_environ(node.value):
            name = node.slice
        elif isinstance(node, ast.Compare) and any(map(_is_environ, node.comparators)):
            name = node.left
        elif isinstance(node, ast.Call) and node.args:
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr in {"get", "pop", "setdefault"}:
                name = node.args[0] if _is_environ(called.value) else None
            elif _named(called) in {"getenv", "getenvb"}:
                name = node.args[0]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            found.add(name.value)
    return found


def _is_environ(node: ast.AST) -> bool:
    return _named(node) == "environ"


def _named(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _pieces(node: ast.AST) -> list[str]:
    """The constants at the end of a path that is put together; nothing if it ends in something else."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        last = _pieces(node.right)
        return [*_pieces(node.left), *last] if last else []
    if isinstance(node, ast.Call) and _named(node.func) in _JOINS:
        before = _pieces(node.func.value) if isinstance(node.func, ast.Attribute) else []
        pieces = [_pieces(a) for a in node.args]
        start = next((n for n in range(len(pieces), 0, -1) if not pieces[n - 1]), 0)
        return [*(before if start == 0 else []), *(p for part in pieces[start:] for p in part)]
    return []


def _written(call: ast.Call) -> list[ast.AST]:
    """The part of a call that names a file which it writes: ``open(name, "w")``, ``Path(name).write_text(...)``; else nothing."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if isinstance(call.func, ast.Attribute) and called in _WRITES:
        return list(ast.walk(call.func.value))
    if called != "open":
        return []
    # Path.open(mode) and open(name, mode): whichever text is a mode that writes.
    modes = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
    if not any(isinstance(m, str) and len(m) <= 3 and set(m) & set("wax") and set(m) <= set("waxbt") for m in modes):  # fmt: skip
        return []
    named = [call.func.value] if isinstance(call.func, ast.Attribute) else []
    return [n for part in [*named, *call.args[:1]] for n in ast.walk(part)]
