"""Captures the code, environment and machine of a run; an error in it never fails the run.

What could not be captured is recorded as ``missing`` with the reason. Nothing secret is captured: no environment variables; of
the command line only the names of flags, numbers and file names; credentials in the URL of a Git remote are removed (L03).
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from mainspring.records.tracking import CodeState, EnvironmentState, FileState, Package
from mainspring.tracking import sources

MAX_DIFF = 1 << 20
"""A diff of at most so many bytes is kept as text; of a longer one only the digest."""

MAX_UNTRACKED = 500
MAX_FILE = 4 << 20
_SOURCE = {
    ".py",
    ".toml",
    ".cfg",
    ".ini",
    ".yaml",
    ".yml",
    ".json",
    ".sql",
    ".sh",
    ".txt",
    ".md",
    ".ipynb",
    ".r",
    ".jl",
}
_GIT_S = 10.0


@dataclass
class Captured:
    """Plain data, ready for the spool."""

    code: CodeState | None = None
    environment: EnvironmentState | None = None
    source: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Source files by their path in ``code.files``."""


def capture(
    *, root: Path | None = None, seeds: dict[str, int] | None = None, files: Iterable[str] | None = None
) -> Captured:
    """The code, environment and machine of this process, for the folder ``root`` (default: the current one). Never raises.

    ``files``: source files to keep, relative to ``root``; by default the entry script or notebook and the modules imported
    from below ``root``.
    """
    captured = Captured()
    missing: list[str] = []
    try:
        captured.code = capture_code(root or Path.cwd())
        kept = sources.collect(root or Path.cwd(), files)
        captured.code = msgspec.structs.replace(captured.code, files=kept.states)
        captured.files = kept.contents
    except Exception as error:  # noqa: BLE001 - a broken repository must not fail a training
        missing.append(f"code: {error}")
    try:
        captured.environment = capture_environment()
    except Exception as error:  # noqa: BLE001
        missing.append(f"environment: {error}")
    try:
        captured.source = {"argv": safe_argv(sys.argv), "hardware": hardware(), "seeds": seeds or {}}
    except Exception as error:  # noqa: BLE001
        missing.append(f"machine: {error}")
    if missing:
        captured.source["missing"] = missing
    return captured


# --- code ----------------------------------------------------------------------------------------------------------------


def capture_code(root: Path) -> CodeState:
    """The state of the Git work tree around ``root``: commit, what differs from it, and untracked source files by digest."""
    script = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else None
    missing: list[str] = []
    top = _run_git(root, "rev-parse", "--show-toplevel", missing=missing)
    if top is None:
        return CodeState(script=script, missing=missing)
    work = Path(top.decode("utf-8", "surrogateescape").rstrip("\n"))
    commit = _run_git(work, "rev-parse", "--verify", "--quiet", "HEAD", missing=missing)
    branch = _run_git(work, "rev-parse", "--abbrev-ref", "HEAD", missing=[]) if commit else None
    remote = _run_git(work, "config", "--get", "remote.origin.url", missing=[])
    diff = (
        _run_git(
            work,
            *("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--binary", "HEAD"),
            *("--", ".", ":(exclude,glob)**/.env*"),  # a tracked file of secrets is not copied
            missing=missing,
        )
        if commit
        else b""
    )
    listed = _run_git(work, "ls-files", "--others", "--exclude-standard", "-z", missing=missing) or b""
    untracked = _list_untracked(work, [n for n in listed.split(b"\0") if n])
    return CodeState(
        commit=_decode_line(commit),
        branch=_decode_line(branch),
        remote=safe_url(_decode_line(remote) or "") if remote else None,
        dirty=bool(diff) or bool(untracked) or diff is None,
        diff=cut_credentials(diff.decode("utf-8", "replace")) if diff and len(diff) <= MAX_DIFF else None,
        diff_digest=_digest(diff) if diff else None,
        diff_bytes=len(diff or b""),
        untracked=untracked,
        script=script,
        missing=missing,
    )


