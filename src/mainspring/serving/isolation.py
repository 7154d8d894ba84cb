"""Starts child processes so that they import nothing but this project and its libraries.

``python -m`` and ``PYTHONPATH`` put folders that the user chose in front of the standard library: a file ``queue.py`` in the working
directory would run in the process that holds the socket, or in the one that loads models. So children start with ``-I`` from a neutral
directory, with an environment by allow-list, and get a list of the folders that hold the libraries.
"""

from __future__ import annotations

import functools
import importlib.machinery
import json
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

NEUTRAL = "/"
"""Working directory of children: nothing is imported from it, and no relative path leads to a file of the user."""

_NEEDED = ("mainspring", "msgspec", "blake3", "uvicorn", "uvloop", "httptools", "h11", "click")
"""Libraries without which no server starts: these are searched on the whole import path."""

_ENVIRONMENT = frozenset(
    {
        "LANG",
        "LANGUAGE",
        "TZ",
        "TZDIR",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "GLIBC_TUNABLES",
        "MAINSPRING_FAILPOINTS",
        "MAINSPRING_FAILPOINT_RELEASE",
    }
)
_BOOT = (
    "import json, sys; places, module = json.loads(sys.argv[1]), sys.argv[2]; del sys.argv[1:3]; "
    "sys.path += [p for p in places if p not in sys.path]; "
    "import runpy; runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
_SITES = frozenset({"site-packages", "dist-packages"})


def libraries() -> list[str]:
    """Top-level packages that a serving process may import beside the standard library: :data:`_NEEDED`, and those of all model formats."""
    from mainspring.models.formats.table import model_formats

    of_formats = {
        n
        for entry in model_formats()
        for n in (*entry.packages, *(m.partition(".")[0] for m in entry.modules))
    }
    return [*_NEEDED, *sorted(of_formats - set(_NEEDED))]


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``module`` isolated. Start it in :data:`NEUTRAL` with :func:`environment`."""
    return [sys.executable, "-I", "-c", _BOOT, json.dumps(_import_places()), module, *arguments]


def environment() -> dict[str, str]:
    """The environment of a child: language, time zone, threads. No secret, and nothing that changes what Python imports."""
    kept = {k: v for k, v in os.environ.items() if k in _ENVIRONMENT or k.startswith("LC_")}
    return kept | {
        "ORT_DISABLE_TELEMETRY": "1",  # read when ONNX Runtime is imported
        # Arrow's other allocators take 1 GiB of address space with the first bytes, which is about all that a model may have.
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }


@functools.cache
def code_places() -> list[Path]:
    """Files and folders that a process must read to import the libraries: standard library, site-packages, shared libraries.

    Of any other folder on the import path (a source checkout, ``PYTHONPATH``) only the libraries' own packages: other files in it
    are the user's, perhaps a workspace. Cached from the first call on, because a confined process cannot look for them.
    """
    stdlib = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    places = {Path(p) for p in stdlib if p}
    for entry in sys.path:
        if not entry:
            continue
        if Path(entry).name in _SITES or any(entry.startswith(s) for s in stdlib if s):
            places.add(Path(entry))
        elif entry.endswith(".zip"):
            continue
        else:
            places |= {place for name in libraries() for place in _find_package(name, [entry])}
    return sorted(places | _shared_libraries())


def _shared_libraries() -> set[Path]:
    """Folders of the usual places, and of the libraries that are mapped already (libc, libpython), wherever they are."""
    usual = {
        Path(p) for p in (sysconfig.get_config_var("LIBDIR"), "/lib", "/lib64", "/usr/lib", "/usr/lib64") if p
    }
    usual.add(Path("/usr/local/lib"))
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return usual
    mapped = {line.split(maxsplit=5)[5] for line in lines if line.count(" ") >= 5 and ".so" in line}
    places = {Path(p) for p in mapped if p.startswith("/") and not _SITES & set(Path(p).parts)}
    systems = (sys.base_prefix, sys.prefix, "/usr", "/lib", "/lib64", "/opt", "/nix")
    # A library elsewhere may be in a folder of the user: then only the file itself may be read, not what is beside it.
    return usual | {p.parent if any(map(p.is_relative_to, systems)) else p for p in places}


def _import_places() -> list[str]:
    """Folders to import from: where packages are installed, then this project's, then others on the import path (``PYTHONPATH``, source
    trees) that hold a needed library which the first two lack. A file ``numpy.py`` of the user is in none of these.
    """
    here = {"", str(Path.cwd())}
    ours = str(Path(__file__).parents[2])
    path = [p for p in sys.path if p not in here]
    installed = [p for p in path if Path(p).name in _SITES]
    folders = [str(place.parent) for name in libraries() for place in _find_package(name, installed)]
    missing = [name for name in sorted(_NEEDED) if not _find_package(name, [*folders, ours])]
    folders += [ours, *(str(place.parent) for name in missing for place in _find_package(name, path))]
    return list(dict.fromkeys(folders))


def _find_package(name: str, path: Iterable[str]) -> list[Path]:
    """Where ``path`` has package or module ``name``, without importing it; empty if it has none."""
    spec = importlib.machinery.PathFinder.find_spec(name, list(path))
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [Path(p) for p in spec.submodule_search_locations]
    return [] if spec.origin is None else [Path(spec.origin)]
