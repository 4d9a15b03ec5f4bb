"""A concluded run's model fitted again from what the run recorded, and compared with what it left: to the bit.

The data are read and prepared anew and the winner is refitted, all below a scratch folder of the run, which goes
afterwards; neither the run nor the registry is touched. Calibration and threshold are the run's own.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch

from fraud_ray.cluster import Room, answer, check_resources, join_or_start
from fraud_ray.data.folds import plan_folds
from fraud_ray.data.prepare import prepare
from fraud_ray.data.rows import PreparedFold, load
from fraud_ray.data.source import Source, open_source
from fraud_ray.decision.evaluate import evaluate
from fraud_ray.errors import SettingsError
from fraud_ray.model.bundle import Bundle, network_logits
from fraud_ray.progress import Progress, counted
from fraud_ray.registry import audit
from fraud_ray.registry.promotion import bundle_hashes
from fraud_ray.runs import RunRecord, differences, find_runs, provenance
from fraud_ray.settings import ClusterSettings, DecisionSettings, Settings, parse_settings
from fraud_ray.storage import Storage, damaged
from fraud_ray.training.build import network_shape
from fraud_ray.training.search import SearchOutcome, Trial
from fraud_ray.training.trainer import refit
from fraud_ray.windows.state import take_in

_CHANGES = ", with changes"


@dataclass(frozen=True)
class Tensor:
    """One of the network's tensors, then and now.

    differing: how many of its elements are not the same to the bit; largest: the largest absolute difference. Both are
    None where the tensor's shape, or whether it is there at all, differs.
    """

    name: str
    elements: int
    differing: int | None
    largest: float | None

    @property
    def is_same(self) -> bool:
        return self.differing == 0


@dataclass(frozen=True)
class Reproduction:
    """How a refit compares with the run.

    changed: what the run was made with that is not the same now, each then and now, as text. metrics: on the final
    holdout, each then and now. notes: what else lies where the data do, in words.
    """

    run: str
    changed: dict[str, tuple[str, str]]
    weights: tuple[Tensor, ...]
    metrics: dict[str, tuple[float, float]]
    notes: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether the weights are the same to the bit."""
        return all(tensor.is_same for tensor in self.weights)


def reproduce(storage: Storage, name: str, progress: Progress, cluster: ClusterSettings | None = None) -> Reproduction:
    """Refits the winner of a concluded run and compares.

    cluster: where to, if not as the run did. Raises SettingsError for a run that is not concluded, DataError where its
    data are gone.
    """
    [recorded] = find_runs(storage, name, say=progress.note)
    name = recorded.name
    if recorded.outcome is None:
        raise SettingsError(f"run '{name}' is {recorded.state}: only one that is concluded can be reproduced")
    if recorded.outcome.evaluation is None:
        raise SettingsError(f"run '{name}' is {recorded.state}: it left no model that could be reproduced")
    settings = parse_settings(recorded.record["settings"], f"{recorded.folder}/run.json")
    settings = settings.model_copy(update={"cluster": cluster or settings.cluster})
    best = _winner(storage, name)
    train = settings.train_with(best.hyperparameters)
    original = _bundle(storage, name)
    source = open_source(settings.data)
    with join_or_start(settings.cluster, progress), _scratch(storage, name) as scratch:
        check_resources(settings, progress)
        fold = _prepared(source, settings, scratch, progress)
        with progress.stage("refit") as stage:
            room = Room(settings, for_search=False)
            weights = refit(fold, train, best.best_epoch, scratch, "refit", stage.update, room).weights
            stage.say(f"{counted(best.best_epoch, 'epoch')} on {counted(fold.fit.rows, 'row')}")
        with progress.stage("compare") as stage:
            shape = network_shape(len(fold.encoder.feature_names), fold.encoder.code_sizes, train)
            again = replace(original, encoder=fold.encoder, shape=shape, weights=weights)
            metrics = answer(ray.remote(num_cpus=1)(_metrics).remote(again, scratch, fold, settings.decision))
            tensors = tuple(
                compare(n, original.weights.get(n), weights.get(n)) for n in {**original.weights, **weights}
            )
            stage.say(f"{sum(tensor.is_same for tensor in tensors)} of {len(tensors)} tensors are the same to the bit")
    pairs = {key: (value, metrics[key]) for key, value in original.metrics.items() if key in metrics}
    return Reproduction(name, _changed(storage, recorded, source), tensors, pairs, source.notes)


