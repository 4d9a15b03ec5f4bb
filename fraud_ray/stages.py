"""The stages that `pipeline.py` tells of: each calls its room, keeps its value in the run, and tells MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray

from fraud_ray.champion import evaluate_champion
from fraud_ray.data.contract import Census, validate
from fraud_ray.data.drift import Drift
from fraud_ray.data.folds import Folds, plan_folds
from fraud_ray.data.prepare import Prepared, prepare
from fraud_ray.data.source import Source
from fraud_ray.decision.gate import GateDecision, decide
from fraud_ray.decision.metrics import Evaluation
from fraud_ray.errors import DriftError, FraudRayError
from fraud_ray.evaluation import assemble, fetch_bundle
from fraud_ray.progress import Progress
from fraud_ray.reference import measure_drift, of_champion
from fraud_ray.registry.tracking import Dataset, TrackedRun, connect
from fraud_ray.registry.versions import RegisteredVersion, register
from fraud_ray.report.drift import draw
from fraud_ray.run import Outcome, Run
from fraud_ray.settings import Loaded, Settings, settings_hash
from fraud_ray.storage import Storage
from fraud_ray.training.search import SearchOutcome, Trial, search, selection_logits
from fraud_ray.training.trainer import Fitted, load_fitted, refit


@dataclass
class Stages:
    """What every stage needs: the run, its data and where to tell of it.

    MLflow is written to by one thread of this process, so that neither training nor the terminal waits for it.
    """

    loaded: Loaded
    source: Source
    storage: Storage
    run: Run
    progress: Progress
    writer: ThreadPoolExecutor
    tracked: Future[TrackedRun]
    plan_lines: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def of(cls, loaded: Loaded, source: Source, storage: Storage, run: Run, progress: Progress) -> Iterator[Stages]:
        """The stages of a run; MLflow is connected to meanwhile. A fault ends the run in MLflow as failed."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow") as writer:
            tracked = writer.submit(_start_tracking, loaded, source, run)
            stages = cls(loaded, source, storage, run, progress, writer, tracked)
            try:
                yield stages
            except BaseException as fault:
                if tracked.done() and tracked.exception() is None:
                    interrupted = not isinstance(fault, Exception)
                    stages._tell("finish", "KILLED" if interrupted else "FAILED", _reason(fault))
                raise

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    def validate(self) -> Census:
        with self.progress.stage("validate") as stage:
            census = validate(self.source, self.settings.data, stage.update)
            stage.say(
                f"{census.rows:,} rows in {len(self.source.partitions):,} partitions keep the contract; "
                f"{census.frauds:,} frauds ({census.frauds / census.rows:.2%})"
            )
            return census

    def plan(self, census: Census) -> Folds:
        with self.progress.stage("plan") as stage:
            folds = plan_folds(self.source, census, self.settings.data, self.settings.folds)
            self.plan_lines = [
                *(f"fold {fold.name}: {fold.span}" for fold in folds.all),
                _search_plan(self.settings),
                *self.loaded.notes,
            ]
            stage.say("; ".join(self.plan_lines))
            return folds

    def drift(self) -> Drift | None:
        """Today's data against what the champion was fitted on; None, and no line, where there is no champion.

        Raises DriftError where drift.action says so; the same run again does so at once.
        """
        tracking = self.tracked.result().tracking  # a server out of reach is found before anything is computed for it
        reference = None if self.run.has("drift") else of_champion(tracking)
        if reference is None and not self.run.has("drift"):
            return None
        with self.progress.stage("drift") as stage:

            def compute() -> Drift:
                assert reference is not None, "there is one where nothing is measured yet"
                drift = measure_drift(reference, self.source, self.settings, stage.update)
                self.storage.put_json(self.run.key("drift.json"), drift.to_json())
                self.storage.put(self.run.key("drift.svg"), draw(drift, "svg"))
                return drift

            drift = self.run.once("drift", compute, Drift.to_json, Drift.from_json)
            self._tell("log_json", drift.to_json(), "drift.json").result()
            action = self.settings.drift.action
            if drift.drifted and action == "fail":
                raise DriftError(
                    f"{drift.verdict}. Look at {self.run.folder}/drift.svg; to train on this data all the same, run "
                    "again with --set drift.action=warn"
                )
            if drift.drifted and action == "warn":
                self.plan_lines.append(f"warning: {drift.verdict}")
            stage.say(drift.verdict)
            return drift

    def prepare(self, folds: Folds) -> Prepared:
        with self.progress.stage("prepare") as stage:
            prepared = prepare(self.source, folds, self.settings, self.storage, stage.update)
            final = prepared.final
            stage.say(
                f"{final.fit.rows:,} fit and {final.holdout.rows:,} holdout rows, {len(prepared.selection)} selection "
                f"fold{'s' if len(prepared.selection) > 1 else ''}, {len(final.encoder.feature_names)} features"
                + ("; cached" if prepared.cached else "")
            )
            return prepared

    def search(self, prepared: Prepared) -> SearchOutcome:
        with self.progress.stage("search") as stage:
            told: list[Future[Any]] = []

            def finished(trial: Trial) -> None:
                told.append(self._tell("log_trial", *_told_of(trial), seconds=trial.seconds, status=_status(trial)))

            def compute() -> SearchOutcome:
                found = search(
                    prepared.selection, self.settings, self.storage, self.run.key("search"), finished, stage.update
                )
                for future in told:
                    future.result()
                return found

            found = self.run.once("search", compute, SearchOutcome.to_json, SearchOutcome.from_json)
            best = found.best
            chosen = ", ".join(f"{name} {value}" for name, value in best.hyperparameters.items()) or "settings as given"
            kept = f", {found.reused} kept" if found.reused else ""
            stage.say(
                f"{_counted(len(found.trials), 'trial')}{kept}; best: {chosen}, "
                f"selection AP {best.average_precision:.4f} at epoch {best.best_epoch}"
            )
            return found

    def refit(self, prepared: Prepared, found: SearchOutcome) -> Fitted:
        with self.progress.stage("refit") as stage:
            train = self.settings.train_with(found.best.hyperparameters)
            folder = self.run.key("refit")
            fitted = self.run.once(
                "refit",
                lambda: refit(prepared.final, train, found.best.best_epoch, self.storage, folder, stage.update),
                lambda fitted: {"epochs": len(fitted.curve)},
                lambda _: load_fitted(self.storage, folder),
            )
            last = fitted.curve[-1]
            ranks = f"{_counted(train.workers, 'rank')} ({'GPU' if train.use_gpu else 'CPU'})"
            stage.say(
                f"{_counted(len(fitted.curve), 'epoch')} on {ranks}, loss {last['loss']:.4f}, "
                f"{last['rows_per_second']:,.0f} rows/s"
            )
            return fitted

    def evaluate(self, prepared: Prepared, found: SearchOutcome, fitted: Fitted) -> Evaluation:
        with self.progress.stage("evaluate") as stage:

            def compute() -> Evaluation:
                # On a worker: the head of a cluster takes no work.
                task = ray.remote(num_cpus=1)(assemble).remote(
                    self.storage,
                    self.run.key("bundle"),
                    prepared.selection,
                    selection_logits(found, self.storage),
                    prepared.final,
                    fitted.weights,
                    self.settings.train_with(found.best.hyperparameters),
                    self.settings.decision,
                    self._origin(prepared, found),
                )
                evaluation: Evaluation = _answer(task)
                return evaluation

            evaluation = self.run.once("evaluate", compute, Evaluation.to_json, Evaluation.from_json)
            self._tell("log_curve", fitted.curve).result()
            self._tell("log_metrics", evaluation.metrics).result()
            self._tell("log_json", evaluation.to_json(), "evaluation.json").result()
            stage.say(
                f"{evaluation.rows:,} holdout rows, {evaluation.frauds:,} frauds: "
                + ", ".join(f"{key} {evaluation.metrics[key]:.4f}" for key in ("average_precision", "f1_score"))
            )
            return evaluation

    def gate(self, prepared: Prepared, evaluation: Evaluation) -> GateDecision:
        with self.progress.stage("gate") as stage:

            def compute() -> GateDecision:
                gate = self.settings.gate
                rival = None
                if gate.beats_champion:
                    tracking = self.tracked.result().tracking
                    rival = evaluate_champion(tracking, self.storage, prepared.final, self.settings.decision)
                return decide(evaluation, gate, rival)

            decision = self.run.once("gate", compute, GateDecision.to_json, GateDecision.from_json)
            self._tell("log_json", decision.to_json(), "gate.json").result()
            stage.say(("passed: " if decision.passed else "rejected: ") + decision.reason)
            return decision

    def conclude(
        self, prepared: Prepared, found: SearchOutcome, evaluation: Evaluation, decision: GateDecision
    ) -> Outcome:
        """Registers the model if the gate lets it, and concludes the run either way."""
        version: RegisteredVersion | None = None
        if decision.passed:
            with self.progress.stage("register") as stage:
                version = self.run.once(
                    "register",
                    lambda: self._register(prepared, evaluation),
                    asdict,
                    lambda stored: RegisteredVersion(**stored),
                )
                stage.say(f"{version.name} version {version.version}, {version.alias}")
            self._tell("finish", "FINISHED").result()
        else:
            self._tell("finish", "FAILED", decision.reason).result()
        return self.run.conclude(
            Outcome.of_gate(
                decision.passed,
                name=self.run.name,
                folder=self.run.folder,
                plan=tuple(self.plan_lines),
                hyperparameters=found.best.hyperparameters,
                evaluation=evaluation.to_json(),
                gate={**decision.to_json(), "passed": decision.passed, "reason": decision.reason},
                version=None if version is None else {**asdict(version), "uri": version.uri},
                timings=self.run.timings,
            )
        )

    def stopped_after(self, stage: str) -> Outcome:
        """The outcome of a run that was asked to stop here; the run is not concluded."""
        self.tracked.result()
        return Outcome(
            self.run.name,
            self.run.folder,
            f"stopped after {stage}",
            plan=tuple(self.plan_lines),
            timings=self.run.timings,
        )

    def _register(self, prepared: Prepared, evaluation: Evaluation) -> RegisteredVersion:
        example = prepared.final.encoder.typical_rows().to_pandas()
        tags = {"fraud_ray.fingerprint": self.source.fingerprint, "fraud_ray.settings": settings_hash(self.settings)}
        with tempfile.TemporaryDirectory() as scratch:
            bundle = fetch_bundle(self.storage, self.run.key("bundle"), Path(scratch))
            registered: RegisteredVersion = self.writer.submit(
                register, self.tracked.result(), bundle, example, evaluation.metrics, tags
            ).result()
            return registered

    def _origin(self, prepared: Prepared, found: SearchOutcome) -> dict[str, Any]:
        return {
            "run": self.run.name,
            "fold": prepared.final.span,
            "data": self.source.root,
            "fingerprint": self.source.fingerprint,
            "settings": settings_hash(self.settings),
            "seed": self.settings.train.seed,
            "epochs": found.best.best_epoch,
            "selection_average_precision": found.best.average_precision,
        }

    def _tell(self, method: str, *values: Any, **named: Any) -> Future[Any]:
        """Has the writer call a method of the run in MLflow."""
        return self.writer.submit(lambda: getattr(self.tracked.result(), method)(*values, **named))