def _run_git(root: Path, *arguments: str, missing: list[str]) -> bytes | None:
    # Read only: no pager, prompt, hook or file-system monitor of the repository may run.
    command = [
        "git",
        "-c",
        "core.fsmonitor=false",
        "-c",
        "core.hooksPath=/dev/null",
        "--no-optional-locks",
        "-C",
        str(root),
        *arguments,
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_GIT_S, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        missing.append("git is not installed")
        return None
    except subprocess.TimeoutExpired:
        missing.append(f"git {arguments[0]} took more than {_GIT_S:.0f} s")
        return None
    if done.returncode:
        message = done.stderr.decode("utf-8", "replace").strip().splitlines()
        missing.append(f"git {arguments[0]}: {message[0] if message else f'exit {done.returncode}'}"[:300])
        return None
    return done.stdout


def _list_untracked(work: Path, names: list[bytes]) -> list[FileState]:
    states: list[FileState] = []
    for raw in names:
        name = os.fsdecode(raw)
        if Path(name).suffix.lower() not in _SOURCE:
            continue
        shown = name.encode("utf-8", "backslashreplace").decode()
        if len(states) == MAX_UNTRACKED:
            states.append(FileState(path="...", skipped=f"more than {MAX_UNTRACKED} untracked source files"))
            break
        states.append(_file_state(work / name, shown))
    return states


def _file_state(path: Path, shown: str) -> FileState:
    try:
        if path.is_symlink():
            return FileState(path=shown, skipped="a symbolic link")
        size = path.stat().st_size
        if size > MAX_FILE:
            return FileState(path=shown, size=size, skipped=f"larger than {MAX_FILE} bytes")
        return FileState(path=shown, size=size, digest=_digest(path.read_bytes()))
    except OSError as error:
        return FileState(path=shown, skipped=error.strerror or "unreadable")


def safe_url(url: str) -> str:
    """A Git remote without user, password, query and fragment.

    >>> safe_url("https://me:secret@host.example/a/b.git?token=x")
    'https://host.example/a/b.git'
    >>> safe_url("git@host.example:a/b.git")
    'host.example:a/b.git'
    """
    if "://" not in url:
        return url.rpartition("@")[2].partition("?")[0]
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


_CREDENTIALS = re.compile(r"(?<=://)[^\s/@'\"]+@")


def cut_credentials(text: str) -> str:
    """URLs in a text without their ``user:password@``.

    >>> cut_credentials("db = 'postgres://u:p@host/x'")
    "db = 'postgres://***@host/x'"
    """
    return _CREDENTIALS.sub("***@", text)


# --- environment -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def capture_environment() -> EnvironmentState:
    """Python, platform and every installed distribution with a hash of its file list. Read once per process."""
    from importlib import metadata

    packages: dict[str, Package] = {}
    missing: list[str] = []
    for distribution in metadata.distributions():
        try:
            name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
            if name and name not in packages:  # the first on the path is the one that is imported
                text = (
                    distribution.read_text("RECORD")
                    or distribution.read_text("METADATA")
                    or distribution.read_text("PKG-INFO")
                )
                packages[name] = Package(
                    name=name,
                    version=distribution.version,
                    hash=_digest(text.encode("utf-8", "replace")) if text else None,
                )
        except Exception as error:  # noqa: BLE001 - one broken distribution must not hide the others
            missing.append(f"a distribution could not be read: {error}"[:300])
    libc = "-".join(platform.libc_ver())
    return EnvironmentState(
        python=platform.python_version(),
        implementation=platform.python_implementation(),
        platform=platform.system(),
        machine=platform.machine(),
        libc=libc.strip("-"),
        packages=[packages[name] for name in sorted(packages)],
        missing=sorted(missing),
    )


def environment_digest(environment: EnvironmentState | None = None) -> str:
    """The digest that :meth:`Tracking.record_capture` names an environment by (also part of a pipeline's cache key)."""
    from mainspring.records.base import to_json

    return _digest(to_json(environment or capture_environment()))


# --- machine ---------------------------------------------------------------------------------------------------------------

_FLAG = re.compile(r"--?[A-Za-z][\w.-]{0,60}")
_PLAIN = re.compile(r"[\w./-]{1,60}")
_NUMBER = re.compile(r"[-+]?[0-9][0-9_.eE+-]{0,30}")
_SECRET = re.compile(r"pass|secret|token|key|cred|auth|pwd", re.IGNORECASE)


def safe_argv(argv: list[str]) -> list[str]:
    """The command line by an allow-list: the script's name, flags, numbers, and names of existing Python, TOML, YAML or JSON files.

    Anything else becomes ``***``: a password on a command line must not reach a database.

    >>> safe_argv(["train.py", "--lr=0.1", "--epochs", "3", "--token", "123", "hunter2"])
    ['train.py', '--lr=0.1', '--epochs', '3', '--token', '***', '***']
    """
    shown = [Path(argv[0]).name] if argv else []
    secret = False
    for word in argv[1:101]:
        flag, equals, value = word.partition("=")
        if _FLAG.fullmatch(flag):
            hidden = _SECRET.search(flag) is not None
            shown.append(flag + (f"={_mask_word(value, hidden=hidden)}" if equals else ""))
            secret = hidden and not equals
        else:
            shown.append(_mask_word(word, hidden=secret))
            secret = False
    return [*shown, f"... {len(argv) - 101} more"] if len(argv) > 101 else shown


def _mask_word(word: str, *, hidden: bool) -> str:
    if hidden:
        return "***"
    config = _PLAIN.fullmatch(word) is not None and word.endswith((".py", ".toml", ".yaml", ".yml", ".json"))
    return word if _NUMBER.fullmatch(word) or word in {"true", "false", "True", "False"} or config else "***"


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory in bytes."""
    machine: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    }
    try:
        machine["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            machine["processor"] = next(
                (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
                platform.processor(),
            )
    except (OSError, ValueError):
        machine["processor"] = platform.processor()
    return machine


def _digest(data: bytes) -> str:
    import blake3

    return blake3.blake3(data).hexdigest()


def _decode_line(output: bytes | None) -> str | None:
    return output.decode("utf-8", "replace").strip() or None if output else None
