"""``mainspring predict``: of an inference server, or of a model version loaded here."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

import click

from mainspring.cli.output import (
    chosen_workspace,
    json_option,
    local_settings,
    print_json,
    print_note,
)
from mainspring.cli.rows import Batch, Kinds, PredictionWriter, RowForm, form_of, opened, read_batches

if TYPE_CHECKING:
    from mainspring.errors import MainspringError
    from mainspring.models.formats.model import Model

_BATCH = 1000
_MAX_TEXT = 1 << 24
_PROGRESS_S = 0.5
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Answer:
    """Predictions of a batch, as the server's JSON has them. ``ident``: the request's id."""

    predictions: list[dict[str, Any]]
    model: str
    version: int
    ident: str | None = None

    @property
    def by(self) -> str:
        return f"{self.model} version {self.version}"


class Predictions(Protocol):
    """What answers: a server or a loaded version."""

    @property
    def kinds(self) -> Kinds: ...

    def of(self, batch: Batch) -> list[tuple[Batch, Answer]]: ...


@click.command()
@click.argument("deployment", required=False)
@click.option("--row", "rows", multiple=True, metavar="JSON", help="A row as a JSON object; repeat for more.")
@click.option(
    "--file",
    "file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Rows from a CSV, Parquet or JSON lines file; - for standard input.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "parquet", "jsonl"]),
    help="The form of --file (default: by its name; csv for standard input).",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the predictions there: CSV, or JSON lines if it is named .jsonl.",
)
@click.option(
    "--model",
    metavar="MODEL[@VERSION]",
    help="Load this version here instead of asking a server; nothing is logged (default version: champion).",
)
@click.option("--at", "address", metavar="URL", help="The inference server (default: where [serving] says).")
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the server's key.",
)
@json_option
def predict(
    deployment: str | None,
    rows: tuple[str, ...],
    file: str | None,
    form: RowForm | None,
    output: Path | None,
    model: str | None,
    address: str | None,
    api_key_file: Path | None,
    as_json: bool,
) -> None:
    """Ask DEPLOYMENT's inference server for predictions, or a model version without a server (--model).

    A file is read in batches and may be of any size; its further columns are ignored, and the predictions keep its order. With --json one
    line for each row of a file.
    """
    from mainspring.errors import InvalidInput

    if (deployment is None) == (model is None):
        raise InvalidInput(
            "name what shall answer",
            next_step="Give DEPLOYMENT, or --model MODEL without a server; not both.",
        )
    given = [_parse_row(text) for text in rows]
    if bool(given) == (file is not None):
        raise InvalidInput(
            "there is nothing to predict"
            if file is None
            else "rows come from --row or from --file, not from both",
            next_step="Give --row '{\"column\": value}' or --file rows.csv.",
        )
    with _open_predictions(deployment, model, address, api_key_file) as predictions:
        if file is None and output is None:
            _predict_rows(predictions, given, as_json)
            return
        with _open_output(output, as_json) as (out, shape):
            writer = PredictionWriter(out, shape)
            if file is None:
                batches: Iterator[Batch] = iter([_batch_of(given)])
                _predict_all(predictions, batches, writer)
            else:
                with opened(file, form) as (path, found):
                    _predict_all(predictions, read_batches(path, found, predictions.kinds, _BATCH), writer)


def _parse_row(text: str) -> dict[str, Any]:
    from mainspring.errors import InvalidInput

    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"not JSON: {error}", value=text, place="--row") from None
    if not isinstance(value, dict):
        raise InvalidInput("a row is a JSON object", value=text, place="--row")
    return value


def _batch_of(rows: list[dict[str, Any]]) -> Batch:
    """Rows as they were typed: a column that the model does not know is refused."""
    names = dict.fromkeys(name for row in rows for name in row)
    return Batch(0, len(rows), {name: [row.get(name) for row in rows] for name in names}, rows)


def _predict_rows(predictions: Predictions, rows: list[dict[str, Any]], as_json: bool) -> None:
    writer = PredictionWriter(sys.stdout, "table")
    for batch, answer in predictions.of(_batch_of(rows)):
        if as_json:
            print_json(
                {
                    "model": answer.model,
                    "version": answer.version,
                    "prediction_id": answer.ident,
                    "predictions": answer.predictions,
                }
            )
            continue
        print_note(f"{f'prediction {answer.ident} ' if answer.ident else ''}by {answer.by}")
        writer.write(batch.first, answer.predictions, answer.ident)


def _predict_all(predictions: Predictions, batches: Iterator[Batch], writer: PredictionWriter) -> None:
    progress = _Progress()
    by: dict[str, int] = {}
    for batch in batches:
        for part, answer in predictions.of(batch):
            writer.write(part.first, answer.predictions, answer.ident)
            by[answer.by] = by.get(answer.by, 0) + part.rows
            progress.add(part.rows)
    progress.end()
    for who, rows in by.items():
        print_note(f"{rows} {'row' if rows == 1 else 'rows'} by {who}")
    if not by:
        print_note("the file has no rows")


@contextlib.contextmanager
def _open_output(
    output: Path | None, as_json: bool
) -> Iterator[tuple[TextIO, Literal["table", "csv", "jsonl"]]]:
    """Where predictions go. A file appears under its name when it is whole."""
    if output is None:
        yield sys.stdout, "jsonl" if as_json else "table"
        return
    unfinished = output.with_name(f".{output.name}.unfinished")
    shape: Literal["csv", "jsonl"] = "jsonl" if as_json or form_of(output) == "jsonl" else "csv"
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as out:
            yield out, shape
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


@dataclass
class _Progress:
    """One line that is written over, where a person watches and the predictions go elsewhere."""

    rows: int = 0
    began: float = field(default_factory=time.monotonic)
    shown: float = 0.0

    def add(self, rows: int) -> None:
        self.rows += rows
        now = time.monotonic()
        if sys.stderr.isatty() and not sys.stdout.isatty() and now - self.shown > _PROGRESS_S:
            self.shown = now
            sys.stderr.write(
                f"\r\x1b[K{self.rows:,} rows, {self.rows / max(now - self.began, 1e-9):,.0f} a second"
            )
            sys.stderr.flush()

    def end(self) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")


# --- who answers -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_predictions(
    deployment: str | None, model: str | None, address: str | None, key_file: Path | None
) -> Iterator[Predictions]:
    from mainspring.errors import InvalidInput

    if model is not None:
        name, _, selector = model.partition("@")
        with chosen_workspace() as workspace:
            version = workspace.models.get_version(name, selector or "champion")
            loaded = workspace.models.load(name, str(version.version))
        yield _Loaded(loaded, name, version.version)
        return
    settings = local_settings()
    if address is None and settings.url is not None:
        raise InvalidInput(
            "the inference server is not the server of --url",
            value=settings.url,
            next_step="Name it with --at.",
        )
    config = settings.config.serving
    assert deployment is not None  # noqa: S101 - checked by the caller
    with _Served.connect(address or f"http://{config.host}:{config.port}", deployment, key_file) as served:
        yield served


class _Loaded:
    """A version in this process."""

    def __init__(self, model: Model, name: str, version: int) -> None:
        from mainspring.serving.answers import AnswerEncoder
        from mainspring.serving.codec import RowCodec

        self._codec = RowCodec(model.signature, max_rows=_BATCH, max_text=_MAX_TEXT)
        self._model, self._name, self._version = model, name, version
        self._encoder = AnswerEncoder(model.signature)
        self.kinds: Kinds = {c.name: c.type for c in model.signature.inputs}

    def of(self, batch: Batch) -> list[tuple[Batch, Answer]]:
        import msgspec
        import numpy as np

        from mainspring.errors import InvalidInput

        # Rows are read as a server reads them: what it refuses (a column that is misspelt, a null in a column that has none) is no answer here.
        asked = {"columns": batch.columns} if batch.typed is None else {"rows": batch.typed}
        try:
            columns = self._codec.decode(msgspec.json.encode(asked)).columns
        except InvalidInput as error:
            raise _with_rows(error, batch) from None
        scores = self._model.compute_scores(columns)
        finite = np.isfinite(scores).reshape(batch.rows, -1).all(axis=1)
        if not finite.all():
            raise InvalidInput(
                "the model has no answer to a row",
                value=batch.first + int(np.flatnonzero(~finite)[0]),
                place="row",
                next_step="Look for a null that the model does not take.",
            )
        predictions = json.loads(self._encoder.encode_predictions(scores.tolist()))
        return [(batch, Answer(predictions, self._name, self._version))]


class _Served:
    """A deployment of an inference server."""

    def __init__(self, client: Any, deployment: str, inputs: list[dict[str, Any]]) -> None:
        types = {"FP64": "float64", "INT64": "int64", "BOOL": "bool"}
        self._client, self._deployment = client, deployment
        self.kinds: Kinds = {
            i["name"]: i.get("parameters", {}).get("content_type") or types.get(i["datatype"], "string")
            for i in inputs
        }

    @classmethod
    @contextlib.contextmanager
    def connect(cls, base: str, deployment: str, key_file: Path | None) -> Iterator[_Served]:
        import httpx2

        headers = {"authorization": f"Bearer {key_file.read_text().strip()}"} if key_file is not None else {}
        with httpx2.Client(base_url=base, trust_env=False, timeout=_TIMEOUT_S, headers=headers) as client:
            described = _ask(client, "GET", f"/v2/models/{deployment}")
            yield cls(client, deployment, described["inputs"])

    def of(self, batch: Batch) -> list[tuple[Batch, Answer]]:
        from mainspring.errors import MainspringError, TooLarge, TooManyRows

        asked = {"columns": batch.columns} if batch.typed is None else {"rows": batch.typed}
        try:
            body = _ask(self._client, "POST", f"/v1/deployments/{self._deployment}/predict", asked)
        except (TooManyRows, TooLarge):
            if batch.rows == 1 or batch.typed is not None:
                raise
            return [answer for half in batch.halves() for answer in self.of(half)]
        except MainspringError as error:
            raise _with_rows(error, batch) from None
        answer = Answer(body["predictions"], body["model"], body["version"], body["prediction_id"])
        return [(batch, answer)]


def _with_rows(error: MainspringError, batch: Batch) -> MainspringError:
    rows = f"rows {batch.first} to {batch.first + batch.rows - 1}"
    error.place = f"{error.place}, {rows}" if error.place else rows
    return error


def _ask(client: Any, method: str, path: str, document: Any = None) -> dict[str, Any]:
    import httpx2
    import msgspec

    from mainspring.errors import InvalidInput, MainspringError, NotFound, Unavailable, from_dict

    content = None if document is None else msgspec.json.encode(document)
    try:
        response = client.request(method, path, content=content, headers={"content-type": "application/json"})
    except httpx2.TransportError as error:
        raise Unavailable(
            f"no inference server answers: {error}",
            place=str(client.base_url),
            next_step="Give --model MODEL to do without a server, or start one: mainspring up.",
        ) from None
    try:
        body = response.json()
    except ValueError:
        body = response.text[:200]
    if response.status_code != 200:
        problem = body.get("error") if isinstance(body, dict) else None
        if isinstance(problem, dict):
            raise from_dict(problem)
        kind = {404: NotFound, 422: InvalidInput, 503: Unavailable}.get(response.status_code, MainspringError)
        raise kind(str(problem or body))
    answer: dict[str, Any] = body
    return answer
