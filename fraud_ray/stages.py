"""The stages that `pipeline.py` tells of: each calls its room, keeps its value in the run, and tells MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from fraud_ray.data import cache
from fraud_ray.data.contract import Census, validate
from fraud_ray.data.drift import Drift
from fraud_ray.data.folds import Folds, plan_folds
from fraud_ray.data.prepare import Prepared, prepare
from fraud_ray.data.source import Source
from fraud_ray.decision.comparison import Comparison
from fraud_ray.decision.curves import Curves
from fraud_ray.decision.evaluate import Evaluation
from fraud_ray.decision.gate import GateDecision, decide
from fraud_ray.errors import DriftError, FraudRayError
from fraud_ray.intake import with_windows
from fraud_ray.progress import Progress, Stage, counted
from fraud_ray.registry.champion import compare_with_champion, evaluate_champion
from fraud_ray.registry.promotion import promote, record_registration, record_run
from fraud_ray.registry.reference import measure_drift, of_champion
from fraud_ray.registry.tracking import Dataset, TrackedRun, connect
from fraud_ray.registry.versions import CHAMPION, RegisteredVersion, champion, register
from fraud_ray.report.card import model_card
from fraud_ray.report.drift import draw
from fraud_ray.report.page import ReportValues, render
from fraud_ray.runs import Outcome, Run, read_run
from fraud_ray.settings import Loaded, Settings, settings_hash
from fraud_ray.storage import Storage
from fraud_ray.training.evaluation import assemble, fetch_bundle, get_ready
from fraud_ray.training.search import SearchOutcome, Trial, search, selection_logits
from fraud_ray.training.trainer import Fitted, load_fitted, refit
from fraud_ray.windows.definition import Definition

# Files in a run's folder, beside its stages' values.
CURVES, REPORT = "curves.json", "report.html"


class StoppedAfter(Exception):  # noqa: N818 - no error
    """The run was asked to stop after this stage."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


@dataclass(frozen=True)
class Made:
    """What the stages came to, up to the gate's decision. drift: None where none was measured."""

    prepared: Prepared
    drift: Drift | None
    found: SearchOutcome
    fitted: Fitted
    evaluation: Evaluation
    decision: GateDecision


