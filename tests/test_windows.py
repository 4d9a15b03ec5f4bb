"""Windows: what each column holds, point in time; the same on Ray, in any order, and day by day from a state."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fraud_ray.data.contract import ContractViolation
from fraud_ray.data.keys import known_since
from fraud_ray.data.source import Source, open_source
from fraud_ray.errors import DamagedError, DataError
from fraud_ray.scoring.raw import read_labels
from fraud_ray.settings import Settings
from fraud_ray.storage import Storage
from fraud_ray.windows import state as states
from fraud_ray.windows.definition import DAY, Definition, Measure
from fraud_ray.windows.measures import compute
from fraud_ray.windows.state import Windowed, add_windows, load_state
from fraud_ray.windows.timeline import Transactions
from tests.cards import (
    COLUMNS,
    FIRST_DAY,
    TIMED_COLUMNS,
    card_settings,
    card_table,
    days,
    timed,
    unlabelled,
    write_days,
    write_partition,
)

OF_ALL = ("count", "sum", "mean", "min", "max", "std", "distinct", "since_last", "since_first")
OF_LABELS = (*OF_ALL, "share", "streak", "since_streak", "ratio_to_mean", "ratio_to_max", "deviations")
OF_PAST = ("since_last", "since_first", "ratio_to_mean", "ratio_to_max", "deviations")
EVERY = [
    *(Measure(f"{kind}:own", kind, "x", "all", 3 * DAY, 0, True) for kind in OF_ALL if kind not in OF_PAST),
    *(Measure(f"{kind}:past", kind, "x", "all", 3 * DAY, 0, False) for kind in (*OF_ALL, *OF_PAST)),
    *(Measure(f"{kind}:delayed", kind, "x", "all", 2 * DAY, DAY, False) for kind in OF_ALL),
    *(
        Measure(f"{kind}:{among}", kind, "x", among, 2 * DAY, DAY, False)
        for kind in OF_LABELS
        for among in ("frauds", "legitimate")
    ),
]


def quiet(done: float, total: float, text: str) -> None:
    return None


# (entity, time in quarters of a day, value in hundredths or missing, fraud): few of each, so that ties abound.
rows_of = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 24), st.none() | st.integers(0, 5), st.booleans()),
    min_size=1,
    max_size=25,
)
Row = tuple[int, int, int | None, bool]


def transactions(rows: Sequence[Row]) -> Transactions:
    entity, quarter, value, fraud = zip(*rows, strict=True)
    numbers = np.array([math.nan if v is None else v / 100 for v in value])
    return Transactions(
        entity=np.array(entity, np.int32),
        time=np.array(quarter, np.int64) * (DAY // 4),
        values={"x": numbers},
        texts={"x": np.array([-1 if v is None else v for v in value], np.int32)},
        fraud=np.array(fraud),
    )


Seen = tuple[int, int | None, bool]  # time in microseconds, value in hundredths, fraud


def by_definition(rows: Sequence[Row], at: int, measure: Measure) -> float:
    """One value, by looking at every row: slow, and plainly what the documentation says."""
    entity, quarter, value, _ = rows[at]
    now = quarter * (DAY // 4)
    seen = []
    for i, (other, then, of, fraud) in enumerate(rows):
        age = now - then * (DAY // 4)
        if other != entity or age >= measure.delay + measure.length:
            continue
        if (i == at and measure.current) or (i != at and age >= measure.delay and age > 0):
            seen.append((then * (DAY // 4), of, fraud))
    return of_seen(seen, now, value, measure)


def of_seen(seen: Sequence[Seen], now: int, value: int | None, measure: Measure) -> float:
    """What a measure is of the rows in a window, for a row with its own value at a time in microseconds."""
    counts = {"all": lambda r: True, "frauds": lambda r: r[2], "legitimate": lambda r: not r[2]}[measure.among]
    members = [row for row in seen if counts(row)]
    present = [v / 100 for _, v, _ in members if v is not None]
    ages = [(now - time) / DAY for time, *_ in members]
    mean = sum(present) / len(present) if present else math.nan
    own = math.nan if value is None else value / 100
    spread = statistics.stdev(present) if len(present) > 1 else math.nan
    largest = max(present, default=math.nan)
    # Rows of one instant have no order: all of them count, or a streak begins after them.
    broken = max((time for time, *_ in (row for row in seen if not counts(row))), default=-1)
    streak = [(now - time) / DAY for time, *_ in seen if time > broken]

    def over(above: float, below: float) -> float:
        return above / below if below and not math.isnan(below) else math.nan

    return {
        "count": lambda: float(len(members)),
        "share": lambda: len(members) / max(len(seen), 1),
        "sum": lambda: sum(present),
        "mean": lambda: mean,
        "min": lambda: min(present, default=math.nan),
        "max": lambda: largest,
        "std": lambda: spread,
        "distinct": lambda: float(len(set(present))),
        "since_last": lambda: min(ages, default=math.nan),
        "since_first": lambda: max(ages, default=math.nan),
        "streak": lambda: float(len(streak)),
        "since_streak": lambda: max(streak, default=math.nan),
        "ratio_to_mean": lambda: over(own, mean),
        "ratio_to_max": lambda: over(own, largest),
        "deviations": lambda: over(own - mean, spread),
    }[measure.compute]()


@hypothesis_settings(max_examples=150, deadline=None)
@given(rows_of)
def test_every_column_is_what_looking_at_every_row_gives(rows: list[Row]) -> None:
    everything = np.ones(len(rows), bool)
    got = compute(transactions(rows), everything, EVERY, decimals=2)
    for measure in EVERY:
        expected = [by_definition(rows, at, measure) for at in range(len(rows))]
        np.testing.assert_allclose(got[measure.name], expected, rtol=1e-6, atol=1e-9, err_msg=measure.name)


@hypothesis_settings(max_examples=60, deadline=None)
@given(rows_of, st.randoms(use_true_random=False))
def test_order_history_and_what_is_asked_for_do_not_change_a_bit(rows: list[Row], random: Any) -> None:
    whole = compute(transactions(rows), np.ones(len(rows), bool), EVERY, decimals=2)
    # A long and heavy history before, out of every window's reach, and the rows in another order.
    old = [(entity, -100 - i, 5, True) for entity in range(3) for i in range(7)]
    order = list(range(len(rows)))
    random.shuffle(order)
    asked = np.array([False] * len(old) + [i % 2 == 0 for i in order])
    shuffled = compute(transactions([*old, *(rows[i] for i in order)]), asked, EVERY, decimals=2)
    kept = [i for i in order if i % 2 == 0]
    for name, values in whole.items():
        assert values[kept].tobytes() == shuffled[name].tobytes(), name


@hypothesis_settings(deadline=None)
@given(rows_of)
def test_nothing_later_and_no_young_label_is_seen(rows: list[Row]) -> None:
    last = max(quarter for _, quarter, _, _ in rows)
    now = last // 2
    past = [row for row in rows if row[1] <= now]
    # What is not known at `now`: later rows, and labels younger than the delay of a day.
    known = [(e, q, v, fraud and q <= now - 4) for e, q, v, fraud in past]
    asked = np.array([quarter == now for _, quarter, _, _ in rows])
    with_future = compute(transactions(rows), asked, EVERY, decimals=2)
    if known:
        without = compute(transactions(known), asked[[i for i, r in enumerate(rows) if r[1] <= now]], EVERY, 2)
        assert all(with_future[name].tobytes() == without[name].tobytes() for name in without)


# By label time: the same rows, and how many quarters of a day each label took, if it is known at all.
took_of = st.lists(st.none() | st.integers(0, 11), min_size=25, max_size=25)
BY_LABEL_TIME = [
    Measure(f"{kind}:{among}:{delay}", kind, "x", among, 2 * DAY, delay, False, wait=2 * DAY)
    for kind in OF_LABELS
    for among in ("frauds", "legitimate")
    for delay in (0, DAY // 2)
]


def with_label_times(rows: Sequence[Row], took: Sequence[int | None]) -> Transactions:
    some = transactions(rows)
    # As files say it: a label may be known at the transaction's own instant.
    quarters = [None if t is None else then + t for (_, then, *_), t in zip(rows, took, strict=False)]
    known = pa.chunked_array([[None if quarter is None else quarter * (DAY // 4) for quarter in quarters]], pa.int64())
    return replace(some, known=known_since(known, pa.chunked_array([some.time])))


def by_label_time(rows: Sequence[Row], took: Sequence[int | None], at: int, measure: Measure) -> float:
    """One value, by looking at the label of every row: it counts from when it is known, but not at its own row."""
    entity, quarter, value, _ = rows[at]
    now, seen = quarter * (DAY // 4), []
    for (other, then, of, fraud), quarters in zip(rows, took, strict=False):
        if other != entity or quarters is None or quarters * (DAY // 4) > measure.wait:
            continue
        known = max((then + quarters) * (DAY // 4), then * (DAY // 4) + 1)
        if measure.delay <= now - known < measure.delay + measure.length:
            seen.append((known, of, fraud))
    return of_seen(seen, now, value, measure)


@hypothesis_settings(max_examples=150, deadline=None)
@given(rows_of, took_of)
def test_with_label_times_every_column_is_what_looking_at_every_label_gives(
    rows: list[Row], took: list[int | None]
) -> None:
    # Beside columns that are not by label, which label times do not change.
    measures = [*EVERY[:20], *BY_LABEL_TIME]
    got = compute(with_label_times(rows, took), np.ones(len(rows), bool), measures, decimals=2)
    for measure in BY_LABEL_TIME:
        expected = [by_label_time(rows, took, at, measure) for at in range(len(rows))]
        np.testing.assert_allclose(got[measure.name], expected, rtol=1e-6, atol=1e-9, err_msg=measure.name)
    without = compute(transactions(rows), np.ones(len(rows), bool), EVERY[:20], decimals=2)
    assert all(got[name].tobytes() == values.tobytes() for name, values in without.items())


@hypothesis_settings(max_examples=60, deadline=None)
@given(rows_of)
def test_labels_that_all_take_as_long_are_as_with_a_delay(rows: list[Row]) -> None:
    delayed = [measure for measure in EVERY if measure.among != "all"]
    waiting = [replace(measure, delay=0, wait=DAY) for measure in delayed]
    everything = np.ones(len(rows), bool)
    by_delay = compute(transactions(rows), everything, delayed, decimals=2)
    by_time = compute(with_label_times(rows, [4] * len(rows)), everything, waiting, decimals=2)
    for name, values in by_delay.items():
        days_later = 1 if name.startswith("since") else 0  # since the transaction there, since its label here
        np.testing.assert_allclose(by_time[name] + days_later, values, rtol=1e-6, atol=1e-6, err_msg=name)


def test_keys_that_do_not_fit_in_64_bits_are_taken_in_blocks() -> None:
    rows: list[Row] = [(entity, quarter, 1, False) for entity in range(3) for quarter in (0, 1, 2)]
    some = transactions(rows)
    # Three entities over 290,000 years: two of their keys overflow.
    far = replace(some, time=some.time + np.where(np.arange(9) % 3 == 2, 2**61, 0))
    counted = compute(far, np.ones(9, bool), [Measure("n", "count", None, "all", DAY, 0, True)], 2)["n"]
    assert counted.tolist() == [1, 2, 1] * 3


def test_values_too_large_for_exact_sums_are_refused_with_the_setting_to_change() -> None:
    huge = replace(transactions([(0, 0, 1, False)]), values={"x": np.array([1e18])})
    with pytest.raises(DataError, match=r"column 'x' holds values up to 1e\+18, .* lower windows.decimals"):
        compute(huge, np.ones(1, bool), [Measure("s", "sum", "x", "all", DAY, 0, True)], 4)


WINDOWS: dict[str, Any] = {
    "card_n_{days}d": {"compute": "count", "entity": "card", "days": [1, 3]},
    "card_mean_{days}d": {"compute": "mean", "of": "amount", "entity": "card", "days": [1, 3]},
    "card_deviations": {"compute": "deviations", "of": "amount", "entity": "card", "days": [3]},
    "row": {"compute": "distinct", "of": "category", "entity": "card", "days": [3]},
    "shop_risk_{days}d": {"compute": "share", "among": "frauds", "entity": "category", "days": [1, 2]},
    "shop_since_fraud": {"compute": "since_last", "among": "frauds", "entity": "category", "days": [3]},
    # Of window columns: of another entity's, and of one's own.
    "shop_deviation": {"compute": "min", "of": "card_deviations", "among": "frauds", "entity": "category", "days": [2]},
    "card_largest_mean": {"compute": "max", "of": "card_mean_1d", "entity": "card", "days": [2], "current": False},
    "shop_mean_of_largest": {"compute": "mean", "of": "card_largest_mean", "entity": "category", "days": [1]},
    "weekend": {"compute": "weekend"},
    "night": {"compute": "night"},
    "hour_sin": {"compute": "hour_sin"},
}


def windowed_settings(root: Path, **windows: Any) -> Settings:
    declared = {"label_delay_days": 2, "columns": WINDOWS, **windows}
    return card_settings(root, windows=declared, folds={"delay_days": 2})


def definition_of(settings: Settings) -> Definition:
    definition = Definition.of(settings)
    assert definition is not None
    return definition


def computed(root: Path, storage: Storage, **windows: Any) -> tuple[Definition, Source, Windowed]:
    settings = windowed_settings(root, **windows)
    definition, source = definition_of(settings), open_source(settings.data)
    return definition, source, add_windows(source, definition, storage, quiet)


def read(made: Windowed) -> pa.Table:
    """All partitions with their window columns, in order."""
    files = sorted(Path(made.root).rglob("*.parquet"))
    return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(str(tmp_path / "root"))


def in_memory(table: pa.Table, definition: Definition, entity: str, round: int = 0) -> dict[str, np.ndarray]:
    """The columns of one entity in one round, of rows whose entity is there; earlier rounds' stand in the table."""
    group = next(group for group in definition.groups if (group.round, group.entity) == (round, entity))
    codes = table[entity].combine_chunks().dictionary_encode().indices
    categories = table["category"].combine_chunks().dictionary_encode().indices.fill_null(-1)
    rows = Transactions(
        codes.to_numpy(),
        table["timestamp"].cast(pa.int64()).to_numpy(),
        {name: table[name].to_numpy() for name in ("amount", *group.window_columns)},
        {"category": categories.to_numpy()},
        table["is_fraud"].to_numpy() == 1,
    )
    return compute(rows, np.ones(len(table), bool), group.measures, definition.windows.decimals)


