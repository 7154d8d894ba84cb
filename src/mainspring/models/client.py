"""What needs an estimator or a disk: saving, loading, downloading. It calls operations only, so it works the same locally and remotely."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blake3 import blake3

from mainspring.errors import Corrupt, InvalidInput, TooLarge
from mainspring.models.formats.package import MANIFEST, MAX_MANIFEST, parse_manifest
from mainspring.models.formats.trust import DEFAULT, TrustPolicy
from mainspring.models.operations import Models
from mainspring.operations import delegating
from mainspring.records.base import Selector, from_json
from mainspring.records.loop import Promotion
from mainspring.records.models import ModelVersion, Package, Signature
from mainspring.records.objects import ObjectRef
from mainspring.streams import read_pieces

FindProfile = Callable[[Any, str | None], str | None]
"""From training rows, or from the id of the dataset version that holds them, to the digest of their profile; None: there is none."""

if TYPE_CHECKING:
    from mainspring.lineage.uploads import Uploads
    from mainspring.models.formats.model import Model


if TYPE_CHECKING:
    _Operations = Models
else:
    _Operations = delegating(Models)
"""All operations of the room are the client's too: ``set_alias``, ``list_versions``, ``get_card``, ..."""


class ModelsClient(_Operations):
    """The registry as people and steps use it. ``operations`` are those of the room, local or remote."""

    def __init__(
        self,
        ops: Models,
        objects: Uploads,
        *,
        find_profile: FindProfile | None = None,
        promote: Callable[..., Promotion] | None = None,
    ) -> None:
        """``promote``: how a version becomes champion of the deployments too (``loop.promote``)."""
        self.operations = ops
        self._objects = objects
        self._find_profile = find_profile
        self._promote = promote

    def promote(
        self, model: str, version: Selector = "latest", *, reason: str, override: bool = False
    ) -> Promotion:
        """Make a version the champion and let it answer wherever the policy deploys the model; see ``loop.promote``.

        Undo it with ``loop.restore_champion``.
        """
        if self._promote is None:
            raise InvalidInput(
                "these models have no deployments beside them",
                value=model,
                next_step="Use the models of a workspace: mainspring.open().models.",
            )
        return self._promote(model=model, version=version, reason=reason, override=override)

    def save_and_register(
        self,
        estimator: Any,
        *,
        model: str,
        signature: Signature | None = None,
        sample: Any,
        training: Any = None,
        format: str = "auto",  # noqa: A002 - the word the manifest uses
        tolerance: float | None = None,
        metrics: Mapping[str, float] | None = None,
        run: str | None = None,
        dataset_version: str | None = None,
        holdout: str | None = None,
        label: str | None = None,
        profile: str | None = None,
        code: str | None = None,
        environment: str | None = None,
        tags: Mapping[str, str] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> ModelVersion:
        """Package a fitted estimator (see :func:`mainspring.models.formats.save`), store it and register it as the next version.

        Without ``profile``, that of the ``training`` rows is taken, or of ``dataset_version``; where there is neither, a warning
        says that drift of the version will not be watched.
        """
        from mainspring.models.formats import save

        with tempfile.TemporaryDirectory(prefix="mainspring-model-") as scratch:
            folder = Path(scratch) / "package"
            package = save(
                estimator,
                folder,
                signature=signature,
                sample=sample,
                training=training,
                format=format,
                tolerance=tolerance,
                metrics=metrics,
                run=run,
                dataset_version=dataset_version,
                code=code,
                environment=environment,
                notes=notes,
            )
            if profile is None and self._find_profile is not None:
                profile = self._find_profile(training, dataset_version)
            version = self.register_folder(
                folder,
                model=model,
                holdout=holdout,
                label=label,
                profile=profile,
                tags=tags,
                metrics=package.metrics,
            )
        if version.unwatched:
            warnings.warn(
                f"{model} version {version.version} is {version.unwatched}: its drift cannot be seen. Give the rows that it was trained on (training=...).",
                stacklevel=2,
            )
        return version

    def register_onnx(
        self,
        path: Path,
        *,
        model: str,
        signature: Signature,
        sample: Any,
        inputs: Mapping[str, Sequence[str]] | None = None,
        output: str | None = None,
        activation: Literal["sigmoid", "softmax"] | None = None,
        original: Callable[[Any], Any] | None = None,
        tolerance: float | None = None,
        **registration: Any,
    ) -> ModelVersion:
        """Register an ONNX file of your own: of PyTorch (``torch.onnx.export``), Keras, or another converter.

        ``inputs``: the columns of each input of the file; not needed if it has one input with all columns, or one for each by its name.
        ``output``: the output with the answers, if it has several of numbers. ``activation``: what makes probabilities of them, if they
        are not. ``original``: answers rows as the file should, for example the model in PyTorch; it is given rows as ``sample`` has
        them, and what it answers must be what the file answers, within ``tolerance`` (default 1e-5). Without it the package is compared
        with the file. ``sample``, at least 2 real rows, and ``registration`` are as in :meth:`save_and_register`.

        Raises :class:`~mainspring.errors.UnsafeFormat` for a file that reaches outside of itself or has other than standard operators,
        ParityFailed, :class:`~mainspring.errors.InvalidInput`.
        """
        from mainspring.models.formats.onnx.own import own_onnx

        own = own_onnx(
            path,
            signature,
            sample=sample,
            inputs=inputs,
            output=output,
            activation=activation,
            original=original,
        )
        limit = tolerance if tolerance is not None else 1e-5
        return self.save_and_register(
            own,
            model=model,
            signature=signature,
            sample=sample,
            format=own.stored_as,
            tolerance=limit,
            **registration,
        )

    def register_folder(
        self,
        folder: Path,
        *,
        model: str,
        holdout: str | None = None,
        label: str | None = None,
        profile: str | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Register a package that is already on disk; verified here and, again, by the registry."""
        from mainspring.models.formats import verify

        package = verify(folder)
        files = {
            name: self._objects.put(body=read_pieces(folder / name))
            for name in [*(f.path for f in package.files), MANIFEST]
        }
        tree = self._objects.create_tree(files=files)
        return self.operations.register(
            model=model,
            package=tree.digest,
            run=package.run,
            dataset_version=package.dataset_version,
            holdout=holdout,
            label=label,
            profile=profile,
            metrics=dict(metrics or {}),
            tags=dict(tags or {}),
        )

    def download_package(self, model: str, selector: Selector, to: Path) -> Package:
        """Write a version's package into the folder ``to`` (new or empty) and verify it; returns its manifest.

        Raises InvalidInput for a folder that is not empty, Corrupt or TooLarge for bytes that differ from what is recorded.
        """
        from mainspring.models.formats import verify

        version = self.operations.get_version(model=model, selector=selector)
        if to.exists() and any(to.iterdir()):
            raise InvalidInput(
                "the target folder is not empty", value=str(to), next_step="Name a new folder."
            )
        to.mkdir(parents=True, exist_ok=True)
        listing = b"".join(self._stream(version.package, limit=MAX_MANIFEST))
        files: dict[str, ObjectRef] = from_json(listing, dict[str, ObjectRef])
        place = f"{model}@{version.version}"
        if MANIFEST not in files:
            raise Corrupt("a package without model.json", value=version.package, place=place)
        manifest = b"".join(self._stream(files[MANIFEST].digest, limit=MAX_MANIFEST))
        # Names become paths here, so all are checked before the first file is written: a manifest has only names of its format.
        declared = {file.path for file in parse_manifest(manifest, place=place).files}
        if differing := sorted(files.keys() ^ {MANIFEST, *declared}):
            raise Corrupt("the files are not those of the package", value=differing[0], place=place)
        for name in sorted(declared):
            with (to / name).open("xb") as file:
                for piece in self._stream(files[name].digest, limit=files[name].size):
                    file.write(piece)
        # The manifest comes last: a folder without it is not a package, so a broken download is never mistaken for one.
        (to / MANIFEST).write_bytes(manifest)
        return verify(to)

    def load(self, model: str, selector: Selector = "latest", *, trust: TrustPolicy = DEFAULT) -> Model:
        """Download a version into a temporary folder and load it into this process."""
        from mainspring.models.formats import load

        with tempfile.TemporaryDirectory(prefix="mainspring-model-") as scratch:
            folder = Path(scratch) / "package"
            self.download_package(model, selector, folder)
            return load(folder, trust=trust)

    def _stream(self, digest: str, *, limit: int) -> Iterator[bytes]:
        """An object's bytes, never more than ``limit``; a digest that does not match raises at the end."""
        seen, hasher = 0, blake3()
        for piece in self._objects.get(digest=digest).chunks:
            seen += len(piece)
            if seen > limit:
                raise TooLarge("an object is larger than declared", value=digest)
            hasher.update(piece)
            yield piece
        if hasher.hexdigest() != digest:
            raise Corrupt("the bytes are not what their digest says", value=digest)