@dataclass
class Stages:
    """What every stage needs: the run, its data and where to tell of it.

    source: the partitions as they lie; data: what is trained on, which is the same, with window columns where they are
    declared; windows: what the model has to carry of those. MLflow is written to by one thread of this process, so that
    neither training nor the terminal waits for it.
    """

    loaded: Loaded
    source: Source
    storage: Storage
    run: Run
    progress: Progress
    writer: ThreadPoolExecutor
    tracked: Future[TrackedRun]
    until: str | None
    data: Source
    windows: dict[str, Any] | None = None
    plan_lines: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def of(
        cls,
        loaded: Loaded,
        source: Source,
        storage: Storage,
        run: Run,
        progress: Progress,
        until: str | None = None,
    ) -> Iterator[Stages]:
        """The stages of a run; MLflow is connected to meanwhile. A fault ends the run in MLflow as failed.

        until: the stage after which StoppedAfter is raised.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow") as writer:
            tracked = writer.submit(_start_tracking, loaded, source, run)
            stages = cls(loaded, source, storage, run, progress, writer, tracked, until, data=source)
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

    def add_windows(self) -> None:
        """Gives the later stages the data with its window columns, where any are declared."""
        definition = Definition.of(self.settings)
        if definition is None:
            self._stop_after("windows")
            return
        self.tracked.result()  # a server out of reach is found before anything is computed for it
        with self._stage("windows") as stage:
            self.data, made = with_windows(self.source, definition, self.settings, self.storage, stage.update)
            self.windows = {"definition": definition.to_json(), "state": made.state.key}
            stage.say(
                f"{counted(len(definition.names), 'column')} for {counted(self.data.rows, 'row')}"
                + ("; cached" if made.cached else "")
            )

    def validate(self) -> Census:
        with self._stage("validate") as stage:
            census = validate(self.data, self.settings.data, stage.update)
            stage.say(str(census))
            return census

    def plan(self, census: Census) -> Folds:
        with self._stage("plan") as stage:
            folds = plan_folds(census, self.settings.folds)
            self.plan_lines = [
                *str(folds).splitlines(),
                _search_plan(self.settings),
                *self.loaded.notes,
            ]
            stage.say("; ".join(self.plan_lines))
            return folds

    def drift(self) -> Drift | None:
        """Today's data against what the champion was fitted on.

        None, and no line, where there is no champion, or where drift.action is `ignore`. Raises DriftError where
        drift.action says so; the same run again does so at once.
        """
        tracking = self.tracked.result().tracking  # a server out of reach is found before anything is computed for it
        action, is_measured = self.settings.drift.action, self.run.has("drift")
        reference = None if is_measured or action == "ignore" else of_champion(tracking)
        if action == "ignore" or (reference is None and not is_measured):
            self._stop_after("drift")
            return None
        with self._stage("drift") as stage:

            def compute() -> Drift:
                assert reference is not None, "there is one where nothing is measured yet"
                drift = measure_drift(reference, self.data, self.settings, stage.update)
                self.storage.put_json(self.run.key("drift.json"), drift.to_json())
                self.storage.put(self.run.key("drift.svg"), draw(drift, "svg"))
                return drift

            drift = self.run.once("drift", compute, Drift.to_json, Drift.from_json)
            self._tell("log_json", drift.to_json(), "drift.json").result()
            if drift.drifted and action == "fail":
                raise DriftError(
                    f"{drift.verdict}. Look at {self.run.folder}/drift.svg; to train on this data all the same, run "
                    "again with --set drift.action=warn"
                )
            if drift.drifted:
                self.plan_lines.append(f"warning: {drift.verdict}")
            stage.say(drift.verdict)
            return drift

    def prepare(self, folds: Folds) -> Prepared:
        with self._stage("prepare") as stage:
            prepared = prepare(self.data, folds, self.settings, self.storage, stage.update)
            stage.say(str(prepared))
            cache.note_use(self.storage, self.run.name, prepared.key, prepared.writer)
            if not prepared.cached:  # what it replaced may be of no use to anybody now
                cache.prune(self.storage, None, only=prepared.key, but=self.run.name)
            return prepared

    def search(self, prepared: Prepared) -> SearchOutcome:
        with self._stage("search") as stage:
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

            found = self.run.once(
                "search", compute, SearchOutcome.to_json, lambda stored: SearchOutcome.from_json(stored, self.storage)
            )
            stage.say(str(found))
            return found

    def refit(self, prepared: Prepared, found: SearchOutcome) -> Fitted:
        with self._stage("refit") as stage:
            train = self.settings.train_with(found.best.hyperparameters)
            folder = self.run.key("refit")

            def compute() -> Fitted:
                ranks = train.workers * self.settings.rank_resources(for_search=False).get("CPU", 1.0)
                # Where a core is left, a worker there loads what the evaluation needs; Ray gives that to an idle one.
                if ray.cluster_resources().get("CPU", 0.0) >= ranks + 1:
                    ray.remote(num_cpus=1)(get_ready).remote()
                return refit(prepared.final, train, found.best.best_epoch, self.storage, folder, stage.update)

            fitted = self.run.once(
                "refit",
                compute,
                lambda fitted: {"epochs": len(fitted.curve)},
                lambda _: load_fitted(self.storage, folder),
            )
            stage.say(f"{fitted} on {counted(train.workers, 'rank')} ({'GPU' if train.use_gpu else 'CPU'})")
            return fitted

    def evaluate(self, prepared: Prepared, found: SearchOutcome, fitted: Fitted) -> Evaluation:
        with self._stage("evaluate") as stage:

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
                evaluation: Evaluation
                evaluation, curves = _answer(task)
                self.storage.put_json(self.run.key(CURVES), curves.to_json())
                return evaluation

            evaluation = self.run.once("evaluate", compute, Evaluation.to_json, Evaluation.from_json)
            self._tell("log_curve", fitted.curve).result()
            self._tell("log_metrics", evaluation.metrics).result()
            self._tell("log_json", evaluation.to_json(), "evaluation.json").result()
            stage.say(str(evaluation))
            return evaluation

    def gate(self, prepared: Prepared, evaluation: Evaluation) -> GateDecision:
        with self._stage("gate") as stage:

            def compute() -> GateDecision:
                gate = self.settings.gate
                rival = None
                if gate.beats_champion:
                    tracking = self.tracked.result().tracking
                    rival = evaluate_champion(tracking, self.storage, prepared.final, self.settings.decision)
                return decide(evaluation, gate, rival)

            decision = self.run.once("gate", compute, GateDecision.to_json, GateDecision.from_json)
            self._tell("log_json", decision.to_json(), "gate.json").result()
            stage.say(str(decision))
            return decision

    def register(self, made: Made) -> RegisteredVersion | None:
        """Registers the model if the gate lets it."""
        if not made.decision.passed:
            return None
        with self._stage("register") as stage:
            version = self.run.once(
                "register",
                lambda: self._register(made, model_card(self._report_values(made))),
                asdict,
                lambda stored: RegisteredVersion(**stored),
            )
            stage.say(f"{version.name} version {version.version}, {version.alias}")
        self._record(record_registration, version)
        return version

    def challenge(self, made: Made, version: RegisteredVersion | None) -> Comparison | None:
        """Compares a new version with the champion, whose place it takes if it is better.

        None where nothing was registered, or where there was no champion, which the new version is then.
        """
        if version is None or version.alias == CHAMPION:
            return None
        with self._stage("challenge") as stage:
            tracking = self.tracked.result().tracking

            def compute() -> Comparison | None:
                with tempfile.TemporaryDirectory() as scratch:
                    bundle = fetch_bundle(self.storage, self.run.key("bundle"), Path(scratch))
                    return compare_with_champion(tracking, self.storage, made.prepared.final, bundle, self.settings)

            comparison = self.run.once(
                "challenge",
                compute,
                lambda comparison: comparison and comparison.to_json(),
                lambda stored: stored and Comparison.from_json(stored),
            )
            if comparison is None:  # it was deleted meanwhile
                return None
            if comparison.is_better:
                self.run.check_held()
                self.writer.submit(promote, tracking, self.storage, version.version, comparison.message).result()
            stage.say(comparison.message)
            return comparison

    def conclude(
        self, made: Made, version: RegisteredVersion | None, comparison: Comparison | None, retrain: bool
    ) -> Outcome:
        """Reports, and concludes the run; a retraining that the gate rejects has not failed while a champion stays."""
        decision = made.decision
        champion_stays = retrain and not decision.passed and champion(self.tracked.result().tracking) is not None
        if champion_stays:
            self.plan_lines.append("the champion stays")
        if version is not None and comparison is not None and comparison.is_better:
            version = replace(version, alias=CHAMPION)
        values = replace(self._report_values(made), comparison=comparison, version=version, timings=self.run.timings)
        report = self.report(values)
        if decision.passed:
            self._tell("finish", "FINISHED").result()
        else:
            self._tell("finish", "FAILED", decision.reason).result()
        outcome = Outcome.of_gate(
            decision.passed,
            champion_stays,
            name=self.run.name,
            folder=self.run.folder,
            plan=tuple(self.plan_lines),
            hyperparameters=made.found.best.hyperparameters,
            evaluation=made.evaluation.to_json(),
            gate={**decision.to_json(), "passed": decision.passed, "reason": decision.reason},
            version=None if version is None else {**asdict(version), "uri": version.uri},
            comparison=comparison and {**comparison.to_json(), "message": comparison.message},
            report=report,
            timings=self.run.timings,
        )
        self._record(record_run, self.settings, self._data(made.prepared), made.found.best.best_epoch, outcome)
        return self.run.conclude(outcome)

    def report(self, values: ReportValues) -> str:
        """Writes the run's page; returns where it lies."""
        with self.progress.stage("report") as stage:
            page, key = render(values), self.run.key(REPORT)
            self.storage.put(key, page.encode())
            self._tell("log_text", page, REPORT).result()
            stage.say(self.storage.path(key))
            return self.storage.path(key)

    @contextmanager
    def _stage(self, name: str) -> Iterator[Stage]:
        with self.progress.stage(name) as stage:
            yield stage
        self._stop_after(name)

    def _stop_after(self, name: str) -> None:
        if name == self.until:
            raise StoppedAfter(name)

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

    def _report_values(self, made: Made) -> ReportValues:
        curves = self.storage.get_json(self.run.key(CURVES))
        if curves is None:
            raise FraudRayError(
                f"{self.storage.path(self.run.key(CURVES))} is gone, which the evaluation wrote; delete "
                f"{self.storage.path(self.run.key('stages/evaluate.json'))} and run again"
            )
        return ReportValues(
            run=read_run(self.storage, self.run.name),
            settings=self.settings,
            data=self.source.root,
            rows=self.source.rows,
            partitions=len(self.source.partitions),
            folds=(*made.prepared.selection, made.prepared.final),
            found=made.found,
            refit_curve=made.fitted.curve,
            evaluation=made.evaluation,
            curves=Curves.from_json(curves),
            decision=made.decision,
            drift=made.drift,
        )

    def _register(self, made: Made, card: str) -> RegisteredVersion:
        example = made.prepared.final.encoder.typical_rows().to_pandas()
        tags = {"fraud_ray.fingerprint": self.source.fingerprint, "fraud_ray.settings": settings_hash(self.settings)}
        with tempfile.TemporaryDirectory() as scratch:
            bundle = fetch_bundle(self.storage, self.run.key("bundle"), Path(scratch))
            registered: RegisteredVersion = self.writer.submit(
                register, self.tracked.result(), bundle, example, made.evaluation.metrics, tags, card
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
            **({} if self.windows is None else {"windows": self.windows}),
        }

    def _data(self, prepared: Prepared) -> dict[str, Any]:
        return {
            "path": self.source.root,
            "fingerprint": self.source.fingerprint,
            "rows": self.source.rows,
            "partitions": len(self.source.partitions),
            "fold": prepared.final.span,
        }

    def _record(self, write: Callable[..., None], *values: Any) -> None:
        """Has the writer put something into the audit record, which may have been done by an earlier start."""
        self.run.check_held()
        self.writer.submit(lambda: write(self.tracked.result(), self.storage, *values)).result()

    def _tell(self, method: str, *values: Any, **named: Any) -> Future[Any]:
        """Has the writer call a method of the run in MLflow."""
        return self.writer.submit(lambda: getattr(self.tracked.result(), method)(*values, **named))


def _start_tracking(loaded: Loaded, source: Source, run: Run) -> TrackedRun:
    settings = loaded.settings
    tags = {"fraud_ray.config": loaded.config, "fraud_ray.folder": run.folder}
    dataset = Dataset(Path(source.root).name or source.root, source.root, source.fingerprint, source.rows)
    return connect(settings.registry).start(run.name, settings.recorded(), tags, dataset)


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
    trials = "" if search.algorithm == "grid" else f"{counted(search.trials, 'trial')}, "
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
