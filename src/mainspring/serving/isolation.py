"""How a child of ours is started so that nothing but our own code and libraries reaches it.

``python -m`` and ``PYTHONPATH`` put folders of the user's choosing in front of the standard library: a file ``queue.py`` in the
working directory would run in the process that holds the socket, or in the one that models are loaded in. So children start with
``-I`` from a neutral directory, with an environment by allow-list, and are told by name where our libraries are.
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
"""Working directory of children: nothing is imported from it, and no relative path means anything."""

_NEEDED = ("mainspring", "msgspec", "blake3", "uvicorn", "uvloop", "httptools", "h11", "click")
"""Without these there is no server: they are looked for wherever they may be."""

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
    """What a serving process may import beside the standard library, by top-level name: ours, and those of every model format."""
    from mainspring.models.formats.table import model_formats

    named = {
        n
        for entry in model_formats()
        for n in (*entry.packages, *(m.partition(".")[0] for m in entry.modules))
    }
    return [*_NEEDED, *sorted(named - set(_NEEDED))]


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``module`` isolated. Start it in :data:`NEUTRAL` with :func:`environment`."""
    return [sys.executable, "-I", "-c", _BOOT, json.dumps(_import_places()), module, *arguments]


def environment() -> dict[str, str]:
    """The part of our environment that a child gets: language, time zone, threads. No secret, nothing that steers Python."""
    kept = {k: v for k, v in os.environ.items() if k in _ENVIRONMENT or k.startswith("LC_")}
    return kept | {"ORT_DISABLE_TELEMETRY": "1"}  # it counts from the import on


@functools.cache
def code_places() -> list[Path]:
    """What a process must be able to read to import our libraries: standard library, site-packages, shared libraries.

    Of any other folder on the import path (a source checkout, ``PYTHONPATH``) only our libraries' own packages: what lies beside
    them is the user's, a workspace perhaps. Kept from the first call on: inside the cage it could not be found out.
    """
    stdlib = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    found = {Path(p) for p in stdlib if p}
    for entry in sys.path:
        if not entry:
            continue
        if Path(entry).name in _SITES or any(entry.startswith(s) for s in stdlib if s):
            found.add(Path(entry))
        elif entry.endswith(".zip"):
            continue
        else:
            found |= {place for name in libraries() for place in _package(name, [entry])}
    return sorted(found | _shared_libraries())


def _shared_libraries() -> set[Path]:
    """Folders of what is mapped already (libc, libpython), wherever this system keeps them."""
    found = {
        Path(p) for p in (sysconfig.get_config_var("LIBDIR"), "/lib", "/lib64", "/usr/lib", "/usr/lib64") if p
    }
    found.add(Path("/usr/local/lib"))
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return found
    mapped = {line.split(maxsplit=5)[5] for line in lines if line.count(" ") >= 5 and ".so" in line}
    places = {Path(p) for p in mapped if p.startswith("/") and not _SITES & set(Path(p).parts)}
    systems = (sys.base_prefix, sys.prefix, "/usr", "/lib", "/lib64", "/opt", "/nix")
    # A library that lies elsewhere lies in somebody's folder: it may be read, and what is beside it not.
    return found | {p.parent if any(map(p.is_relative_to, systems)) else p for p in places}


def _import_places() -> list[str]:
    """Folders that hold our libraries: where packages are installed, then our own, then those of others (``PYTHONPATH``, source trees)
    that hold a library which no server can do without. A file ``numpy.py`` beside the user's own is not one of these.
    """
    here = {"", str(Path.cwd())}
    ours = str(Path(__file__).parents[2])
    path = [p for p in sys.path if p not in here]
    installed = [p for p in path if Path(p).name in _SITES]
    found = [str(place.parent) for name in libraries() for place in _package(name, installed)]
    missing = [name for name in sorted(_NEEDED) if not _package(name, [*found, ours])]
    found += [ours, *(str(place.parent) for name in missing for place in _package(name, path))]
    return list(dict.fromkeys(found))


def _package(name: str, path: Iterable[str]) -> list[Path]:
    """Where ``path`` has package or module ``name``; looked up, not imported."""
    spec = importlib.machinery.PathFinder.find_spec(name, list(path))
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [Path(p) for p in spec.submodule_search_locations]
    return [] if spec.origin is None else [Path(spec.origin)]
