"""What a run tells, and to whom: of drift, its figures, its page, its outcome; MLflow and the audit record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fraud_ray.data.drift import Drift
from fraud_ray.data.folds import Folds
from fraud_ray.data.prepare import Prepared
from fraud_ray.data.source import Source
from fraud_ray.decision.evaluate import Evaluation
from fraud_ray.decision.gate import GateDecision
from fraud_ray.decision.rejection import of_the_bounds, of_the_search
from fraud_ray.decision.rival import Rival
from fraud_ray.progress import counted
from fraud_ray.registry.promotion import record_run
from fraud_ray.registry.versions import champion
from fraud_ray.registry.writer import Writer
from fraud_ray.report.page import ReportValues, render
from fraud_ray.report.panels import draw_drift
from fraud_ray.report.pictures import alert_unit
from fraud_ray.runs import REPORT, Outcome, Run, read_run
from fraud_ray.settings import Settings
from fraud_ray.training.assemble import read_curves
from fraud_ray.training.search import SearchOutcome
from fraud_ray.training.trainer import Fitted

DRIFT = "drift.svg"  # in the run's folder


def tell_of_drift(drift: Drift, run: Run, mlflow: Writer, action: str) -> str:
    """Draws the drift, puts it into the plan, and returns it in words; raises DriftError where the action is `fail`."""
    run.storage.put_json(run.key("drift.json"), drift.to_json())
    run.storage.put(run.key(DRIFT), draw_drift(drift, "svg"))
    mlflow.tell("log_json", drift.to_json(), "drift.json")
    run.plan += drift.heed(action, f"{run.folder}/{DRIFT}")
    return drift.verdict


def tell_of_results(
    run: Run,
    mlflow: Writer,
    settings: Settings,
    source: Source,
    prepared: Prepared,
    found: SearchOutcome,
    fitted: Fitted,
    evaluation: Evaluation,
    decision: GateDecision,
    drift: Drift | None,
    folds: Folds,
    rival: Rival | str | None,
) -> ReportValues:
    """Tells MLflow of the refit, its figures and the gate; returns what page and card are made from."""
    mlflow.tell("log_curve", fitted.curve)
    mlflow.tell("log_metrics", evaluation.metrics)
    mlflow.tell("log_json", evaluation.to_json(), "evaluation.json")
    mlflow.tell("log_json", decision.to_json(), "gate.json")
    values = ReportValues(
        run=read_run(run.storage, run.name),
        settings=settings,
        data=source.root,
        rows=source.rows,
        partitions=len(source.partitions),
        folds=(*prepared.selection, prepared.final),
        found=found,
        refit_curve=fitted.curve,
        evaluation=evaluation,
        curves=read_curves(run.storage, run.key),
        decision=decision,
        drift=drift,
        rival=rival,
    )
    return values if decision.passed else replace(values, advice=tuple(_advice(values, folds)))


def _advice(values: ReportValues, folds: Folds) -> Iterator[str]:
    """What another threshold, the search and more days would likely bring."""
    evaluation, found, fitted = values.evaluation, values.found, values.final.fit.frauds
    yield from of_the_bounds(
        values.decision, evaluation, values.cutoffs, values.rival if isinstance(values.rival, Rival) else None
    )
    scores = [trial.average_precision for trial in found.trials if trial.average_precision is not None]
    yield from of_the_search(scores, found.best.curve)
    _, highest = evaluation.intervals.get("average_precision", (0.0, 1.0))
    if max(scores) > highest:
        yield f"selection AP {max(scores):.4f} lies above the interval on the final holdout: its days differ"
    if folds.unused:
        yield f"{folds.unused}, with {counted(folds.unused.frauds, 'fraud')} beside the {fitted:,} of the fit"
    elif folds.grouping is None:
        yield f"all days are used, with {counted(fitted, 'fraud')} in the fit; more would have to come"


def _rejection(values: ReportValues) -> dict[str, Any]:
    per, unit = alert_unit(values.curves, values.evaluation)
    thresholds = [{**one.to_json(), "alerts": round(one.alerts / per, 3)} for one in values.cutoffs]
    missed = [check.message for check in values.decision.checks if not check.passed]
    return {"advice": [*missed, *values.advice], "thresholds": thresholds, "alerts": unit}


def conclude(run: Run, values: ReportValues, mlflow: Writer, retrain: bool) -> Outcome:
    """Reports, and concludes the run; a retraining that the gate rejects has not failed while a champion stays."""
    decision, best = values.decision, values.found.best
    champion_stays = retrain and not decision.passed and champion(mlflow.tracking) is not None
    if champion_stays:
        run.plan.append("the champion stays")
    with run.progress.stage("report") as stage:
        page, place = render(values), run.storage.path(run.key(REPORT))
        run.storage.put(run.key(REPORT), page.encode())
        mlflow.tell("log_text", page, REPORT)
        stage.say(place)
    mlflow.tell("finish", *(["FINISHED", "registered"] if decision.passed else ["FAILED", "rejected", decision.reason]))
    outcome = Outcome.of_gate(
        decision.passed,
        champion_stays,
        name=run.name,
        folder=run.folder,
        plan=tuple(run.plan),
        hyperparameters=best.hyperparameters,
        evaluation=values.evaluation.to_json(),
        gate=decision.to_json(),
        version=values.version and values.version.to_json(),
        rival=None if values.rival is None else str(values.rival),
        comparison=values.comparison and values.comparison.to_json(),
        rejection=None if decision.passed else _rejection(values),
        report=place,
        **run.took,
    )
    data = {
        "path": values.data,
        "fingerprint": values.run.record["fingerprint"],
        "rows": values.rows,
        "partitions": values.partitions,
        "fold": values.final.span,
    }
    mlflow.ask(record_run, run.storage, values.settings, data, best.best_epoch, outcome)
    return run.conclude(outcome)
