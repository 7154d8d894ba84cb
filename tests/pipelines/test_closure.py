"""What the closure sees, and what it must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mainspring.errors import InvalidInput
from mainspring.pipelines.closure import Closures
from mainspring.pipelines.loading import forget_projects, load_function

Write = Callable[[str, str], Path]


def digest(project: Path, spec: str = "m.py:f") -> str:
    forget_projects(project)
    return Closures(project).analyse(load_function(spec, root=project)).digest


def parts(project: Path, spec: str = "m.py:f") -> set[str]:
    forget_projects(project)
    return set(Closures(project).analyse(load_function(spec, root=project)).parts)


BASE = {
    "m.py": "from pkg.a import used\nimport pkg.b as b\nLIMIT = 3\n@step\ndef f(x):\n    '''Doc.'''\n    return used(x) + b.more(x) + LIMIT\n",
    "pkg/__init__.py": "",
    "pkg/a.py": "from .c import deep\nTABLE = {}\nTABLE['k'] = 1\ndef used(x):\n    return deep(x) + TABLE['k']\ndef other(): return 1\n",
    "pkg/b.py": "class K:\n    def go(self, x): return x\ndef more(x): return K().go(x)\ndef other(): return 1\n",
    "pkg/c.py": "import math\ndef deep(x): return math.floor(x)\n",
}


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("m.py", "LIMIT = 3", "LIMIT = 4", True),
        ("m.py", "@step", "@step(timeout=5, retries=1)", False),
        ("m.py", "'''Doc.'''", "'''Other words.'''", False),
        ("m.py", "LIMIT = 3", "LIMIT  =  3  # three", False),
        ("pkg/a.py", "TABLE['k'] = 1", "TABLE['k'] = 2", True),
        ("pkg/a.py", "def other(): return 1", "def other(): return 2", False),
        ("pkg/b.py", "return x\n", "return x + 1\n", True),
        ("pkg/b.py", "def other(): return 1", "def other(): return 2", False),
        ("pkg/c.py", "math.floor", "math.ceil", True),
        ("pkg/c.py", "import math", "import numpy as math", True),
        ("pkg/c.py", "import math\n", "import math\nmath.seed = 1\n", True),
        ("pkg/a.py", "TABLE = {}", "print('at import')\nTABLE = {}", True),
    ],
)
def test_a_change_is_seen_exactly_when_the_step_depends_on_it(
    project: Path, write: Write, file: str, old: str, new: str, changes: bool
) -> None:
    for name, text in BASE.items():
        write(name, text)
    before = digest(project)
    assert old in BASE[file]
    write(file, BASE[file].replace(old, new))
    assert (digest(project) != before) is changes


def test_a_module_used_as_a_value_counts_as_a_whole(project: Path, write: Write) -> None:
    write("m.py", "import tools\n@step\ndef f(name): return getattr(tools, name)()\n")
    write("tools.py", "def a(): return 1\ndef b(): return 2\n")
    assert {"tools.py:a", "tools.py:b"} <= parts(project)


def test_imports_inside_functions_and_star_imports_are_followed(project: Path, write: Write) -> None:
    write("m.py", "from names import *\n@step\ndef f(x):\n    from late import g\n    return g(x) + h(x)\n")
    write("names.py", "def h(x): return x\n")
    write("late.py", "def g(x): return x\n")
    assert {"names.py:h", "late.py:g"} <= parts(project)


def test_installed_libraries_count_by_name_only(project: Path, write: Write) -> None:
    write("m.py", "import numpy as np\n@step\ndef f(x): return np.sum(x)\n")
    assert all(Path(p.rpartition(":")[0]).name == "m.py" for p in parts(project))


@pytest.mark.parametrize(
    ("text", "one"),
    [
        # A function made by another one: what it closes over is seen by no reader of the source.
        ("def make(by):\n    def f(x): return x * by\n    f.__qualname__ = 'f'\n    return f\nf = step(make({}))\n", "int(os.environ['BY'])"),
        ("def make(by):\n    def f(x): return x * by['k'][0]\n    f.__qualname__ = 'f'\n    return f\nf = step(make({}))\n", "{'k': [int(os.environ['BY'])]}"),
        ("def make(by):\n    def f(x): return x in by\n    f.__qualname__ = 'f'\n    return f\nf = step(make({}))\n", "{int(os.environ['BY']), 7, 'x'}"),
        # A wrapper with cells of its own around a plain function.
        (("def scaled(by):\n    def wrap(g):\n        @functools.wraps(g)\n        def call(x): return g(x) * by\n        return call\n    return wrap\n"
         "@step\n@scaled({})\ndef f(x): return x\n"), "int(os.environ['BY'])"),
        # A function among the cells, with cells of its own.
        (("def times(by):\n    def g(x): return x * by\n    return g\ndef make(g):\n    def f(x): return g(x)\n    f.__qualname__ = 'f'\n    return f\n"
         "f = step(make(times({})))\n"), "int(os.environ['BY'])"),
        ("@step\ndef f(x, by={}): return x * by\n", "int(os.environ['BY'])"),
        ("@step\ndef f(x, *, by={}): return x * by\n", "int(os.environ['BY'])"),
        ("BY = {}\n@step\ndef f(x): return x * BY\n", "int(os.environ['BY'])"),
        ("BY = {}\ndef g(x): return x * BY\n@step\ndef f(x): return g(x)\n", "int(os.environ['BY'])"),
    ],
)  # fmt: skip
def test_values_made_at_import_count(
    project: Path, write: Write, monkeypatch: pytest.MonkeyPatch, text: str, one: str
) -> None:
    """The source is the same, the function is not. Seen red with cells ignored, and on 0.1 for all but the first: a hit with
    the result of the other value."""
    write("m.py", "import functools, os\n" + text.replace("{}", one))
    found = []
    for value in ("2", "3", "2"):
        monkeypatch.setenv("BY", value)
        found.append(digest(project))
    assert found[0] != found[1]
    assert found[0] == found[2]


def test_cells_that_cannot_be_compared_never_match(project: Path, write: Write) -> None:
    """Seen red on 0.1, which left such cells out."""
    write(
        "m.py",
        "def make(by):\n    def f(x): return by\n    f.__qualname__ = 'f'\n    return f\nclass Thing: pass\nf = step(make(Thing()))\n",
    )
    assert digest(project) != digest(project)


def test_the_files_of_a_closure_are_those_it_reaches(project: Path, write: Write) -> None:
    for name, text in BASE.items():
        write(name, text)
    write("pkg/unused.py", "X = 1\n")
    found = Closures(project).analyse(load_function("m.py:f", root=project))
    assert found.files == {"m.py", "pkg/a.py", "pkg/b.py", "pkg/c.py"}


def test_a_step_inside_another_function_is_refused_by_name(project: Path, write: Write) -> None:
    write("m.py", "def outer():\n    @step\n    def f(x): return x\n    return f\nmade = outer()\n")
    with pytest.raises(InvalidInput, match="top of its module"):
        load_function("m.py:outer.<locals>.f", root=project)