def test_partitions_come_back_as_they_were_with_the_columns_beside_their_own(tmp_path, storage, ray_session):
    tables = write_days(tmp_path / "data", 5)
    write_partition(tmp_path / "data", "date=2024-01-03/part-1.parquet", tables[2].slice(0, 0))
    definition, source, made = computed(tmp_path / "data", storage, buckets=3)
    assert not made.cached
    names = [partition.shown for partition in source.partitions]
    assert sorted(str(p.relative_to(made.root)) for p in Path(made.root).rglob("*.parquet")) == names
    whole, got = pa.concat_tables(tables), read(made)
    assert got.select(whole.column_names).equals(whole)
    assert got.column_names == [*whole.column_names, *definition.names]
    for name, expected in in_memory(whole, definition, "card").items():
        np.testing.assert_array_equal(got[name].to_numpy(), expected, err_msg=name)
    # A row without the entity has none of its columns.
    here = np.flatnonzero(whole["category"].is_valid())
    for name, expected in in_memory(whole.take(here), definition, "category").items():
        np.testing.assert_array_equal(got[name].to_numpy()[here], expected, err_msg=name)
        assert got[name].is_null().to_numpy()[~whole["category"].is_valid().to_numpy()].all()
    stamps = whole["timestamp"].to_pylist()
    assert got["weekend"].to_pylist() == [int(t.weekday() >= 5) for t in stamps]
    assert got["night"].to_pylist() == [int(t.hour <= 6) for t in stamps]
    angle = [(t.hour + t.minute / 60 + t.second / 3600) / 12 * math.pi for t in stamps]
    np.testing.assert_allclose(got["hour_sin"].to_numpy(), np.sin(angle), atol=1e-6)
    assert not [key for key in storage.keys("windows") if "scratch" in key]


