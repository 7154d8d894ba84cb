"""The native dialect: rows or columns in, one object for each prediction out, errors with code, value, place and next step.

POST /v1/deployments/{d}/predict    GET /v1/status
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from mainspring.errors import MainspringError
from mainspring.serving.codec import Call
from mainspring.serving.core import Answer
from mainspring.serving.dialects.dialect import Dialect, Prediction, Route, ServerQuestion, ServerState
from mainspring.serving.options import ServeOptions
from mainspring.serving.table import LiveDeployment
from mainspring.serving.wire import JSON, Headers, Reply, printable


class Native(Dialect[None]):
    """The dialect of mainspring's own clients. Its codec, which is compiled for a signature, belongs to the deployment (``table.py``)."""

    name = "native"
    prefixes = ("",)
    media = (JSON,)
    home = "GET /v1/status"

    def __init__(self, options: ServeOptions) -> None:
        """Needs no option: the deployments' codecs have the bounds of rows and texts."""

    def match(self, path: str) -> Route | None:
        if path == "/v1/status":
            return ServerQuestion(status)
        parts = path.split("/")
        if len(parts) == 5 and parts[:3] == ["", "v1", "deployments"] and parts[4] == "predict":
            return Prediction(parts[3])
        return None

    def exact(self, deployments: Iterable[str]) -> Iterable[str]:
        return [f"/v1/deployments/{name}/predict" for name in deployments]

    def decode(self, body: bytes, deployment: LiveDeployment, headers: Headers) -> tuple[Call, None]:  # noqa: ARG002 - JSON only
        return deployment.codec.decode(body), None

    def encode(self, answer: Answer, deployment: LiveDeployment, form: None, ident: str) -> Reply:  # noqa: ARG002 - one form only
        predictions = answer.target.encoder.encode_predictions(answer.scores)
        body = b"".join((answer.target.prefix, ident.encode(), b'","predictions":', predictions, b"}"))
        return Reply(200, body)

    def error(self, error: MainspringError, ident: str | None) -> Reply:
        body: dict[str, Any] = {
            "error": {k: printable(v) if isinstance(v, str) else v for k, v in error.to_dict().items()}
        }
        if ident is not None:
            body["prediction_id"] = ident
        return Reply(error.status, msgspec.json.encode(body))


def status(server: ServerState) -> Reply:
    """The answer of ``/v1/status``: what is loaded, what is not and why, and the state of the log."""
    core = server.core
    segment, size = core.log.position
    body = {
        "routes": core.table.number,
        "ready": server.ready,
        "sandbox": server.sandbox,
        "deployments": [_describe_deployment(d) for d in core.table.deployments.values()],
        "failure": server.failure,
        "problems": core.table.problems,
        "log": {"segment": segment, "bytes": size, "mode": core.options.log_mode, "broken": core.log.broken},
        "counters": core.metrics.counters,
    }
    return Reply(200, msgspec.json.encode(body))


def _describe_deployment(deployment: LiveDeployment) -> dict[str, Any]:
    targets = [*deployment.targets, *(s.target for s in deployment.shadows)]
    previous = 0.0
    shares = {}
    for target, bound in zip(deployment.targets, deployment.bounds, strict=True):
        shares[id(target)], previous = bound - previous, bound
    return {
        "name": deployment.name,
        "versions": [
            {
                "model": t.model,
                "version": t.number,
                "role": t.role,
                "name": t.name,
                "weight": round(shares.get(id(t), 0.0), 9),
                "package": t.version.package,
                "single_us": round(t.version.single_us, 1),
                "inline_rows": t.version.inline_rows,
                "own_process": t.version.host is not None,
            }
            for t in targets
        ],
    }
