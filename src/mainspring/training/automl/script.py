"""The winner as a script: plain scikit-learn that a person may edit, and one call that registers what it fits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mainspring.training.registering import Part

_WIDTH = 100


def write_script(
    estimator: Any, *, run: str, chosen: str, model: str, training: Part, holdout: Part, lists: Mapping[str, list[str]],
    settings: Mapping[str, Any],
) -> str:  # fmt: skip
    """A whole module. ``lists``: columns by the name that the script gives them; ``settings``: further constants."""
    source = _Source(lists)
    body = source.text(estimator, 4)
    imports = [f"from {m} import {', '.join(sorted(names))}" for m, names in sorted(source.imports.items())]
    constants = {
        "MODEL": model,
        **settings,
        **lists,
        "TRAINING": (training.version.dataset, training.version.id),
        "HOLDOUT": (holdout.version.dataset, holdout.version.id),
    }
    lines = [
        f'"""{chosen}, as ms.train chose it in run {run}.',
        "",
        "Running this in the project registers the next version of the model, with the same predictions. Columns, steps and params",
        "may be edited; the versions that train and judge stay as they are, so that the two can be compared.",
        '"""',
        "",
        *imports,
        "",
        "import mainspring as ms",
        "from mainspring.training.automl.registering import fit_and_register, read_part",
        "",
        *(f"{name} = {_Source({}).text(value, 0)}" for name, value in constants.items()),
        "",
        "",
        "def estimator():",
        f"    return {body}",
        "",
        "",
        *_MAIN,
    ]
    return "\n".join(lines) + "\n"


_MAIN = """
def main():
    with ms.open() as workspace, workspace.tracking.start_run(experiment="automl", name=MODEL) as run:
        training, holdout = read_part(workspace, *TRAINING), read_part(workspace, *HOLDOUT)
        run.log_inputs(training.version.id)
        version = fit_and_register(
            workspace,
            run,
            estimator(),
            model=MODEL,
            training=training,
            holdout=holdout,
            inputs=NUMBERS + TEXTS + DATES,
            target=TARGET,
            task=TASK,
            metric=METRIC,
            time=TIME,
            group=GROUP,
            seed=SEED,
        )
    print(f"{MODEL} version {version.version}: {version.metrics}")


if __name__ == "__main__":
    main()
""".strip().splitlines()


@dataclass
class _Source:
    """Writes values as Python that makes them again, and notes what must be imported for it."""

    lists: Mapping[str, list[str]]
    imports: dict[str, set[str]] = field(default_factory=dict)

    def text(self, value: Any, indent: int) -> str:
        for name, known in self.lists.items():
            if value == known and isinstance(value, list) and value:
                return name
        if isinstance(value, list | tuple):
            ends = "[]" if isinstance(value, list) else "()"
            parts = [("", v) for v in value]
            return self._write_bracketed(ends, parts, indent, trailing=ends == "()" and len(value) == 1)
        if hasattr(value, "get_params"):
            return self._write_estimator(value, indent)
        return repr(value.item() if hasattr(value, "item") else value)

    def _write_estimator(self, value: Any, indent: int) -> str:
        kind = type(value)
        module = kind.__module__.partition("._")[
            0
        ]  # sklearn.ensemble._forest is private, sklearn.ensemble is where it is imported from
        self.imports.setdefault(module, set()).add(kind.__name__)
        params = value.get_params(deep=False)
        parts = []
        for name, parameter in inspect.signature(kind.__init__).parameters.items():
            default = parameter.default
            # Identity first: the default of missing_values is NaN, which is unlike itself.
            if (
                name in params
                and params[name] is not default
                and (default is parameter.empty or params[name] != default)
            ):
                parts.append((f"{name}=", params[name]))
        return kind.__name__ + self._write_bracketed("()", parts, indent)

    def _write_bracketed(
        self, ends: str, parts: list[tuple[str, Any]], indent: int, *, trailing: bool = False
    ) -> str:
        inner = [prefix + self.text(v, indent + 4) for prefix, v in parts]
        flat = ", ".join(inner) + ("," if trailing else "")
        if len(flat) + indent <= _WIDTH and "\n" not in flat:
            return ends[0] + flat + ends[1]
        space = " " * (indent + 4)
        return ends[0] + "\n" + "".join(f"{space}{line},\n" for line in inner) + " " * indent + ends[1]