def test_a_window_column_of_another_is_of_the_values_that_transactions_had_at_their_own_time(
    tmp_path, storage, ray_session
):
    write_days(tmp_path / "data", 6)
    definition, _, made = computed(tmp_path / "data", storage, buckets=2)
    got = read(made)
    assert [(group.round, group.entity) for group in definition.groups if group.round] == [
        *((1, "category"), (1, "card"), (2, "category"))
    ]
    here = np.flatnonzero(got["category"].is_valid())
    for entity, round, rows in (("category", 1, here), ("card", 1, np.arange(len(got))), ("category", 2, here)):
        for name, expected in in_memory(got.take(rows), definition, entity, round).items():
            np.testing.assert_array_equal(got[name].to_numpy()[rows], expected, err_msg=name)
            assert np.isfinite(expected).sum() > 20, name


def test_the_number_of_buckets_and_the_order_of_partitions_change_nothing(tmp_path, storage, ray_session):
    tables = write_days(tmp_path / "data", 3)
    _, _, one = computed(tmp_path / "data", storage, buckets=1)
    for number, table in enumerate(reversed(tables)):
        write_partition(tmp_path / "flat", f"part-{number}.parquet", table)
    _, _, other = computed(tmp_path / "flat", storage, buckets=7)
    assert read(one).sort_by("transaction_id").equals(read(other).sort_by("transaction_id"))


