"""``mainspring.serving.trial FOLDER``: load the package in FOLDER as a server does, print ``null`` or the error as JSON, and end."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from mainspring.errors import MainspringError
from mainspring.serving.isolation import code_places
from mainspring.serving.model_process import (
    TOO_LARGE,
    address_space,
    bound_memory,
    import_libraries,
    memory_for,
)
from mainspring.serving.options import ServeOptions
from mainspring.serving.sandbox import confine


def main(argv: list[str]) -> int:
    """Try one package. Libraries are imported before the process is confined: some read other files while they are imported."""
    folder = Path(argv[0])
    options = ServeOptions(bundle=str(folder.parent.parent))
    from mainspring.models import formats
    from mainspring.serving.versions import open_version

    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        import_libraries(formats.verify(folder).format)
        code_places()
        size = address_space()
        confine(read=[folder], write=[], mode="auto")
        bound_memory(size, memory_for(folder, options))
        open_version(folder, folder.name, inline_ms=options.inline_ms, max_rows=options.max_rows)
        failure = None
    except MemoryError:
        failure = TOO_LARGE.to_dict()
    except MainspringError as error:
        failure = error.to_dict()
    print(json.dumps(failure, default=str))  # noqa: T201 - this is a command
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
