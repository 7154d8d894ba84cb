"""Names in the constants of a step's code: files that it reads, and environment variables."""

from __future__ import annotations

import ast
from collections.abc import Iterable

_WRITES = frozenset({"write_text", "write_bytes", "touch", "mkdir", "unlink", "rmdir"})
_JOINS = frozenset({"Path", "PurePath", "join", "joinpath"})


def list_texts(nodes: Iterable[ast.AST]) -> set[str]:
    """Text constants, and paths joined from constants: ``ROOT / "data" / "x.csv"`` names ``data/x.csv`` too. Files that are only written are left out."""
    all_nodes = list(nodes)
    written = {id(n) for call in all_nodes if isinstance(call, ast.Call) for n in _list_written_names(call)}
    texts = set()
    for node in all_nodes:
        if id(node) not in written:
            pieces = _list_pieces(node)
            texts |= {"/".join(pieces)} if pieces else set()
    return texts


def list_variables(nodes: Iterable[ast.AST]) -> set[str]:
    """Environment variables that are read by a constant name: ``os.environ["X"]``, ``environ.get("X")``, ``os.getenv("X")``."""
    names = set()
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
            elif _last_name(called) in {"getenv", "getenvb"}:
                name = node.args[0]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            names.add(name.value)
    return names


def _is_environ(node: ast.AST) -> bool:
    return _last_name(node) == "environ"


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _list_pieces(node: ast.AST) -> list[str]:
    """The constants at the end of a joined path; nothing if it ends in something else."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        last = _list_pieces(node.right)
        return [*_list_pieces(node.left), *last] if last else []
    if isinstance(node, ast.Call) and _last_name(node.func) in _JOINS:
        before = _list_pieces(node.func.value) if isinstance(node.func, ast.Attribute) else []
        pieces = [_list_pieces(a) for a in node.args]
        start = next((n for n in range(len(pieces), 0, -1) if not pieces[n - 1]), 0)
        return [*(before if start == 0 else []), *(p for part in pieces[start:] for p in part)]
    return []


def _list_written_names(call: ast.Call) -> list[ast.AST]:
    """The nodes of a call that name a file which it writes: ``open(name, "w")``, ``Path(name).write_text(...)``; else nothing."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if isinstance(call.func, ast.Attribute) and called in _WRITES:
        return list(ast.walk(call.func.value))
    if called != "open":
        return []
    # Path.open(mode) and open(name, mode): any text argument that is a mode for writing.
    modes = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
    if not any(isinstance(m, str) and len(m) <= 3 and set(m) & set("wax") and set(m) <= set("waxbt") for m in modes):  # fmt: skip
        return []
    named = [call.func.value] if isinstance(call.func, ast.Attribute) else []
    return [n for part in [*named, *call.args[:1]] for n in ast.walk(part)]