def test_the_same_again_is_found_and_other_windows_are_not(tmp_path, storage, ray_session):
    write_days(tmp_path / "data", 2)
    _, _, first = computed(tmp_path / "data", storage)
    _, _, again = computed(tmp_path / "data", storage, buckets=2)
    assert again == replace(first, cached=True)
    _, _, other = computed(tmp_path / "data", storage, decimals=3)
    assert other.state.key != first.state.key


def by_day(root: Path, storage: Storage, last: int) -> tuple[Definition, list[Source], Windowed]:
    """Windows of day 0, and each later day as a source of its own: `last` of them, not yet computed."""
    settings = windowed_settings(root)
    definition = definition_of(settings)
    daily = [
        open_source(settings.data.model_copy(update={"path": str(root / f"date={day}")})) for day in days(last + 1)
    ]
    return definition, daily[1:], add_windows(daily[0], definition, storage, quiet)


def test_day_by_day_from_a_state_is_to_the_bit_what_one_computation_gives(tmp_path, storage, ray_session):
    write_days(tmp_path / "data", 7)
    _, _, whole = computed(tmp_path / "data", storage)
    definition, daily, made = by_day(tmp_path / "data", storage, 6)
    got = [read(made)]
    for source in daily:
        made = add_windows(source, definition, storage, quiet, load_state(storage, made.state.key))
        got.append(read(made))
    assert pa.concat_tables(got).equals(read(whole))
    held = sum(ds.dataset(Path(storage.root) / made.state.folder / "state", format="ipc").count_rows() for _ in (1,))
    assert held < len(definition.groups) * 60 * 6, "a state holds no more than the longest window and delay"
    assert len(made.state.counted) == 7
    [partition] = open_source(definition.data.model_copy(update={"path": made.root})).partitions
    assert partition.date == days(7)[-1], "a folder of a hive table keeps its keys beside its window columns"


