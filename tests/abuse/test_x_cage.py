"""SAFETY X: what reaches the processes that load models, and what these can reach."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from mainspring.serving import isolation
from mainspring.serving.sandbox import landlock_abi


def _helpers() -> ModuleType:
    """The serving room's fixtures: the same real server."""
    path = Path(__file__).parents[1] / "serving" / "conftest.py"
    spec = importlib.util.spec_from_file_location("serving_helpers_cage", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serving_helpers_cage"] = module
    spec.loader.exec_module(module)
    return module


helpers = _helpers()
packages, start = helpers.packages, helpers.start

INSIDE = """
import json, os, socket, stat, subprocess, sys
from pathlib import Path
from mainspring.serving import worker
from mainspring.serving.options import ServeOptions
from mainspring.serving.sandbox import confine
import ctypes, mmap, platform, resource, fcntl

libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    # by its number on x86_64; raises what it fails with
    if platform.machine() != "x86_64":
        raise PermissionError("not tried here")
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def namespace(number, *arguments):
    # a child in namespaces of its own; it ends at once
    pid = libc.syscall(number, *arguments)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise PermissionError
    os.waitpid(pid, 0)


bundle, kind = Path(sys.argv[1]), sys.argv[2]
if kind == "worker":
    assert worker.enter(ServeOptions(bundle=str(bundle), sandbox="require")) == "landlock"
else:
    assert confine(read=[bundle / "packages" / "mine"], write=[], mode="require", processes=kind == "keeper") == "landlock"
home = bundle.parent
mine = {
    "own package": lambda: (bundle / "packages" / "mine" / "model.json").read_text(),
    "a module": lambda: __import__("decimal").Decimal(1),
    "a library": lambda: __import__("numpy").ones(1),
    "the processor": lambda: Path("/proc/cpuinfo").read_text(),
    "time zones": lambda: __import__("zoneinfo").ZoneInfo("Europe/Berlin"),
    "nothing": lambda: open(os.devnull, "w").write("x"),
}
if kind == "worker":
    mine["its log"] = lambda: (bundle / "log" / "x").write_text("fine")
    mine["the routes"] = lambda: (bundle / "routes.json").read_text()
others = {
    "the token": lambda: (home / "token").read_text(),
    "the database": lambda: (home / "meta.db").read_bytes(),
    "another bundle": lambda: (home.parent.parent / "other" / ".mainspring" / "bundle" / "routes.json").read_text(),
    "the project": lambda: os.listdir(home.parent),
    "the supervisor's environment": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "the supervisor's memory": lambda: open(f"/proc/{os.getppid()}/mem", "rb"),
    "its own descriptors": lambda: os.listdir("/proc/self/fd"),
    "processes": lambda: os.listdir("/proc"),
    "users": lambda: Path("/etc/passwd").read_text(),
    "the home": lambda: os.listdir(Path.home()),
    "the root": lambda: os.listdir("/"),
    "temporary files": lambda: os.listdir("/tmp"),
    "writing beside": lambda: (home / "x").write_text("no"),
    "writing the bundle": lambda: (bundle / "x").write_text("no"),
    "replacing the routes": lambda: os.replace(bundle / "routes.json", bundle / "packages" / "routes.json"),
    "temporary writing": lambda: Path("/tmp/mainspring-cage").write_text("no"),
    "a pipe in its log": lambda: os.mknod(bundle / "log" / "d", 0o600 | stat.S_IFIFO),
    "TCP out": lambda: socket.create_connection(("127.0.0.1", int(sys.argv[3])), 5),
    "TCP in": lambda: socket.create_server(("127.0.0.1", 0)),
    "UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "a socket file": lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[4]),
    "a program": lambda: subprocess.run(["/bin/true"]),
    "a signal": lambda: os.kill(os.getppid(), 0),
    "the mode of the database": lambda: os.chmod(home / "meta.db", 0),
    "the mode of its own package": lambda: os.chmod(bundle / "packages" / "mine" / "model.json", 0o666),
    "the owner of the token": lambda: os.chown(home / "token", os.getuid(), os.getgid()),
    "the times of the token": lambda: os.utime(home / "token"),
    "an attribute of the database": lambda: os.setxattr(home / "meta.db", "user.x", b"x"),
    "names as they come": lambda: call(254 - 1),
    "the limits of the supervisor": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (60, 60)),
    "the priority of the supervisor": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19),
    "the processors of the supervisor": lambda: os.sched_setaffinity(os.getppid(), {0}),
    "shared memory": lambda: call(29, 0, 4096, 0o1600),
    "a message queue": lambda: call(240, b"/mainspring", os.O_CREAT | os.O_RDWR, 0o600, None),
    "a user namespace": lambda: namespace(56, 0x10000000 | 17, None, None, None, None),
    "any namespace, the new way": lambda: namespace(435, ctypes.create_string_buffer((0x40000000).to_bytes(8, "little") + bytes(80)), 88),
    "another root": lambda: os.chroot("/"),
    "a queue of calls": lambda: call(425, 8, ctypes.create_string_buffer(256)),
    "abstract sockets": lambda: socket.socket(socket.AF_UNIX),
    "raw sockets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "machines beside": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "typing into the terminal": lambda: fcntl.ioctl(int(sys.argv[5]), 0x5412, b"x"),
}
if kind == "worker":
    others["a child"] = fork
else:
    mine["a child"] = fork
if kind == "keeper":
    others |= {"the log": lambda: os.listdir(bundle / "log"), "another package": lambda: os.listdir(bundle / "packages" / "theirs")}
told = {"environment": sorted(os.environ), "directory": os.getcwd(), "path": sys.path, "could": [], "could not": []}
for name, attempt in others.items():
    try:
        attempt()
        told["could"].append(name)
    except PermissionError:
        pass
    except OSError as error:
        told["could"].append(f"{name}: {error}")
for name, attempt in mine.items():
    try:
        attempt()
    except Exception as error:
        told["could not"].append(f"{name}: {error}")
print(json.dumps(told))
"""


@pytest.mark.kernel
@pytest.mark.parametrize("kind", ["worker", "keeper"])
def test_X05_what_a_model_can_reach_from_inside(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cage itself, entered as the worker and a model's process do, from a project that is the working directory. Each attempt
    is refused. Seen red with the sandbox of 0.1 (token, database, other bundle, environment, UDP, programs), with mode ``off``,
    and (modes, owners, times, limits and priorities of others, shared memory, namespaces, children) with the calls of 0.1 refused only.
    """
    if landlock_abi() < 6:
        pytest.skip("this kernel's Landlock does not hold back signals")
    import socket

    for project in ("mine", "other"):
        bundle = tmp_path / project / ".mainspring" / "bundle"
        for name in ("packages/mine", "packages/theirs", "log"):
            (bundle / name).mkdir(parents=True)
        (bundle / "routes.json").write_text("{}")
        (bundle / "packages" / "mine" / "model.json").write_text("{}")
        for name in ("token", "meta.db"):
            (bundle.parent / name).write_text("secret")
    home = tmp_path / "mine" / ".mainspring"
    (tmp_path / "inside.py").write_text(INSIDE)
    monkeypatch.chdir(home.parent)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", str(home.parent))
    (home.parent / "inside.py").write_text("raise SystemExit('from the working directory')")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        command = isolation.command(
            "inside", str(home / "bundle"), kind, str(tcp.getsockname()[1]), str(tmp_path / "s")
        )
        at = next(i for i, part in enumerate(command) if part.startswith("["))
        command[at] = json.dumps([*json.loads(command[at]), str(tmp_path)])
        master, terminal = pty.openpty()
        try:
            done = subprocess.run(
                [*command, str(terminal)],
                capture_output=True,
                timeout=120,
                check=False,
                cwd=isolation.NEUTRAL,
                env=isolation.environment(),
                pass_fds=[terminal],
            )
        finally:
            os.close(master)
            os.close(terminal)
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert told["could"] == []
    assert told["could not"] == []
    assert told["directory"] == "/"
    assert not {"AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "HOME"} & set(told["environment"])
    assert str(home.parent) not in told["path"]


@pytest.mark.parametrize("command", ["serve", "module"])
def test_X05_files_of_the_project_do_not_reach_the_server(
    command: str, tmp_path: Path, packages: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``uvloop.py`` and ``queue.py`` in the folder where the server is started, and on ``PYTHONPATH``: never imported, by the supervisor,
    the worker, or a model's process. Seen red with children started by ``python -m`` from where we are.
    """
    project, marker = tmp_path / "project", tmp_path / "marker"
    bundle = helpers.Bundle(project / ".mainspring" / "bundle", packages)
    bundle.route(bundle.target(1, 0.75))
    for name in (
        "uvloop",
        "queue",
        "uvicorn",
        "numpy",
        "onnxruntime",
        "secrets",
        "sitecustomize",
        "usercustomize",
    ):
        (project / f"{name}.py").write_text(
            f"open({str(marker)!r}, 'a').write({name!r} + '\\n')\nraise SystemExit(9)\n"
        )
    monkeypatch.chdir(project)
    if command == "serve":
        monkeypatch.delenv("PYTHONPATH", raising=False)
        (project / "mainspring.toml").write_text('[project]\nname = "p"\n')
        script = Path(sys.executable).with_name("mainspring")
        argv = [str(script), "serve", "--port", "0", "--poll", "0.05"]
    else:
        argv = [sys.executable, "-m", "mainspring.serving", "--bundle", ".mainspring/bundle", "--port", "0"]
    with (tmp_path / "stderr").open("wb") as errors:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors)
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline() or b"null")
        assert ready, (tmp_path / "stderr").read_text()
        client = helpers.Client(ready["port"])
        status, _, body = client.call("POST", "/v1/deployments/d/predict", {"rows": [{"x0": 1, "x1": 2}]})
        assert status == 200, body
        worker = psutil.Process(ready["worker"])
        assert worker.cwd() == "/"
        assert "-I" in worker.cmdline()
        client.close()
    finally:
        process.terminate()
        process.wait(120)
        process.stdout.close()
    assert not marker.exists(), marker.read_text()


