"""``python -m mainspring.serving --bundle DIR --port N``: an inference server on its own."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and not sys.flags.safe_path and sys.path and sys.path[0] in {"", str(Path.cwd())}:
    # `python -m` put the working directory there: a file queue.py in it is the user's, not the standard library's.
    # Only then: who imports this module has put it there for reasons of their own.
    del sys.path[0]

import argparse

from mainspring.errors import ConfigError, MainspringError
from mainspring.serving.supervisor import serve


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and serve; errors go to stderr with their code."""
    arguments = vars(_parser().parse_args(argv))
    key_file = arguments.pop("api_key_file")
    lifeline = 0 if arguments.pop("end_with_stdin") else None
    options = {name: value for name, value in arguments.items() if value is not None}
    try:
        if key_file is not None:
            options["api_key"] = _read_key(key_file)
            options.setdefault("auth", "key")
        return serve(Path(options.pop("bundle")), lifeline=lifeline, **options)
    except MainspringError as error:
        print(f"error[{error.code}]: {error}", file=sys.stderr)  # noqa: T201 - this is a command
        return error.exit_code


def _read_key(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"the API key cannot be read: {error.strerror}", value=path) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mainspring.serving", description="Serve a bundle of models."
    )
    parser.add_argument("--bundle", type=Path, required=True, help="directory with routes.json and packages/")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, help="0: any free one (printed when ready)")
    parser.add_argument("--poll", dest="poll_s", type=float, help="seconds between looks at routes.json")
    parser.add_argument("--auth", choices=("open", "key", "proxy"))
    parser.add_argument(
        "--api-key-file", type=Path, help="file with the key that clients send as a Bearer token"
    )
    parser.add_argument(
        "--allow-host", dest="hosts", action="append", help="a further host name to answer for"
    )
    parser.add_argument("--log-mode", choices=("best_effort", "required"))
    parser.add_argument("--max-body", type=int, help="bytes")
    parser.add_argument("--max-rows", type=int)
    parser.add_argument(
        "--head-deadline", dest="head_deadline_s", type=float, help="seconds for the head of a request"
    )
    parser.add_argument(
        "--body-deadline",
        dest="body_deadline_s",
        type=float,
        help="seconds for its body, and to read the answer",
    )
    parser.add_argument("--slots", type=int)
    parser.add_argument("--queue", type=int)
    parser.add_argument("--memory-mb", type=int)
    parser.add_argument(
        "--model-memory-mb",
        type=int,
        help="what a model in a process of its own may allocate",
    )
    parser.add_argument(
        "--deadline", dest="deadline_s", type=float, help="seconds for a prediction; then 504"
    )
    parser.add_argument(
        "--no-spare",
        dest="spare",
        action="store_const",
        const=False,
        help="keep no second worker loaded: half the memory, and a gap when a worker dies",
    )
    parser.add_argument(
        "--end-with-stdin",
        action="store_true",
        help="end when standard input is closed: when whoever started the server is gone",
    )
    parser.add_argument("--sandbox", choices=("auto", "require", "off"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