def test_windows_of_the_time_alone_are_computed_without_any_entity(tmp_path, storage, ray_session):
    alone = {"columns": {"night": {"compute": "night"}, "weekend": {"compute": "weekend"}}}
    tables = write_days(tmp_path / "data", 3)
    definition, _, made = computed(tmp_path / "data", storage, **alone)
    got, stamps = read(made), pa.concat_tables(tables)["timestamp"].to_pylist()
    assert got["weekend"].to_pylist() == [int(t.weekday() >= 5) for t in stamps]
    write_partition(tmp_path / "next", "date=2024-01-04/part-0.parquet", card_table(days(4)[3]))
    later = open_source(definition.data.model_copy(update={"path": str(tmp_path / "next")}))
    after = add_windows(later, definition, storage, quiet, made.state)
    assert read(after)["night"].to_pylist() == [
        int(t.hour <= 6) for t in card_table(days(4)[3])["timestamp"].to_pylist()
    ]


def test_labels_that_come_later_are_fed_by_id(tmp_path, storage, ray_session):
    tables = write_days(tmp_path / "data", 5)
    definition, _, whole = computed(tmp_path / "data", storage)
    for day, table in zip(days(5), tables, strict=True):
        write_partition(tmp_path / "bare", f"date={day}/part-0.parquet", table.drop_columns("is_fraud"))
        write_partition(tmp_path / "labels", f"{day}.parquet", table.select(["is_fraud", "transaction_id"]))
    write_partition(tmp_path / "labels", "few.parquet", tables[2].select(["is_fraud", "transaction_id"]).slice(0, 9))

    def opened(name: str) -> Source:
        return open_source(definition.data.model_copy(update={"path": str(tmp_path / name)}))

    def labels(name: str) -> pa.Table:
        return read_labels(opened(f"labels/{name}.parquet"), definition.data)

    def newest(made: Windowed) -> pa.Table:
        return read(made).select(definition.names).slice(240 if made is whole else 0)

    made = add_windows(opened(f"data/date={FIRST_DAY}"), definition, storage, quiet)
    for day in days(4)[1:]:
        # Labels of day 1 come with day 3, when the first of them can be seen; those of day 2 with day 4.
        known = labels(f"{days(2)[1]}") if day == days(4)[3] else None
        made = add_windows(opened(f"bare/date={day}"), definition, storage, quiet, made.state, known)
    last = opened(f"bare/date={days(5)[4]}")
    told = add_windows(last, definition, storage, quiet, made.state, labels(f"{days(3)[2]}"))
    assert newest(told).equals(newest(whole))
    # A label that has not come counts as none.
    untold = add_windows(last, definition, storage, quiet, made.state, labels("few"))
    assert pc.sum(newest(untold)["shop_risk_1d"]).as_py() < pc.sum(newest(whole)["shop_risk_1d"]).as_py()