@pytest.mark.parametrize("name", ["uvloop", "sklearn", "numpy"])
def test_X05_a_folder_on_the_path_is_no_place_of_libraries(name: str, tmp_path: Path) -> None:
    """A file of the user's with the name of a library, on ``PYTHONPATH``: its folder, with all that lies in it, stays off the path of
    our children. Seen red with libraries looked for there as where packages are installed."""
    (tmp_path / f"{name}.py").touch()
    code = "from mainspring.serving.isolation import command; print(command('module')[-2])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        timeout=300,
        check=True,
    )
    places = json.loads(done.stdout)
    assert str(tmp_path) not in places
    assert places


def test_X05_the_server_hands_no_secret_on(
    tmp_path: Path, packages: Callable[[float], Path], start: Any
) -> None:
    """Seen red with the environment inherited."""
    bundle = helpers.Bundle(tmp_path / "bundle", packages)
    bundle.route(bundle.target(1, 0.75))
    server = start(
        bundle,
        env={
            **os.environ,
            "DATABASE_URL": "postgres://secret",
            "MAINSPRING_TOKEN": "secret",
            "LC_ALL": "C.UTF-8",
        },
    )
    worker = psutil.Process(server.ready["worker"])
    for process in (worker, *worker.children(recursive=True)):
        environment = process.environ()
        assert not {"DATABASE_URL", "MAINSPRING_TOKEN", "HOME", "PATH"} & set(environment)
        assert environment["LC_ALL"] == "C.UTF-8"
