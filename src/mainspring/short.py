"""``ms.commit``, ``ms.train``, ``ms.log_model``, ``ms.deploy``: from rows to a served model in three lines, in the nearest project.

Each calls the rooms with the usual choices made. It works the same on a workspace on a server (``MAINSPRING_URL``).
"""

from __future__ import annotations

import sys
import time as clocks
from typing import TYPE_CHECKING, Any, Unpack

from mainspring import config as configuration
from mainspring.config import Settings
from mainspring.errors import Conflict, InvalidInput, NotFound
from mainspring.pipelines.context import current
from mainspring.records.base import Record
from mainspring.records.data import DatasetVersion
from mainspring.records.models import ModelVersion
from mainspring.records.serving import Deployment
from mainspring.tracking.client import Run, get_current_run
from mainspring.training.fitted import Fitted, ModelOptions

if TYPE_CHECKING:
    from mainspring.remote import RemoteWorkspace
    from mainspring.rooms import Namespaces
    from mainspring.training.automl.board import TrainedVersion
    from mainspring.training.automl.options import TrainOptions
    from mainspring.workspace import Workspace

_SERVER_WAIT_S = 5.0


class Deployed(Record, frozen=True, kw_only=True):
    """What :func:`deploy` did. ``answers``: whether an inference server answers with this version now; None: not known from here."""

    deployment: Deployment
    model: str
    version: int
    answers: bool | None
    address: str
    says: str
    """The same in words, with the command that comes next."""


def commit(name: str, source: Any, **options: Any) -> DatasetVersion:
    """Make a version of the dataset ``name`` from a frame, a list of dicts, a dict of columns or a path.

    Checks and reading of ``[data.<name>]`` in ``mainspring.toml`` hold. In a step, the version leads to the run. Options are those of ``workspace.data.commit``.
    """
    here = current()
    settings = configuration.load() if here.execution else _load_settings()
    policy = settings.config.data.get(name)
    if policy is not None:
        options = {"checks": policy.checks, "reading": policy.reading} | options
    if here.execution:
        version: DatasetVersion = here.workspace().data.commit(
            name, source, **{"inputs": [here.run_ref]} | options
        )
        return version
    with _open_workspace() as workspace:
        return workspace.data.commit(name, source, **options)


def train(dataset: DatasetVersion | str, *, target: str, **options: Unpack[TrainOptions]) -> TrainedVersion:
    """Search for a model that predicts the column ``target`` and register the chosen one; it is returned with its leaderboard.

    ``dataset``: a version, or a name (``"churn"``, ``"churn@3"``). ``time`` names a column by which the newest rows are held out,
    ``group`` one whose groups are held out as a whole; without both, rows are held out at random. ``keep``: columns to use
    although they look like identifiers, or give the target away. ``budget`` (60s) is a length of time for all of it; a search
    that ends within it (``max_trials`` candidates, 24 by default) gives the same for the same ``seed``. ``name`` is the
    model's, by default the dataset's. ``task``, ``metric``, ``families`` and ``on_progress``:
    :class:`~mainspring.training.automl.options.TrainOptions`. Raises :class:`~mainspring.errors.NothingPredicts` where no model leads the
    dummy beyond noise.
    """
    from mainspring.training.automl import engine

    here = current()
    if here.execution:
        rooms = here.workspace()
        return engine.train(rooms, _get_dataset_version(rooms, dataset), target=target, **options)
    _load_settings()
    with _open_workspace() as workspace:
        return engine.train(workspace, _get_dataset_version(workspace, dataset), target=target, **options)


