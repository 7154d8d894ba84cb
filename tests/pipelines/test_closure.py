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
    return Closures(project).of(load_function(spec, root=project)).digest


def parts(project: Path, spec: str = "m.py:f") -> set[str]:
    forget_projects(project)
    return set(Closures(project).of(load_function(spec, root=project)).parts)


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


def test_a_step_inside_another_function_is_refused_by_name(project: Path, write: Write) -> None:
    write("m.py", "def outer():\n    @step\n    def f(x): return x\n    return f\nmade = outer()\n")
    with pytest.raises(InvalidInput, match="top of its module"):
        load_function("m.py:outer.<locals>.f", root=project)
