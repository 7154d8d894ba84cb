"""The table of model formats: who is in it, what an entry owes, who asks it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mainspring.models import formats
from mainspring.models.formats import table


@pytest.mark.parametrize("name", [n for n in table.names() if table.model_format(n).extra != "boosting"])
def test_every_format_of_the_table_keeps_the_contract(name: str) -> None:
    """The boosters' own forms are tested where their libraries are: `tests/engines`. Seen red with `form` taken out of `test_skops.py`."""
    text = Path(__file__).with_name(f"test_{name}.py").read_text()
    assert "(FormatContract):" in text
    assert f'form = "{name}"' in text
    assert table.model_format(name).name == name


def test_looking_at_every_entry_imports_no_framework() -> None:
    """The control plane checks packages with them. Seen red with `import numpy` at the top of `skops/__init__.py`."""
    program = (
        "import sys\nfrom mainspring.models.formats import table\n"
        "needed = {m.partition('.')[0] for entry in table.model_formats() for m in (*entry.modules, *entry.packages)} - {'mainspring'}\n"
        "assert 'numpy' in needed and len(needed) > 5, needed\n"
        "assert not needed & set(sys.modules), needed & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_nothing_outside_of_the_formats_names_one() -> None:
    """Seen red with `package.format == "onnx"` asked in `serving/table.py`."""
    source = Path(formats.__file__).parents[2]
    names = {name for entry in table.model_formats() for name in (entry.name, *entry.payloads)}
    named = [
        f"{path.relative_to(source)}:{node.lineno}: {node.value!r}"
        for path in source.rglob("*.py")
        if not path.is_relative_to(source / "models" / "formats")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    ]
    assert named == []