def log_model(
    estimator: Any,
    X: Any,  # noqa: N803 - as scikit-learn and MLflow call it
    y: Any = None,
    *,
    name: str,
    holdout: Any = None,
    run: Run | None = None,
    **options: Unpack[ModelOptions],
) -> ModelVersion:
    """Register an estimator that was fitted by hand, with all that :func:`train` records: rows, profile, evaluation, origin.

    ``X`` and ``y`` are the rows that it was fitted on and their labels: tables (pandas, Polars, Arrow), arrays or lists; ``y`` may
    name a column of ``X``, and detectors, clusterings and transformers have none. ``holdout``: rows that it has not seen, as
    ``(X, y)``, or as a table where ``y`` names a column. On them the model is evaluated, and by them a gate judges it later;
    without them the metrics are those of the training rows, called ``train.<metric>``, and a warning says that no gate can judge.

    The version belongs to ``run``, by default the one begun last by ``ms.start_run``; in a step, to the run of the pipeline; if there is
    none, one is begun and finished here. Options (``metrics``, ``slices``, ``time``, ``group``, ``nullable``, ``classes``, ``tags``,
    ``source``, ``format``, ``seed``) are those of :class:`~mainspring.training.fitted.Fitted`. Raises InvalidInput for rows that do not fit the
    estimator, and for one that no format stores.
    """
    from mainspring.training.registering import StepRun, register_rows

    fitted = Fitted(estimator, X, y, holdout, name=name, **options)
    here = current()
    if run is None and here.execution:
        version = register_rows(here.workspace(), StepRun(here), fitted)
        here.produced(f"model_version:{version.model}@{version.version}")
        return version
    _load_settings()
    with _open_workspace() as workspace:
        chosen = run or get_current_run()
        if chosen is not None:
            _require_known(workspace, chosen)
            return register_rows(workspace, chosen, fitted)
        params = {"estimator": type(estimator).__name__, **_list_plain_params(estimator)}
        with workspace.tracking.start_run(name=name, params=params, tags={"model": name}) as begun:
            return register_rows(workspace, begun, fitted)


def deploy(
    version: ModelVersion | str, *, name: str | None = None, reason: str = "deployed from Python"
) -> Deployed:
    """Let a model version answer under ``name``, by default the model's own; then it is the model's champion, too.

    ``version``: what :func:`train` returned, or a name (``"churn"``, ``"churn@3"``). A gate of ``[model.<name>]`` in
    ``mainspring.toml`` judges it first, if none has; a version that a gate or a person refused is refused here (Conflict).
    What is returned, and a line on a terminal, says whether a server answers now and which command starts one.
    """
    settings = _load_settings()
    with _open_workspace() as workspace:
        model_version = _get_model_version(workspace, version)
        _pass_gate(workspace, settings, model_version)
        wanted, answering = name or model_version.model, False
        if wanted == model_version.model:
            promotion = workspace.models.promote(model_version.model, model_version.version, reason=reason)
            answering = wanted in promotion.deployments
        elif objections := workspace.models.list_objections(model_version.model, model_version.version):
            raise Conflict(
                f"this version may not be deployed: {'; '.join(objections)}",
                value=f"{model_version.model}@{model_version.version}",
                next_step="Choose another version.",
            )
        if answering:
            deployment = workspace.deploy.get_deployment(wanted)
        else:
            deployment = workspace.deploy.deploy(
                wanted, model=model_version.model, version=model_version.version, reason=reason
            )
    result = _describe_deployment(settings, deployment, model_version)
    if sys.stderr.isatty():
        sys.stderr.write(f"{result.says}\n")
    return result


# --- looking things up -------------------------------------------------------------------------------------------------


def _load_settings() -> Settings:
    """Of the nearest project, or of a server that the environment names. Raises :class:`NotFound` where there is neither."""
    settings = configuration.load()
    if settings.url is None and not {"config", "home"} & set(settings.origins):
        raise NotFound(
            "there is no project here",
            value=str(settings.root),
            next_step="Type 'mainspring init NAME' and go into the directory NAME, or make an empty file 'mainspring.toml' here: 'touch mainspring.toml'.",
        )
    return settings


def _open_workspace() -> Workspace | RemoteWorkspace:
    from mainspring.api import open as open_workspace

    return open_workspace()


