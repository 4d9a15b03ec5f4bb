"""How a run ends: its page, its outcome, and what MLflow and the audit record say of it."""

from __future__ import annotations

from fraud_ray.registry.promotion import record_run
from fraud_ray.registry.versions import champion
from fraud_ray.registry.writer import Writer
from fraud_ray.report.page import ReportValues, render
from fraud_ray.runs import Outcome, Run

REPORT = "report.html"  # in the run's folder


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
    mlflow.tell("finish", *(["FINISHED"] if decision.passed else ["FAILED", decision.reason]))
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
        comparison=values.comparison and values.comparison.to_json(),
        report=place,
        timings=run.timings,
    )
    data = {
        "path": values.data,
        "fingerprint": values.run.record["fingerprint"],
        "rows": values.rows,
        "partitions": values.partitions,
        "fold": values.final.span,
    }
    run.check_held()
    mlflow.ask(record_run, run.storage, values.settings, data, best.best_epoch, outcome)
    return run.conclude(outcome)