def _start_tracking(loaded: Loaded, source: Source, run: Run) -> TrackedRun:
    settings = loaded.settings
    tags = {"fraud_ray.config": loaded.config, "fraud_ray.folder": run.folder}
    dataset = Dataset(Path(source.root).name or source.root, source.root, source.fingerprint, source.rows)
    return connect(settings.registry).start(run.name, settings.resolved(), tags, dataset)


def _told_of(trial: Trial) -> tuple[str, dict[str, Any], tuple[dict[str, Any], ...], dict[str, Any]]:
    result = {"average_precision": trial.average_precision, "best_epoch": trial.best_epoch}
    return trial.id, trial.hyperparameters, trial.curve, {k: v for k, v in result.items() if v is not None}


def _status(trial: Trial) -> str:
    return {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[trial.status]


def _search_plan(settings: Settings) -> str:
    search = settings.search
    if not search.space:
        return "one trial with the settings as given"
    names = ", ".join(search.space)
    trials = "" if search.algorithm == "grid" else f"{search.trials} trials, "
    return f"search: {trials}{search.algorithm} over {names}"


def _answer(task: Any) -> Any:
    """A task's result; its FraudRayError as it was raised there."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as fault:
        if isinstance(fault.cause, FraudRayError):
            raise fault.cause from None
        raise


def _reason(fault: BaseException) -> str:
    return str(fault) or type(fault).__name__


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