def _get_dataset_version(workspace: Namespaces, dataset: DatasetVersion | str) -> DatasetVersion:
    if isinstance(dataset, DatasetVersion):
        return dataset
    name, _, selector = _require_name(dataset, "a dataset version, as ms.commit returns it").partition("@")
    return workspace.data.get_version(name, selector or "latest")


def _require_known(workspace: Namespaces, run: Run) -> None:
    """Raise :class:`InvalidInput` for a run of another workspace: a version there would belong to a run that nobody finds."""
    from mainspring.training.registering import CAPTURE_S

    run.flush(CAPTURE_S)
    try:
        workspace.tracking.get_run(run=run.id)
    except NotFound:
        raise InvalidInput(
            "the run is not one of this project",
            value=run.id,
            next_step="Begin it with ms.start_run in this project, or finish it first.",
        ) from None


def _list_plain_params(estimator: Any) -> dict[str, Any]:
    """The params of an estimator that are numbers, texts or truth values."""
    params = estimator.get_params(deep=False) if hasattr(estimator, "get_params") else {}
    return {k: v for k, v in params.items() if isinstance(v, bool | int | float | str)}


def _get_model_version(workspace: Namespaces, version: ModelVersion | str) -> ModelVersion:
    if isinstance(version, ModelVersion):
        return version
    name, _, selector = _require_name(version, "a model version, as ms.train returns it").partition("@")
    return workspace.models.get_version(name, selector or "latest")


def _require_name(value: object, wanted: str) -> str:
    if not isinstance(value, str):
        rows = "dataset" in wanted and (isinstance(value, dict | list) or hasattr(value, "columns"))
        hint = " Rows become one so: version = ms.commit('NAME', rows)." if rows else ""
        raise InvalidInput(
            f"this is not {wanted}", value=type(value).__name__, next_step=f"Or give its name.{hint}"
        )
    return value


def _pass_gate(workspace: Namespaces, settings: Settings, version: ModelVersion) -> None:
    policy = settings.config.model.get(version.model)
    if policy is None or not policy.gate or version.holdout is None:
        return
    if not workspace.loop.list_verdicts(version.model, version.version, limit=1):
        from mainspring.loop.worker import gate

        gate(workspace, policy, version)


# --- whether it is served --------------------------------------------------------------------------------------------


def _describe_deployment(settings: Settings, deployment: Deployment, version: ModelVersion) -> Deployed:
    unwatched = f" ({version.unwatched})" if version.unwatched else ""
    which = f"{version.model} version {version.version} is deployed as {deployment.name!r}{unwatched}"
    if settings.url is not None:
        says = f"{which}; the inference server beside {settings.url} takes it up within seconds."
        answers, address = None, ""
    else:
        address = f"http://{settings.config.serving.host}:{settings.config.serving.port}"
        answers = _check_answers(address, deployment.name, version.version)
        if answers:
            says = f"{which} and answers at {address}. Ask it: mainspring predict {deployment.name} --file rows.csv"
        elif answers is None:
            says = (
                f"{which}; the server at {address} does not answer with it, it may be another project's. Start this one's: mainspring up"
            )  # fmt: skip
        else:
            says = f"{which}; no server answers at {address}. Start it: mainspring up"
    return Deployed(
        deployment=deployment,
        model=version.model,
        version=version.version,
        answers=answers,
        address=address,
        says=says,
    )


def _check_answers(address: str, deployment: str, version: int) -> bool | None:
    """Whether the server at this address serves this version, after waiting some seconds for it. None: it answers without this version."""
    import httpx2

    end = clocks.monotonic() + _SERVER_WAIT_S
    with httpx2.Client(base_url=address, trust_env=False, timeout=2.0) as client:
        try:
            client.get("/v2/health/live")
            while True:
                answer = client.get(f"/v2/models/{deployment}")
                if answer.status_code == 200 and str(version) in answer.json().get("versions", []):
                    return True
                if clocks.monotonic() >= end:
                    return None
                clocks.sleep(0.1)
        except (httpx2.HTTPError, ValueError):
            return False