def test_labels_that_are_not_known_yet_are_in_nobodys_window(tmp_path, storage, ray_session):
    tables = write_days(tmp_path / "data", 5)
    _, _, whole = computed(tmp_path / "data", storage)
    for day, table in zip(days(5)[3:], tables[3:], strict=True):
        write_partition(tmp_path / "data", f"date={day}/part-0.parquet", unlabelled(table, 60))
    definition, _, late = computed(tmp_path / "data", storage)
    assert read(late).select(definition.names).equals(read(whole).select(definition.names))


def test_label_times_that_come_by_id_day_by_day_give_what_one_computation_gives(tmp_path, storage, ray_session):
    tables = [timed(card_table(day), days(8)[-1], seed, longest=4) for seed, day in enumerate(days(7))]
    for day, table in zip(days(7), tables, strict=True):
        write_partition(tmp_path / "data", f"date={day}/part-0.parquet", table)
        write_partition(tmp_path / "bare", f"date={day}/part-0.parquet", table.drop_columns(["is_fraud", "known"]))
    # Labels that took more than three days are in no window, so that a state need not wait for them.
    declared = {"label_delay_days": 3, "columns": WINDOWS}
    definition = definition_of(card_settings(tmp_path / "data", TIMED_COLUMNS, windows=declared))
    whole = read(add_windows(open_source(definition.data), definition, storage, quiet))

    def opened(name: str) -> Source:
        return open_source(definition.data.model_copy(update={"path": str(tmp_path / name)}))

    def as_of(number: int) -> list[pa.Table]:
        """What is known when so many days are over."""
        return [timed(card_table(day), days(number + 1)[-1], seed, 4) for seed, day in enumerate(days(number))]

    write_partition(tmp_path / "first", f"date={FIRST_DAY}/part-0.parquet", as_of(1)[0])
    made = add_windows(opened("first"), definition, storage, quiet)
    got = [read(made).select(definition.names)]
    for number in range(2, 8):
        told = pa.concat_tables(as_of(number)).select(["transaction_id", "is_fraud", "known"]).drop_null()
        write_partition(tmp_path / f"labels-{number}", "all.parquet", told)
        labels = read_labels(opened(f"labels-{number}"), definition.data)
        day = opened(f"bare/date={days(number)[-1]}")
        made = add_windows(day, definition, storage, quiet, made.state, labels)
        got.append(read(made).select(definition.names))
    assert pa.concat_tables(got).equals(whole.select(definition.names))
    assert pc.sum(whole["shop_risk_2d"]).as_py() > 50


