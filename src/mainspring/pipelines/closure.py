"""What code a step's result depends on: its definition and, transitively, every project definition it refers to.

The analysis reads source, it does not import. A project module becomes a table ``name -> top-level statements``; from the
step's definition every loaded name is followed: to the statements that bind it in the same module, or through imports into
other project modules (``from .features import scale``, ``features.scale``, a module used as a value as a whole). Code
outside the project (standard library, site-packages) counts by its name; its versions are the environment's digest.

Definitions are normalised by their syntax tree: comments, formatting and docstrings do not matter. Bare statements that run
when a reached module is imported (``np.seterr(...)``) count too. Not seen: names made at run time (``getattr`` with a
computed name on anything but a module, ``importlib``), and files a step opens by itself: pass those as
:class:`pathlib.Path` arguments, or change ``@step(version=...)``.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import blake3
import msgspec

from mainspring.errors import InvalidInput
from mainspring.pipelines.constants import list_texts, list_variables
from mainspring.records.base import new_id, to_json

_WHOLE = "*"
_MAX_NAME = 300
_NOT_PROJECT = frozenset({"site-packages", "dist-packages", ".venv", "venv", "__pypackages__", ".mainspring"})


@dataclass(frozen=True)
class Closure:
    """``digest`` over ``parts``: each definition as ``file:name`` with a digest of its normalised source."""

    digest: str
    parts: dict[str, str]
    files: frozenset[str] = frozenset()
    """The project's files with these definitions, relative to the project."""
    texts: frozenset[str] = frozenset()
    """Text constants in the code. Most steps that read a file which is not an argument name it by such a constant."""
    variables: frozenset[str] = frozenset()
    """Environment variables that the code reads."""
    context_fields: frozenset[str] = frozenset()
    """What the code reads from the context of the run: ``params``, ``at``."""

    def document(self) -> bytes:
        """The bytes of which ``digest`` is the digest."""
        return to_json(self.parts)


@dataclass
class _Module:
    file: Path
    bindings: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None, int]] = field(default_factory=dict)
    stars: list[tuple[str, int]] = field(default_factory=list)
    effects: list[ast.stmt] = field(default_factory=list)


