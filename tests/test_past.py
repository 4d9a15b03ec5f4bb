"""One entity's past, growing: what it answers is what the whole history gives, to the bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fraud_ray.data.keys import NEVER
from fraud_ray.errors import DataError
from fraud_ray.windows import past as pasts
from fraud_ray.windows.definition import DAY, Group, Measure
from fraud_ray.windows.measures import compute
from fraud_ray.windows.past import NO_LABEL, Past, Row
from fraud_ray.windows.timeline import Transactions
from tests.test_windows import BY_LABEL_TIME, EVERY

QUARTER = DAY // 4
GROUP = Group(0, "card", tuple(EVERY))
WITH_LABEL_TIMES = Group(0, "card", (*EVERY[:20], *BY_LABEL_TIME))

# What happens: transactions (quarter of a day, hundredths, whether labelled at once as a fraud, a legitimate one, or
# not), in any order of time, and labels (of which transaction, fraud, quarters after it).
transactions = st.tuples(st.integers(0, 24), st.none() | st.integers(0, 5), st.sampled_from([NO_LABEL, 0, 1]))
labels = st.tuples(st.integers(0, 30), st.integers(0, 1), st.integers(0, 11))
events = st.lists(st.one_of(transactions.map(lambda t: ("joins", t)), labels.map(lambda x: ("label", x))), max_size=30)


@dataclass(frozen=True)
class Known:
    """A transaction as the whole history has it."""

    quarter: int
    value: int | None
    label: int
    known: int

    def row(self, number: int) -> Row:
        text = "" if self.value is None else f"v{self.value}"
        value = math.nan if self.value is None else self.value / 100
        return Row(self.quarter * QUARTER, f"t{number}", (value,), (text,), self.label, self.known)


def history(rows: Sequence[Known], has_label_times: bool) -> Transactions:
    times = np.array([row.quarter for row in rows], np.int64) * QUARTER
    known = np.array([NEVER if row.label == NO_LABEL else max(row.known, row.quarter * QUARTER + 1) for row in rows])
    return Transactions(
        entity=np.zeros(len(rows), np.int32),
        time=times,
        values={"x": np.array([math.nan if row.value is None else row.value / 100 for row in rows])},
        texts={"x": np.array([-1 if row.value is None else row.value for row in rows], np.int32)},
        fraud=np.array([row.label == 1 for row in rows]),
        known=known if has_label_times else None,
    )


def expected(rows: Sequence[Known], asked: Known, group: Group) -> dict[str, np.float32]:
    of_whole = history([*rows, asked], any(measure.wait for measure in group.measures))
    is_asked = np.arange(len(rows) + 1) == len(rows)
    return {name: values[0] for name, values in compute(of_whole, is_asked, group.measures, decimals=2).items()}


@pytest.mark.parametrize("group", [GROUP, WITH_LABEL_TIMES], ids=["delays", "label times"])
@pytest.mark.parametrize("few", [0, 512], ids=["sums kept", "sums made anew"])
def test_a_past_answers_what_the_whole_history_gives_to_the_bit(
    group: Group, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pasts, "_FEW", few)

    @hypothesis_settings(max_examples=60, deadline=None)
    @given(st.lists(transactions, max_size=9), events)
    def holds(first: list[tuple[int, int | None, int]], happening: list[tuple[str, Any]]) -> None:
        rows = [Known(quarter, value, label, quarter * QUARTER) for quarter, value, label in first]
        past = Past(group, decimals=2, late=100 * DAY)
        past.join([row.row(number) for number, row in enumerate(rows)])
        for what, (one, second, third) in happening:
            if what == "joins":
                row = Known(one, second, third, one * QUARTER)
                found = past.ask(replace(row, label=NO_LABEL).row(len(rows)))
                for name, value in expected(rows, replace(row, label=NO_LABEL), group).items():
                    assert np.float32(found[name]).tobytes() == value.tobytes(), name
                past.join([row.row(len(rows))])
                rows.append(row)
            elif one < len(rows):
                known = (rows[one].quarter + third) * QUARTER
                past.label(rows[one].quarter * QUARTER, f"t{one}", second, known)
                rows[one] = replace(rows[one], label=second, known=known)

    holds()


def test_what_no_window_sees_is_dropped_and_nothing_else_changes() -> None:
    group = Group(0, "card", tuple(m for m in EVERY if m.compute in {"distinct", "sum", "max", "std", "streak"}))
    past, rows = Past(group, decimals=2, late=DAY), []
    for number in range(1_000):
        row = Known(number // 8, number % 97, int(number % 5 == 0), number)
        found, recent = past.ask(row.row(number)), rows[-200:]
        assert found == pytest.approx(expected(recent, row, group), nan_ok=True, rel=0, abs=0), number
        past.join([row.row(number)])
        rows.append(row)
    assert len(past) < 300 < len(rows)


def test_a_value_too_large_for_exact_sums_is_refused_and_has_not_joined() -> None:
    past = Past(GROUP, decimals=2, late=0)
    past.join([Known(1, 5, 0, 1).row(0)])
    with pytest.raises(DataError, match="column 'x' holds values up to 1e"):
        past.ask(Row(2 * QUARTER, "huge", (1e18,), ("v",)))
    assert past.ask(Known(2, 5, 0, 2).row(1))["sum:past"] == np.float32(0.05)


def test_a_label_is_given_to_the_one_of_several_of_an_instant() -> None:
    risk = Measure("risk", "count", None, "frauds", 2 * DAY, DAY, False)
    past = Past(Group(0, "card", (risk,)), decimals=2, late=0)
    past.join([Row(0, f"t{n}", (), ()) for n in range(3)])
    past.label(0, "t1", 1, QUARTER)
    past.label(0, "nobody's", 1, QUARTER)
    assert past.ask(Row(DAY, "t9", (), ()))["risk"] == 1
    past.label(0, "t1", 0, QUARTER)
    assert past.ask(Row(DAY, "t9", (), ()))["risk"] == 0