def test_killed_on_the_way_and_repeated_nothing_is_counted_twice(tmp_path, storage, ray_session, monkeypatch):
    write_days(tmp_path / "data", 3)
    definition, (second, third), made = by_day(tmp_path / "data", storage, 2)
    keep = states.Storage.keep

    def killed(self: Storage, key: str, *given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(states.Storage, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        add_windows(second, definition, storage, quiet, made.state)
    monkeypatch.setattr(states.Storage, "keep", keep)
    after = add_windows(second, definition, storage, quiet, made.state)
    assert not after.cached
    again = add_windows(second, definition, storage, quiet, made.state)
    assert again == replace(after, cached=True)
    with pytest.raises(DataError, match=r"part-0.parquet holds the transactions of .*, which are counted already"):
        add_windows(second, definition, storage, quiet, after.state)
    _, _, whole = computed(tmp_path / "data", storage)
    last = add_windows(third, definition, storage, quiet, after.state)
    assert pa.concat_tables([read(made), read(after), read(last)]).equals(read(whole))


def test_a_partition_out_of_order_or_for_other_windows_is_refused(tmp_path, storage, ray_session):
    write_days(tmp_path / "data", 3)
    definition, (second, third), made = by_day(tmp_path / "data", storage, 2)
    later = add_windows(third, definition, storage, quiet, made.state)
    with pytest.raises(DataError, match=r"begins at 2024-01-02 .*, before 2024-01-03 .*; windows go on in the order"):
        add_windows(second, definition, storage, quiet, later.state)
    other = definition_of(windowed_settings(tmp_path / "data", decimals=2))
    with pytest.raises(DataError, match=r"is of other windows than the model's"):
        add_windows(second, other, storage, quiet, made.state)
    with pytest.raises(DataError, match=r"no window state at .*nothing; compute the windows of the history first"):
        load_state(storage, "nothing")


def test_columns_that_windows_need_are_checked_before_anything_is_computed(tmp_path, storage, ray_session):
    table = write_days(tmp_path / "data", 1)[0]
    broken = table.set_column(3, "amount", pa.array([-1.0, *table["amount"].to_pylist()[1:]])).drop_columns("card")
    write_partition(tmp_path / "data", "date=2024-01-02/part-0.parquet", broken)
    with pytest.raises(ContractViolation) as fault:
        computed(tmp_path / "data", storage)
    assert "column 'card' is missing" in str(fault.value)
    assert "column 'amount' has 1 value below 0 (first at row 0: -1.0)" in str(fault.value)
    texts = table.set_column(2, "card", table["card"].cast(pa.string()))
    write_partition(tmp_path / "data", "date=2024-01-02/part-0.parquet", texts)
    with pytest.raises(DataError, match=r"01-02/part-0.parquet: column 'card' is text and holds integers in the part"):
        computed(tmp_path / "data", storage)
    taken = card_table(days(2)[1]).append_column("night", table["card"])
    write_partition(tmp_path / "data", "date=2024-01-02/part-0.parquet", taken)
    with pytest.raises(DataError, match=r"column 'night' is there already; give the one below windows.columns another"):
        computed(tmp_path / "data", storage)
    assert not [key for key in storage.keys("windows") if "manifest" in key]


def test_a_definition_survives_json_and_knows_when_another_gives_other_values(tmp_path):
    definition = definition_of(windowed_settings(tmp_path))
    stored = json.loads(json.dumps(definition.to_json()))
    assert Definition.from_json(stored) == definition
    assert Definition.from_json(stored).fingerprint() == definition.fingerprint()
    assert definition_of(windowed_settings(tmp_path, buckets=9)).fingerprint() == definition.fingerprint()
    assert definition_of(windowed_settings(tmp_path, label_delay_days=3)).fingerprint() != definition.fingerprint()
    with pytest.raises(DamagedError, match="windows have format 99, and this version of fraud_ray reads 1"):
        Definition.from_json({**stored, "format": 99})


def test_window_columns_are_features_unless_the_data_declares_them_otherwise(tmp_path):
    declared = {**COLUMNS, "night": {"kind": "boolean", "feature": False}}
    windows = {"label_delay_days": 7, "columns": WINDOWS}
    settings = card_settings(tmp_path, declared, windows=windows)
    assert settings.data.columns["card_mean_3d"].kind == "numeric"
    assert settings.data.columns["weekend"].kind == "boolean"
    assert "shop_risk_2d" in settings.data.features
    assert "night" not in settings.data.features
    assert set(settings.raw_data.columns) == set(COLUMNS)
    assert Settings.model_validate(settings.resolved()) == settings


REFUSED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "'count' needs 'entity' and 'days'": lambda w: w.update(a={"compute": "count", "entity": "card"}),
    "'night' is of the timestamp alone": lambda w: w.update(a={"compute": "night", "entity": "card"}),
    "'mean' needs 'of'": lambda w: w.update(a={"compute": "mean", "entity": "card", "days": [1]}),
    "'count' takes no 'of'": lambda w: w.update(a={"compute": "count", "of": "x", "entity": "card", "days": [1]}),
    "the name holds '{days}' if": lambda w: w.update(a={"compute": "count", "entity": "card", "days": [1, 2]}),
    "two of them are called 'card_n_1d'": lambda w: w.update(
        card_n_1d={"compute": "count", "entity": "card", "days": [1]}
    ),
    "such labels are not known yet": lambda w: w.update(
        a={"compute": "count", "among": "frauds", "entity": "card", "days": [1], "delay_days": 1}
    ),
    "names 'shop', which is no column of the data": lambda w: w.update(
        a={"compute": "count", "entity": "shop", "days": [1]}
    ),
    "'category' is of kind 'categorical', which is no number": lambda w: w.update(
        a={"compute": "max", "of": "category", "entity": "card", "days": [1]}
    ),
    "columns.a is computed of itself: a of b of a": lambda w: w.update(
        {name: {"compute": "max", "of": of, "entity": "card", "days": [1]} for name, of in (("a", "b"), ("b", "a"))}
    ),
    "names 'night', which is no column of the data": lambda w: w.update(
        a={"compute": "sum", "of": "night", "entity": "card", "days": [1]}
    ),
    "'share' of all transactions says nothing": lambda w: w.update(
        a={"compute": "share", "entity": "card", "days": [1]}
    ),
}


@pytest.mark.parametrize(("message", "fault"), REFUSED.items())
def test_a_declaration_that_cannot_be_meant_is_refused(message, fault, tmp_path):
    columns = dict(WINDOWS)
    fault(columns)
    with pytest.raises(ValueError) as refusal:
        windowed_settings(tmp_path, columns=columns)
    assert message in str(refusal.value)


def test_with_label_times_windows_say_how_long_a_label_may_take(tmp_path):
    early = {"early": {"compute": "count", "among": "frauds", "entity": "card", "days": [1], "delay_days": 0.5}}
    with pytest.raises(ValueError, match=r"windows.label_delay_days: with a column of kind 'label_time', give"):
        card_settings(tmp_path, TIMED_COLUMNS, windows={"columns": {**WINDOWS, **early}})
    declared = {"columns": {**WINDOWS, **early}, "label_delay_days": 90}
    definition = definition_of(card_settings(tmp_path, TIMED_COLUMNS, windows=declared, folds={"delay_days": 0}))
    measures = {measure.name: measure for group in definition.groups for measure in group.measures}
    assert (measures["early"].delay, measures["early"].wait) == (DAY // 2, 90 * DAY)
    assert (measures["shop_risk_1d"].delay, measures["card_n_1d"].wait) == (0, 0)
    assert {group.horizon for group in definition.groups if group.entity == "category"} == {93 * DAY, 92 * DAY, DAY}


def test_labels_known_to_windows_before_they_are_to_a_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"label_delay_days 1 is below folds.delay_days 2"):
        windowed_settings(tmp_path, label_delay_days=1)
    with pytest.raises(ValueError, match="'Europe/Brussel' is no time zone"):
        windowed_settings(tmp_path, timezone="Europe/Brussel")