class Closures:
    """Closures of one project's functions; parsed modules are kept while their files are unchanged."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._modules: dict[Path, tuple[tuple[int, int], _Module]] = {}

    def analyse(self, function: Callable[..., Any]) -> Closure:
        """The closure of ``function``. Raises :class:`InvalidInput` if its source is not in a file."""
        target = inspect.unwrap(function)
        file = Path(target.__code__.co_filename)
        if not file.is_file():
            raise InvalidInput(
                f"the source of {target.__qualname__!r} is not in a file",
                value=str(file),
                next_step="Put steps in a module of the project.",
            )
        file = file.resolve()
        if not self._is_project(file):  # a step from an installed package counts by its whole file
            return self._make_closure({f"{file.name}:{target.__qualname__}": _hash(file.read_bytes())})
        module = self._load_module(file)
        name = target.__qualname__.split(".")[0]
        if name not in module.bindings:
            raise InvalidInput(
                f"{target.__qualname__!r} is not defined at the top of its file", place=str(file)
            )
        parts: dict[str, str] = {}
        self._walk(file, name, parts)
        files = {self._display_name(file), *(label.rpartition(":")[0] for label in parts)}
        self._add_captured(function, parts, set())
        self._add_computed(parts)
        known = {f for f in files if (self._root / f).is_file()}
        nodes = list(self._list_nodes(parts))
        names = {
            n.attr if isinstance(n, ast.Attribute) else n.id
            for n in nodes
            if isinstance(n, (ast.Attribute, ast.Name))
        }
        return replace(
            self._make_closure(parts),
            files=frozenset(known),
            texts=frozenset(t for t in list_texts(nodes) if len(t) < _MAX_NAME),
            variables=frozenset(list_variables(nodes)),
            context_fields=frozenset(names & {"params", "at"} if "current" in names else ()),
        )

    def _make_closure(self, parts: dict[str, str]) -> Closure:
        ordered = dict(sorted(parts.items()))
        return Closure(digest=_hash(to_json(ordered)), parts=ordered)

    def _list_nodes(self, parts: dict[str, str]) -> Iterator[ast.AST]:
        """The syntax trees of the definitions."""
        for label in parts:
            shown, _, name = label.rpartition(":")
            file = self._root / shown
            statements = self._load_module(file).bindings.get(name, []) if file in self._modules else []
            for statement in statements:
                yield from ast.walk(statement)

    def _add_captured(self, function: Any, parts: dict[str, str], seen: set[int]) -> None:
        """Add the values that the function, and each function wrapped in it, holds: closure cells and defaults.

        They were made when the module was imported, so the source alone does not show them.
        """
        while inspect.isfunction(function) and id(function) not in seen:
            seen.add(id(function))
            file = Path(function.__code__.co_filename).resolve()
            shown = self._display_name(file) if self._is_project(file) else file.name
            label = f"{shown}:{function.__qualname__}"
            cells: dict[str, Any] = {}
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
                try:
                    cells[name] = cell.cell_contents
                except ValueError:  # an empty cell: nothing was put there yet
                    continue
            defaults = {str(n): v for n, v in enumerate(function.__defaults__ or ())}
            for kind, values in (
                ("cells", cells),
                ("defaults", {**defaults, **(function.__kwdefaults__ or {})}),
            ):
                described = {n: self._describe_value(v, parts, seen) for n, v in values.items()}
                if kind == "defaults":  # a default that cannot be compared counts by its source
                    described = {n: v for n, v in described.items() if v[0] != "object"}
                if described:
                    parts[f"{label}<{kind}>"] = _hash(to_json(described))
            function = getattr(function, "__wrapped__", None)

    def _describe_value(self, value: Any, parts: dict[str, str], seen: set[int]) -> Any:
        """A value as it enters the key: plain data by content, functions and classes by their definition."""
        if inspect.isfunction(value):
            self._add_captured(value, parts, seen)
        if inspect.ismodule(value) or inspect.isclass(value) or callable(value):
            name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
            if name is not None:
                self._follow_definition(value, parts)
                return ["name", getattr(value, "__module__", "") or "", name]
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            return [
                "value",
                type(value).__name__,
                msgspec.to_builtins(_sort_sets(value), enc_hook=_encode_value),
            ]
        # Whether two such objects are equal is unknown, so a new id makes them differ.
        return ["object", type(value).__name__, new_id()]

    def _follow_definition(self, value: Any, parts: dict[str, str]) -> None:
        """Follow a function or class that is reached by value to its definition in the project."""
        with contextlib.suppress(TypeError, OSError):
            file = Path(inspect.getsourcefile(inspect.unwrap(value)) or "").resolve()
            name = str(getattr(value, "__qualname__", "")).split(".")[0]
            if self._is_project(file) and file.is_file():
                self._walk(file, name if name in self._load_module(file).bindings else _WHOLE, parts)

    def _add_computed(self, parts: dict[str, str]) -> None:
        """Add the value of names that were computed at import, such as ``SIZE = int(os.environ["SIZE"])``."""
        loaded = {
            getattr(m, "__file__", None): m
            for m in list(sys.modules.values())
            if getattr(m, "__file__", None)
        }
        for label in list(parts):
            shown, _, name = label.rpartition(":")
            module = loaded.get(str(self._root / shown))
            if module is None or name not in vars(module) or not shown:
                continue
            value = vars(module)[name]
            if _is_constant(value) and self._is_computed(self._root / shown, name):
                parts[f"{label}<value>"] = _hash(repr(value).encode("utf-8", "surrogatepass"))

    def _is_computed(self, file: Path, name: str) -> bool:
        for statement in self._load_module(file).bindings.get(name, []):
            try:
                ast.literal_eval(getattr(statement, "value", None) or statement)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                return True
        return False

    def _walk(self, file: Path, name: str, parts: dict[str, str]) -> None:
        """Add the definition ``name`` of ``file`` and, transitively, everything that it refers to, to ``parts``."""
        seen: set[tuple[Path, str]] = set()
        waiting = [(file, name)]
        while waiting:
            here, wanted = waiting.pop()
            if (here, wanted) in seen:
                continue
            seen.add((here, wanted))
            module = self._load_module(here)
            label = self._display_name(here)
            effects_key = f"{label}:<import>"
            if module.effects and effects_key not in parts:
                parts[effects_key] = _digest(module.effects)
                waiting += self._list_references(here, module, module.effects, parts)
            names = list(module.bindings) if wanted == _WHOLE else [wanted]
            for bound in names:
                statements = module.bindings.get(bound)
                if statements is None:
                    continue
                parts[f"{label}:{bound}"] = _digest(statements)
                waiting += self._list_references(here, module, statements, parts)
            if wanted == _WHOLE:
                waiting += self._list_reexports(here, module)

    def _list_reexports(self, file: Path, module: _Module) -> Iterator[tuple[Path, str]]:
        for target, attribute, level in module.imports.values():
            yield from self._resolve_import(file, target, attribute, level)

    def _list_references(
        self, file: Path, module: _Module, statements: list[ast.stmt], parts: dict[str, str]
    ) -> Iterator[tuple[Path, str]]:
        """The definitions, as (file, name), to which the names loaded in ``statements`` refer."""
        local = _list_imports(statements)
        imports = {**module.imports, **local}
        attributes = _list_uses(statements)
        for name, used in attributes.items():
            if name in module.bindings and name not in local:
                yield file, name
            elif name in imports:
                target, attribute, level = imports[name]
                yield from self._follow_import(
                    file, (target, attribute, level), used, parts, label=f"{self._display_name(file)}:{name}"
                )
            else:
                for star, level in module.stars:
                    module_file = self._find_file(file, star, level)
                    if module_file is not None:
                        yield module_file, name

    def _follow_import(
        self,
        file: Path,
        binding: tuple[str, str | None, int],
        used: set[str | None],
        parts: dict[str, str],
        *,
        label: str,
    ) -> Iterator[tuple[Path, str]]:
        target, attribute, level = binding
        reached = list(self._resolve_import(file, target, attribute, level))
        if not reached:  # outside the project: by name
            parts[label] = f"import {'.' * level}{target}{':' + attribute if attribute else ''}"
            return
        for where, name in reached:
            if name != _WHOLE:
                yield where, name
                continue
            for (
                attribute_used
            ) in used:  # a module: only the attributes taken from it, or all of it where they are unknown
                submodule = (
                    self._find_file(where, attribute_used, 1)
                    if attribute_used is not None and where.name == "__init__.py"
                    else None
                )
                if attribute_used is None:
                    yield where, _WHOLE
                elif attribute_used in self._load_module(where).bindings:
                    yield where, attribute_used
                elif submodule is not None:
                    yield submodule, _WHOLE
                elif attribute_used in self._load_module(where).imports:
                    yield from self._resolve_import(where, *self._load_module(where).imports[attribute_used])
                else:
                    yield where, _WHOLE

    def _resolve_import(
        self, file: Path, target: str, attribute: str | None, level: int
    ) -> Iterator[tuple[Path, str]]:
        """The project definitions that an import binds; nothing if it leads out of the project."""
        if attribute is not None:
            submodule = self._find_file(file, f"{target}.{attribute}" if target else attribute, level)
            module = self._find_file(file, target, level)
            if module is not None and (submodule is None or attribute in self._load_module(module).bindings):
                reached = self._load_module(module)
                if attribute not in reached.bindings and attribute in reached.imports:
                    yield from self._resolve_import(module, *reached.imports[attribute])
                else:
                    yield module, attribute if attribute in reached.bindings else _WHOLE
            elif submodule is not None:
                yield submodule, _WHOLE
            return
        # ``import a.b.c`` binds ``a``, and the first attribute does not show what is used of it: take everything on the way.
        module = self._find_file(file, target, level)
        if module is not None:
            yield module, _WHOLE

    def _find_file(self, file: Path, target: str, level: int) -> Path | None:
        """The file of a module in the project, found as Python would: relative to a package, or on the project's path."""
        parts = [p for p in target.split(".") if p]
        if level:
            folder = file.parent
            for _ in range(level - 1):
                folder = folder.parent
            bases = [folder]
        else:
            bases = [self._root, file.parent, self._root / "src"]
        for base in bases:
            path = base.joinpath(*parts)
            for candidate in (path / "__init__.py", path.with_name(path.name + ".py") if parts else None):
                if candidate is not None and candidate.is_file() and self._is_project(candidate.resolve()):
                    return candidate.resolve()
        return None

    def _is_project(self, file: Path) -> bool:
        return file.is_relative_to(self._root) and not _NOT_PROJECT & set(file.relative_to(self._root).parts)

    def _display_name(self, file: Path) -> str:
        return file.relative_to(self._root).as_posix()

    def _load_module(self, file: Path) -> _Module:
        stat = file.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        known = self._modules.get(file)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            tree = ast.parse(file.read_bytes(), filename=str(file))
        except (SyntaxError, ValueError) as error:
            raise InvalidInput(f"not valid Python: {error}", place=self._display_name(file)) from None
        _normalise(tree)
        module = _Module(file)
        for statement in tree.body:
            _add_statement(module, statement)
        self._modules[file] = (stamp, module)
        return module


