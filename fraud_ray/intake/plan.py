"""Settings that fit an extract: folds of all days that fit, training of its size, and a gate that is not trivial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from fraud_ray.decision.cuts import Array, Cuts
from fraud_ray.intake.extract import THREADS, Extract
from fraud_ray.intake.facts import A_DAY, Labels, Roles, plain, seconds_of, texts_of
from fraud_ray.intake.guess import MOST_UNLABELLED
from fraud_ray.progress import counted

WEEK, MOST_FIT_DAYS = 7, 180
SHARE = "20%"
KNOWN_SHARE = 0.95  # of the frauds, whose labels the delay waits for
MOST_EPOCH_ROWS = 500_000
HEADROOM = 0.05  # how far above what needs no model a bound lies, as a share of the way to 1

# First and last day since 1970, both included.
Span = tuple[int, int]

# A setting and why it is so, by its key.
Reasoned = dict[str, tuple[Any, str]]


@dataclass(frozen=True)
class Plan:
    """Folds by time, or stratified ones. fit_rows: of the final fold; holdout: first and last day, since 1970, of the
    selection fold's, None where all rows stand for it; note: what could not be had, and why.
    """

    folds: Reasoned
    fit_rows: int
    holdout: Span | None
    note: str = ""


def plan_folds(
    days: Mapping[int, Labels],
    known_after: Mapping[int, Labels],
    positive: str,
    rows: int,
    by_label_time: bool,
    to_the_second: bool,
) -> Plan:
    """Folds by time where the data allows it, by days or, of few days, by a share of the rows; else stratified ones.

    days: rows by day since 1970 and label; empty without a timestamp; known_after: rows by the days that their label
    took, and label; rows: of the whole extract; by_label_time: whether folds go by each row's own; to_the_second:
    whether the timestamp tells more than the day.
    """
    labelled = [day for day, rows in days.items() if rows[None] <= MOST_UNLABELLED * rows.total()]
    if labelled:
        first, last = min(days), max(labelled)
        span = last - first + 1
        week = min(WEEK, max(1, span // 6))  # a sixth of what is shorter than six weeks
        delay, why = _delay(known_after, positive, week, max(1, span // 4))
        unlabelled = [day for day, rows in days.items() if rows[None]]
        age = max(days) - min(unlabelled) + 1 if unlabelled else 0
        if age > delay and not by_label_time:  # which the contract allows of as many days alone
            delay, why = age, f"rows of the newest {counted(age, 'day')} have no label yet"
        for holdout in (week, 2 * week, 4 * week):
            plan = _by_time(days, positive, span, last, delay, holdout, why)
            if plan is not None:
                return plan
        if to_the_second and 1 < span < WEEK and not unlabelled:
            return _by_share(days, positive, rows, span)
        note = f"no folds by time: {counted(span, 'day')} cannot give each side of two folds a fraud"
    else:
        note = "no folds by time: there is no timestamp" if not days else "no folds by time: no day has all its labels"
    why = "rows drawn at random: easier than days to come, so expect less of the model in use"
    return Plan({"kind": ("stratified", why)}, round(0.8 * rows), None, note)


def _by_share(days: Mapping[int, Labels], positive: str, rows: int, span: int) -> Plan:
    folds: Reasoned = {
        "holdout": (SHARE, f"the newest rows, to the second: {counted(span, 'day')} are too few to hold out days"),
        "fit": ("all", "what lies before"),
        "delay_days": (0, "a guess: after what part of a day do you know what was fraud? 0.25 are six hours"),
    }
    return Plan(folds, round(0.8 * rows), None)


def _by_time(
    days: Mapping[int, Labels], positive: str, span: int, last: int, delay: int, holdout: int, why: str
) -> Plan | None:
    """None where these do not fit, or where a side has no fraud or nothing else."""
    shift = delay + holdout
    room = span - delay - holdout - shift
    fit = min(MOST_FIT_DAYS, room)
    start = last + 1 - holdout - delay - fit

    def side(first: int, length: int) -> tuple[int, int]:
        """Rows and frauds of days."""
        held = [days[day] for day in range(first, first + length) if day in days]
        return sum(rows.total() - rows[None] for rows in held), sum(rows[positive] for rows in held)

    parts = [
        (start - back + ahead, length) for back in (0, shift) for ahead, length in ((0, fit), (fit + delay, holdout))
    ]
    if fit < 1 or not all(0 < frauds < rows for rows, frauds in (side(*part) for part in parts)):
        return None
    if fit < room:
        fitted = f"at most {MOST_FIT_DAYS} of {room} that are there: older fraud tells little of today's"
    else:
        fitted = f"all that fit: {span} days without delay, holdout and the selection fold's shift"
    folds = {
        "fit_days": (fit, fitted),
        "delay_days": (delay, why),
        "holdout_days": (holdout, "the newest days, which judge the model"),
        "selection_shift_days": ([shift], "delay and holdout: its labels are known when the final holdout begins"),
    }
    held_out = start - shift + fit + delay
    return Plan(folds, side(start, fit)[0], (held_out, held_out + holdout - 1))


def _delay(known_after: Mapping[int, Labels], positive: str, usual: int, most: int) -> tuple[int, str]:
    """After how many days labels are known, and how that is known; usual: where nothing tells."""
    took = {day: rows[positive] for day, rows in sorted(known_after.items()) if rows[positive]}
    if not took:
        return usual, "a guess: after how many days do you know what was fraud?"
    reached = np.cumsum([*took.values()]) >= KNOWN_SHARE * sum(took.values())
    measured = max(1, [*took][int(reached.argmax())] + 1)
    if measured > most:
        return most, f"a quarter of the days; {KNOWN_SHARE:.0%} of the frauds were known after {measured}"
    return measured, f"{KNOWN_SHARE:.0%} of the frauds were known by then"


def plan_training(fit_rows: int) -> tuple[Reasoned, Reasoned]:
    """`train` and `search` that take minutes on a laptop, for so many fit rows."""
    share = min(1.0, max(0.01, round(MOST_EPOCH_ROWS / max(fit_rows, 1), 2)))
    an_epoch = fit_rows * share
    batch, epochs = (256, 30) if an_epoch < 30_000 else (512, 20) if an_epoch < 150_000 else (1_024, 12)
    steps = math.ceil(an_epoch / batch)
    train: Reasoned = {
        "batch_size": (batch, f"{counted(fit_rows, 'fit row')}: {counted(steps, 'step')} an epoch"),
        "epochs": (epochs, "with the cosine few are enough"),
        "learning_rate": (0.004 if batch > 256 else 0.002, "searched below"),
        "schedule": ("cosine", "falls to zero over the epochs"),
        "warmup_share": (0.05, "rises to its peak first"),
        "dropout": (0.1, "searched below"),
    }
    if share < 1:
        drawn = "of the legitimate rows, drawn afresh each epoch: so many rows need no more"
        train = {"negative_share": (share, drawn), **train}
    rates = [0.001, 0.004] if batch > 256 else [0.0005, 0.002]
    return train, {"space": ({"learning_rate": rates, "dropout": [0.1, 0.3]}, "four trials")}


def plan_gate(
    extract: Extract,
    roles: Roles,
    amount: str | None,
    positive: str,
    groups: Sequence[Sequence[str]],
    days: Span | None,
) -> Reasoned:
    """Bounds above what a constant and the amount alone reach on the selection holdout.

    positive: the text of the label of fraud; groups: the files that hold it; days: its first and last, None for all.
    """
    columns = [name for name in (roles.label, roles.timestamp, amount) if name]

    def read(names: Sequence[str]) -> tuple[Array, Array]:
        labels, amounts = [np.empty(0, bool)], [np.empty(0)]
        for _, table in extract.tables(names, columns):
            held = {column: plain(table[column]) for column in table.column_names}
            if roles.label not in held:
                continue
            keep = pc.is_valid(held[roles.label]).to_numpy()
            if days is not None and roles.timestamp in held:
                day = pc.fill_null(seconds_of(held[roles.timestamp], roles.unit), np.inf).to_numpy() // A_DAY
                keep &= (day >= days[0]) & (day <= days[1])
            label = pc.fill_null(pc.equal(texts_of(held[roles.label]), positive), False).to_numpy()
            value = pc.cast(held[amount], "float64", safe=False).to_numpy() if amount in held else np.zeros(len(label))
            labels.append(label[keep])
            amounts.append(np.nan_to_num(value[keep], nan=0.0, posinf=0.0, neginf=0.0))
        return np.concatenate(labels), np.concatenate(amounts)

    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(read, groups))
    labels, amounts = (np.concatenate(side) for side in zip(*parts, strict=True))
    constant = _best(np.zeros(len(labels)), labels)
    alone = np.maximum(_best(amounts, labels), _best(-amounts, labels))
    bounds = [min(0.99, math.ceil(100 * (b + HEADROOM * (1 - b))) / 100) for b in np.maximum(constant, alone)]
    reached = [
        f"a constant reaches {c:.3f}" + (f", the amount alone {a:.3f}" if amount else "")
        for c, a in zip(constant, alone, strict=True)
    ]
    return {
        "min_f1": (bounds[0], reached[0]),
        "min_average_precision": (bounds[1], reached[1]),
    }


def _best(scores: Array, labels: Array) -> Array:
    """The best F1 of any threshold, and the average precision."""
    cuts = Cuts.of(scores, labels)
    return np.array([cuts.f1.max(), float(np.diff(cuts.hits, prepend=0) @ cuts.precision) / max(cuts.frauds, 1)])