def _winner(storage: Storage, name: str) -> Trial:
    stored = storage.get_json(f"runs/{name}/stages/search.json")
    if stored is None:
        raise SettingsError(f"{storage.path(f'runs/{name}')} holds no search any more, which names the winner")
    return SearchOutcome.from_json(stored["value"], storage).best


def _prepared(source: Source, settings: Settings, scratch: Storage, progress: Progress) -> PreparedFold:
    """The final fold, prepared from the partitions."""
    source, census = take_in(source, settings, scratch, progress)
    folds = plan_folds(census, settings.folds)
    with progress.stage("prepare") as stage:
        final = prepare(source, folds, settings, scratch, stage.update).final
        stage.say(f"{final.fit.rows:,} fit and {final.holdout.rows:,} holdout rows")
    return final


def _metrics(bundle: Bundle, storage: Storage, fold: PreparedFold, decision: DecisionSettings) -> dict[str, float]:
    """A Ray task: a model's figures on the fold's holdout."""
    rows = load(storage, fold.holdout, with_roles=True)
    probabilities = bundle.calibration.apply(network_logits(bundle.network(), rows.features, rows.codes))
    quick = decision.model_copy(update={"bootstrap_repeats": 0})
    return evaluate(probabilities, rows, bundle.threshold, quick).metrics


def compare(name: str, then: torch.Tensor | None, now: torch.Tensor | None) -> Tensor:
    """A tensor of the network then and now; None where it was or is not there."""
    if then is None or now is None or then.shape != now.shape or then.dtype != now.dtype:
        present = now if then is None else then
        assert present is not None, "the name comes from one of them"
        return Tensor(name, present.numel(), None, None)
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[then.element_size()]
    differing = int((then.contiguous().view(words) != now.contiguous().view(words)).sum())
    return Tensor(name, then.numel(), differing, float((then.double() - now.double()).abs().max()))


def _changed(storage: Storage, recorded: RunRecord, source: Source) -> dict[str, tuple[str, str]]:
    """What the run was made with and left, where it is not the same now."""
    then, now = _origin(recorded.record, recorded.record["fingerprint"]), _origin(provenance(), source.fingerprint)
    record = audit.find(storage, "run", recorded.name)
    if record:
        then |= {f"bundle/{name}": value for name, value in record.facts["bundle"].items()}
        now |= {f"bundle/{name}": value for name, value in bundle_hashes(storage, recorded.name).items()}
    if then["code"] == now["code"] and then["code"].endswith(_CHANGES):
        now["code"] += ", which may be others"
    return differences(then, now)


def _origin(process: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    git = process["git"]
    code = "no git checkout" if git is None else f"commit {git['commit']}{_CHANGES if git['dirty'] else ''}"
    packages = {f"package {name}": version for name, version in process["versions"].items()}
    return {"data fingerprint": fingerprint, "code": code, "host": process["host"], **packages}


def _bundle(storage: Storage, name: str) -> Bundle:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Bundle.load(storage.fetch(f"runs/{name}/bundle", Path(folder)))
        except (OSError, ValueError, KeyError) as fault:
            raise damaged(storage.path(f"runs/{name}/bundle"), fault) from None


@contextmanager
def _scratch(storage: Storage, name: str) -> Iterator[Storage]:
    """A storage of its own in a folder of the run, where every node reaches it; gone afterwards."""
    prefix = f"runs/{name}/reproduce-{uuid.uuid4().hex[:8]}"
    try:
        yield Storage.at(storage.path(prefix))
    finally:
        if storage.is_local:
            shutil.rmtree(storage.path(prefix), ignore_errors=True)
        else:
            storage.delete(storage.keys(prefix))