def _is_constant(value: Any) -> bool:
    """Whether the value is immutable plain data: a mutable one, such as a cache that fills up, is not part of the code."""
    if value is None or isinstance(value, (str, int, float, bool, bytes)):
        return True
    return isinstance(value, (tuple, frozenset)) and all(_is_constant(v) for v in value)


def _sort_sets(value: Any) -> Any:
    """The value with sets in a fixed order, so that equal ones get equal digests in every process."""
    if isinstance(value, (set, frozenset)):
        return ["set", *sorted((_sort_sets(v) for v in value), key=repr)]
    if isinstance(value, (list, tuple)):
        return [_sort_sets(v) for v in value]
    if isinstance(value, dict):
        return {k: _sort_sets(v) for k, v in value.items()}
    if isinstance(value, float):
        return repr(value)
    return value


def _encode_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, complex):
        return repr(value)
    msg = f"{type(value).__name__} is not plain data"
    raise TypeError(msg)


def _add_statement(module: _Module, statement: ast.stmt) -> None:
    """Record a top-level statement under the names that it binds."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        for name, binding in _list_bindings(statement):
            if name == "*":
                module.stars.append((binding[0], binding[2]))
            else:
                module.imports[name] = binding
        return
    if isinstance(statement, ast.If) and "__name__" in {
        n.id for n in ast.walk(statement.test) if isinstance(n, ast.Name)
    }:
        return  # only when run as a script
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return  # a docstring, or a bare constant
    for inner in ast.walk(statement) if isinstance(statement, (ast.If, ast.Try, ast.With)) else ():
        if isinstance(inner, (ast.Import, ast.ImportFrom)):
            for name, binding in _list_bindings(inner):
                module.imports.setdefault(name, binding)
    bound = _list_bound_names(statement)
    for name in bound:
        module.bindings.setdefault(name, []).append(statement)
    only_imports = isinstance(statement, (ast.If, ast.Try)) and bool(_list_imports([statement]))
    if not bound and not only_imports:
        module.effects.append(statement)


def _list_bound_names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    names = {
        n.id
        for n in ast.walk(statement)
        if isinstance(n, ast.Name) and isinstance(n.ctx, (ast.Store, ast.Del))
    }
    if isinstance(statement, (ast.If, ast.Try, ast.With, ast.For, ast.While)):
        names |= {
            n.name
            for n in ast.walk(statement)
            if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        }
    # ``TABLE["a"] = 1`` and ``CONFIG.depth = 3`` change the value of a name.
    for target in getattr(statement, "targets", None) or [getattr(statement, "target", None)]:
        changed = target
        while isinstance(changed, (ast.Subscript, ast.Attribute)):
            changed = changed.value
            if isinstance(changed, ast.Name):
                names.add(changed.id)
    return names


def _list_bindings(
    statement: ast.Import | ast.ImportFrom,
) -> Iterator[tuple[str, tuple[str, str | None, int]]]:
    """``(bound name, (module, attribute, level))`` of an import."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            yield (alias.asname or alias.name.split(".")[0]), (alias.name, None, 0)
    else:
        for alias in statement.names:
            yield (alias.asname or alias.name), (statement.module or "", alias.name, statement.level)


