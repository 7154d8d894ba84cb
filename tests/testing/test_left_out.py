"""What was left out is counted, and in CI it is a failure unless a kernel test's twin ran."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest

@pytest.mark.kernel
def test_o07_for_real():
    pytest.skip("no mount namespaces here")

def test_o07_twin():
    assert {twin}

@pytest.mark.kernel(twin="test_the_cage_is_asked_for")
def test_the_cage_holds():
    pytest.skip("this kernel has no Landlock")

def test_the_cage_is_asked_for():
    pass

@pytest.mark.soak
def test_long():
    raise AssertionError
"""

INI = "[pytest]\nmarkers =\n  kernel: x\n  soak: x\n"


def run(folder: Path, body: str, *, strict: bool, workers: int = 0) -> tuple[int, str]:
    (folder / "test_suite.py").write_text(body)
    (folder / "pytest.ini").write_text(INI)
    plugins = Path(__file__).parents[1] / "plugins"
    env = {k: v for k, v in os.environ.items() if k not in {"MAINSPRING_CI", "PYTEST_ADDOPTS"}}
    env |= {"PYTHONPATH": str(plugins)} | ({"MAINSPRING_CI": "1"} if strict else {})
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "left_out",
        "-p",
        "no:cacheprovider",
        "-m",
        "not soak",
    ]
    command += ["-n", str(workers)] if workers else []
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_kernel_tests_with_a_twin_are_excused_and_counted(tmp_path: Path, workers: int) -> None:
    code, said = run(tmp_path, SUITE.format(twin=True), strict=True, workers=workers)
    assert code == 0, said
    assert "left out: 2 (1 soak tests belong to `make soak`)" in said
    assert "1 x no mount namespaces here" in said


def test_a_twin_that_failed_excuses_nothing(tmp_path: Path) -> None:
    code, said = run(tmp_path, SUITE.format(twin=False), strict=True)
    assert code == 1
    assert "a failure here, since MAINSPRING_CI is set: test_suite.py::test_o07_for_real" in said
    assert "MAINSPRING_CI is set: test_suite.py::test_the_cage_holds" not in said


def test_any_other_skip_fails_in_ci_only(tmp_path: Path) -> None:
    plain = "import pytest\ndef test_a():\n    pytest.skip('why')\n"
    alone = "import pytest\n@pytest.mark.kernel\ndef test_alone():\n    pytest.skip('why')\ndef test_b():\n    pass\n"
    module = "import pytest\npytest.skip('why', allow_module_level=True)\n"
    for body in (plain, alone, module):
        code, said = run(tmp_path, body, strict=True)
        assert code != 0, said
        assert "left out: 1" in said
    code, said = run(tmp_path, alone, strict=False)
    assert code == 0, said
    assert "1 x why" in said