def _list_imports(statements: list[ast.stmt]) -> dict[str, tuple[str, str | None, int]]:
    imports: dict[str, tuple[str, str | None, int]] = {}
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                imports.update(_list_bindings(node))
    return imports


def _list_uses(statements: list[ast.stmt]) -> dict[str, set[str | None]]:
    """Names that are loaded, each with the attributes taken from it directly; None among them for a use as a value."""
    uses: dict[str, set[str | None]] = {}
    waiting: list[ast.AST] = list(statements)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            uses.setdefault(node.value.id, set()).add(node.attr)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            uses.setdefault(node.id, set()).add(None)
        waiting += ast.iter_child_nodes(node)
    return uses


def _normalise(tree: ast.Module) -> None:
    """Drop docstrings and the decorators ``step`` and ``pipeline``: a changed timeout does not change a result."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.decorator_list = [d for d in node.decorator_list if not _is_ours(d)]
        if (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]


def _is_ours(decorator: ast.expr) -> bool:
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = (
        target.attr
        if isinstance(target, ast.Attribute)
        else target.id
        if isinstance(target, ast.Name)
        else ""
    )
    return name in {"step", "pipeline"}


def _digest(statements: list[ast.stmt]) -> str:
    """The digest of a definition: of its syntax tree without positions, so layout and comments do not matter."""
    return _hash("\n".join(ast.dump(s) for s in statements).encode())


def _hash(data: bytes) -> str:
    return blake3.blake3(data).hexdigest()
