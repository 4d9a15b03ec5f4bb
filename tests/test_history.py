"""Window columns online: those of batch scoring to the bit, from either store, however transactions and labels come."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import redis.asyncio as redis

from fraud_ray.data.source import open_source
from fraud_ray.errors import SettingsError
from fraud_ray.serving.history import History
from fraud_ray.serving.priming import NOTHING, Histories, prime
from fraud_ray.serving.requests import Batch, RequestFault
from fraud_ray.serving.stores import (
    Answer,
    Layout,
    MemoryStore,
    NotPrimedError,
    Record,
    Store,
    StoreAwayError,
    ValkeyStore,
)
from fraud_ray.settings import ServingSettings, Settings
from fraud_ray.storage import Storage
from fraud_ray.windows.definition import DAY, Definition
from fraud_ray.windows.past import Row
from fraud_ray.windows.state import Windowed, add_windows
from tests.cards import COLUMNS, TIMED_COLUMNS, card_settings, days, timed, write_days, write_partition
from tests.stores import Valkey, valkey
from tests.test_windows import WINDOWS, quiet, read

LABEL_DELAY = 2
OpenStore = Callable[[Layout], Store]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(params=["memory", "valkey"])
def open_store(request: pytest.FixtureRequest) -> OpenStore:
    if request.param == "memory":
        return MemoryStore
    url = request.getfixturevalue("server").url
    return lambda layout: ValkeyStore(layout, url)


def layout_of(definition: Definition, space: str, late_days: float = 1) -> Layout:
    return Layout(definition, round(late_days * DAY), space)


def batch_of(ids: list[str], columns: dict[str, list[Any]]) -> Batch:
    return Batch(columns, [*ids], [*ids], columns["timestamp"])


@dataclass(frozen=True)
class World:
    """Raw transactions in the order of time, and their window columns as batch scoring computes them."""

    definition: Definition
    table: pa.Table
    windowed: Windowed

    @classmethod
    def of(cls, root: Path, settings: Settings, storage: Storage) -> World:
        definition = Definition.of(settings)
        assert definition is not None
        made = add_windows(open_source(settings.raw_data), definition, storage, quiet)
        return cls(definition, read(made).sort_by("timestamp"), made)

    def raw(self, rows: slice) -> Batch:
        """Transactions as a request brings them."""
        table = self.table.slice(rows.start, rows.stop - rows.start)
        columns: dict[str, list[Any]] = {
            "timestamp": table["timestamp"].cast(pa.int64()).to_pylist(),
            "card": [str(card) for card in table["card"].to_pylist()],
            "category": [category or "" for category in table["category"].to_pylist()],
            "amount": table["amount"].to_pylist(),
        }
        return batch_of([str(id) for id in table["transaction_id"].to_pylist()], columns)

    def labels(self) -> list[tuple[int, str, int]]:
        """(when it is known, id, label) of each, in the order of time."""
        times = self.table["timestamp"].cast(pa.int64()).to_pylist()
        known = [time + LABEL_DELAY * DAY for time in times]
        if self.definition.label_time is not None:
            column = self.table[self.definition.label_time].cast(pa.int64()).to_pylist()
            # No transaction knows its own label.
            known = [at and max(at, time + 1) for at, time in zip(column, times, strict=True)]
        ids, labels = (self.table[name].to_pylist() for name in ("transaction_id", "is_fraud"))
        told = zip(known, ids, labels, strict=True)
        return sorted((at, str(id), label) for at, id, label in told if at is not None and label is not None)

    def expected(self, name: str) -> np.ndarray:
        return pc.cast(self.table[name], pa.float32()).to_numpy()


def world_of(root: Path, storage: Storage, count: int = 6, with_label_times: bool = False) -> World:
    tables = write_days(root, count, cards=6)
    if with_label_times:
        for day, table in zip(days(count), tables, strict=True):
            write_partition(root, f"date={day}/part-0.parquet", timed(table, days(count)[-1]))
    declared = {"label_delay_days": LABEL_DELAY, "columns": WINDOWS}
    columns = TIMED_COLUMNS if with_label_times else COLUMNS
    return World.of(root, card_settings(root, columns, windows=declared, folds={"delay_days": 2}), storage)


def score(at: int, columns: Mapping[str, float]) -> tuple[float, bool, str]:
    return 0.5, False, "1"


async def replay(world: World, history: History, first: int = 0, batch: int = 7) -> list[Answer]:
    """The answers of the transactions from `first` on, labels told as they become known."""
    answers: list[Answer] = []
    labels = world.labels()
    heapq.heapify(labels)
    for begin in range(first, len(world.table), batch):
        raw = world.raw(slice(begin, min(begin + batch, len(world.table))))
        while labels and labels[0][0] <= raw.times[-1]:
            known, id, label = heapq.heappop(labels)
            await history.label([(id, label, known)])
        answers += await history.answer(raw, score)
    return answers


def run(work: Awaitable[Any]) -> Any:
    async def awaited() -> Any:
        return await work

    return asyncio.run(awaited())


def assert_equal(world: World, history: History, answers: list[Answer], first: int = 0) -> None:
    found = [history.named(answer) for answer in answers]
    for name in world.definition.names:
        got = np.array([columns[name] for columns in found], np.float32)
        np.testing.assert_array_equal(got, world.expected(name)[first:], err_msg=name)


@pytest.mark.parametrize("with_label_times", [False, True], ids=["delays", "label times"])
def test_a_replay_gives_the_columns_of_batch_scoring_to_the_bit(tmp_path, open_store, with_label_times, ray_session):
    storage = Storage.at(str(tmp_path / "root"))
    world = world_of(tmp_path / "data", storage, with_label_times=with_label_times)
    layout = layout_of(world.definition, f"replay{with_label_times}")

    async def work() -> None:
        store = open_store(layout)
        await store.prime(NOTHING, {}, ())
        history = History(layout, store)
        # Some labels are known at once, so that the next transaction sees them.
        assert_equal(world, history, await replay(world, history, batch=1 if with_label_times else 7))
        await store.close()

    run(work())


def test_serving_goes_on_from_a_window_state_and_takes_a_later_one(tmp_path, open_store, ray_session):
    storage = Storage.at(str(tmp_path / "root"))
    world = world_of(tmp_path / "data", storage)
    before = world_of(tmp_path / "before", storage, count=3)
    first = len(before.table)
    layout = layout_of(world.definition, "state")

    async def work() -> None:
        store = open_store(layout)
        history = History(layout, store)
        with pytest.raises(NotPrimedError):
            await history.answer(world.raw(slice(0, 1)), score)
        state = before.windowed.state
        assert await prime(store, storage, world.definition, state) > 0
        assert await prime(store, storage, world.definition, state) == 0
        assert_equal(world, history, await replay(world, history, first), first)
        # The state after all of it holds nothing that was not served: nothing is counted twice.
        assert await prime(store, storage, world.definition, world.windowed.state) == 0
        again = [history.named(answer) for answer in await replay(world, history, len(world.table) - 30)]
        assert [columns["card_n_3d"] for columns in again] == world.expected("card_n_3d")[-30:].tolist()
        await store.close()

    run(work())


def test_priming_by_several_at_once_or_cut_short_counts_nothing_twice(tmp_path, server, ray_session):
    """As the replicas of a cluster do that start together, and the one whose node dies meanwhile."""
    storage = Storage.at(str(tmp_path / "root"))
    world = world_of(tmp_path / "data", storage)
    state = world_of(tmp_path / "before", storage, count=3).windowed.state
    first = sum(len(table) for table in write_days(tmp_path / "again", 3, cards=6))

    async def work() -> None:
        for space, begin in (("at once", 2), ("cut short", 1)):
            layout = layout_of(world.definition, space)
            stores = [ValkeyStore(layout, server.url) for _ in range(2)]
            await asyncio.gather(*(prime(store, storage, world.definition, state) for store in stores[:begin]))
            if space == "cut short":  # before what it had loaded was noted down
                async with redis.Redis.from_url(server.url) as client:
                    noted = [key async for key in client.scan_iter(f"{space}:*:id:*")]
                    await client.delete(*noted, *[key async for key in client.scan_iter(f"{space}:*:primed")])
                await prime(stores[0], storage, world.definition, state)
            history = History(layout, stores[1])
            assert_equal(world, history, await replay(world, history, first), first)
            for store in stores:
                await store.close()

    run(work())


def test_the_same_id_again_gets_the_same_answer_and_is_counted_once(tmp_path, open_store, ray_session):
    world = world_of(tmp_path / "data", Storage.at(str(tmp_path / "root")), count=2)
    layout = layout_of(world.definition, "again")

    async def work() -> None:
        store = open_store(layout)
        await store.prime(NOTHING, {}, ())
        history = History(layout, store)
        raw = world.raw(slice(0, 40))
        answers = await history.answer(raw, score)
        # Other scores now, and all at once, also from another replica of the shared store.
        replicas = (
            [history, history] if isinstance(store, MemoryStore) else [history, History(layout, open_store(layout))]
        )
        other = [replica.answer(raw, lambda at, columns: (0.9, True, "2")) for replica in replicas]
        assert all(answered == answers for answered in await asyncio.gather(*other))
        rest = await history.answer(world.raw(slice(40, 120)), score)
        found = [history.named(answer)["card_n_3d"] for answer in [*answers, *rest]]
        assert found == world.expected("card_n_3d").tolist()
        for replica in replicas:
            await replica.store.close()

    run(work())


def test_a_late_transaction_gets_the_windows_of_its_own_time(tmp_path, open_store, ray_session):
    world = world_of(tmp_path / "data", Storage.at(str(tmp_path / "root")), count=3)
    layout = layout_of(world.definition, "late")
    late = 50

    async def work() -> None:
        store = open_store(layout)
        await store.prime(NOTHING, {}, ())
        history = History(layout, store)
        before, after = world.raw(slice(0, late)), world.raw(slice(late + 1, len(world.table)))
        await history.answer(before, score)
        answered = await history.answer(after, score)
        (answer,) = await history.answer(world.raw(slice(late, late + 1)), score)
        assert history.named(answer)["card_mean_1d"] == world.expected("card_mean_1d")[late]
        assert await history.answer(after, score) == answered  # as they were known then
        await store.close()

    run(work())


def test_replicas_share_the_past_of_a_store(tmp_path, server, ray_session):
    world = world_of(tmp_path / "data", Storage.at(str(tmp_path / "root")))
    layout = layout_of(world.definition, "replicas")

    async def work() -> None:
        replicas = [History(layout, ValkeyStore(layout, server.url)) for _ in range(2)]
        await replicas[0].store.prime(NOTHING, {}, ())
        answers, labels = [], world.labels()
        for at in range(len(world.table)):
            raw, replica = world.raw(slice(at, at + 1)), replicas[at % 2]
            while labels and labels[0][0] <= raw.times[0]:
                known, id, label = labels.pop(0)
                await replica.label([(id, label, known)])
            answers += await replica.answer(raw, score)
        assert_equal(world, replicas[0], answers)
        for replica in replicas:
            await replica.store.close()

    run(work())


@pytest.mark.parametrize("degraded", [False, True])
def test_nothing_is_lost_while_the_store_is_away(tmp_path, degraded, ray_session):
    world = world_of(tmp_path / "data", Storage.at(str(tmp_path / "root")), count=2)
    layout = layout_of(world.definition, "away")

    async def work(server: Valkey) -> None:
        history = History(layout, ValkeyStore(layout, server.url), degraded=degraded)
        await history.store.prime(NOTHING, {}, ())
        answers = await history.answer(world.raw(slice(0, 40)), score)
        server.stop()
        while_away = world.raw(slice(40, 50))
        if degraded:
            marked = await history.answer(while_away, score)
            assert all(answer.degraded for answer in marked)
            assert {history.named(answer)["card_n_3d"] for answer in marked} == {1.0}
            answers += marked
        else:
            with pytest.raises(StoreAwayError, match="the store at redis://"):
                await history.answer(while_away, score)
        server.start()
        if not degraded:
            answers += await history.answer(while_away, score)
        answers += await history.answer(world.raw(slice(50, 120)), score)
        counts = np.array([history.named(answer)["card_n_3d"] for answer in answers])
        is_plain = np.array([not answer.degraded for answer in answers])
        assert counts[is_plain].tolist() == world.expected("card_n_3d")[is_plain].tolist()
        await history.store.close()

    with valkey(tmp_path) as own:
        run(work(own))


def test_those_that_the_store_missed_join_once_each_whoever_asks_meanwhile(tmp_path, ray_session):
    world = world_of(tmp_path / "data", Storage.at(str(tmp_path / "root")), count=2)
    layout = layout_of(world.definition, "missed")

    async def work(server: Valkey) -> None:
        history = History(layout, ValkeyStore(layout, server.url), degraded=True)
        await history.store.prime(NOTHING, {}, ())
        server.stop()
        await history.answer(world.raw(slice(0, 20)), score)
        server.start()
        await asyncio.gather(*(history.answer(world.raw(slice(at, at + 1)), score) for at in range(20, 40)))
        rest = await history.answer(world.raw(slice(40, 120)), score)
        found = [history.named(answer)["card_n_3d"] for answer in rest]
        assert found == world.expected("card_n_3d")[40:].tolist()
        await history.store.close()

    with valkey(tmp_path) as own:
        run(work(own))


def test_what_a_check_began_in_a_shared_store_goes_with_it_and_nothing_else(tmp_path, server, ray_session):
    storage = Storage.at(str(tmp_path / "root"))
    world = world_of(tmp_path / "data", storage, count=2)

    async def work() -> None:
        other = ValkeyStore(layout_of(world.definition, "another"), server.url)
        await other.prime(NOTHING, {}, ())
        histories = Histories(ServingSettings(store=server.url), storage, lambda *_: None, fresh="of-a-check")
        assert await histories.primed(world.definition, None)
        history = histories.of(world.definition)
        assert history is not None
        await history.answer(world.raw(slice(0, 40)), score)
        async with redis.Redis.from_url(server.url) as client:
            assert len([key async for key in client.scan_iter("of-a-check:*")]) > 40
            await histories.close()
            assert [key async for key in client.scan_iter("of-a-check:*")] == []
        assert await other.primed() == NOTHING
        await other.close()

    run(work())


def test_what_the_store_did_not_take_joins_later(tmp_path, ray_session):
    world = world_of(tmp_path / "data", Storage.at(str(tmp_path / "root")), count=2)
    layout = layout_of(world.definition, "not taken")

    class Cut(MemoryStore):
        """Goes away between reading and joining."""

        cut = True

        async def join(self, id: str | None, record: Record, rows: Sequence[Row]) -> Record | None:
            if self.cut:
                raise StoreAwayError("away")
            return await super().join(id, record, rows)

    async def work() -> None:
        store = Cut(layout)
        await store.prime(NOTHING, {}, ())
        with pytest.raises(StoreAwayError):
            await History(layout, store).answer(world.raw(slice(0, 1)), score)
        history = History(layout, store, degraded=True)
        answers = await history.answer(world.raw(slice(0, 1)), score)
        store.cut = False
        answers += await history.answer(world.raw(slice(1, 60)), score)
        found = [history.named(answer)["card_n_3d"] for answer in answers]
        assert found == world.expected("card_n_3d")[:60].tolist()

    run(work())


def test_a_store_that_lost_its_past_is_noticed(tmp_path, server, ray_session):
    world = world_of(tmp_path / "data", Storage.at(str(tmp_path / "root")), count=2)
    layout = layout_of(world.definition, "lost")

    async def work() -> None:
        store = ValkeyStore(layout, server.url)
        await store.prime(NOTHING, {}, ())
        history = History(layout, store)
        await history.answer(world.raw(slice(0, 60)), score)
        async with redis.Redis.from_url(server.url) as client:
            await client.delete(*[key async for key in client.scan_iter("lost:*")])
        with pytest.raises(NotPrimedError, match="fraud-ray serve --prime"):
            await history.answer(world.raw(slice(60, 61)), score)
        for asked in (60, 100):  # the second time before anybody noticed, and with the same state
            async with redis.Redis.from_url(server.url) as client:
                await client.delete("lost:none", *[key async for key in client.scan_iter("lost:*")])
            await store.prime("another", {}, ())
            assert await store.primed() == "another"
            _, pasts = await store.read(
                None, [(0, card) for card in sorted({*world.raw(slice(0, 120)).columns["card"]})]
            )
            assert not any(map(len, pasts))
            (answer,) = await history.answer(world.raw(slice(asked, asked + 1)), score)
            assert history.named(answer)["card_n_3d"] == 1  # of the new past, not of what this replica remembers
            await history.answer(world.raw(slice(61, 80)), score)
        await store.close()

    run(work())


def test_what_no_window_sees_any_more_is_dropped(tmp_path, open_store, server, ray_session):
    world = world_of(tmp_path / "data", Storage.at(str(tmp_path / "root")), count=2)
    layout = layout_of(world.definition, "dropped")

    async def work() -> None:
        store = open_store(layout)
        await store.prime(NOTHING, {}, ())
        history = History(layout, store)
        # One card, a transaction an hour for 100 days.
        count = 2_400
        times = [hour * (DAY // 24) for hour in range(count)]
        columns = {"timestamp": times, "card": ["c"] * count, "category": [""] * count, "amount": [1.0] * count}
        answers = await history.answer(batch_of([str(hour) for hour in range(count)], columns), score)
        assert history.named(answers[-1])["card_n_3d"] == 72
        if isinstance(store, MemoryStore):
            assert await history.label([("0", 1, DAY), (str(count - 1), 1, 101 * DAY)]) == [False, True]
        else:
            async with redis.Redis.from_url(server.url) as client:
                (stream,) = [key async for key in client.scan_iter("dropped:*:0:c")]
                assert await client.xlen(stream) < count / 4
                assert 0 < await client.pttl(stream) <= layout.reach // 1_000
        await store.close()

    run(work())


def test_no_entity_that_is_seen_once_is_kept_for_good(tmp_path, ray_session):
    definition = world_of(tmp_path / "data", Storage.at(str(tmp_path / "root")), count=2).definition
    layout = layout_of(definition, "once")
    reach, last = layout.reach // DAY, 4 * (layout.reach // DAY)

    async def work() -> None:
        store = MemoryStore(layout)
        await store.prime(NOTHING, {}, ())
        # Each day another card at another shop, from 1970 on.
        seen, times = [f"c{day}" for day in range(last)], [day * DAY for day in range(last)]
        columns = {"timestamp": times, "card": seen, "category": seen, "amount": [1.0] * last}
        await History(layout, store).answer(batch_of(seen, columns), score)
        keys = [(number, name) for number in range(len(definition.groups)) for name in seen]
        _, pasts = await store.read(None, keys)
        assert sum(map(len, pasts)) <= (reach + 2) * len(definition.groups)

    run(work())


@pytest.mark.parametrize("address", ["http://:secret@h/0", "redis://:secret@h/0?nope=1", "redis://:secret@h/cards"])
def test_what_is_no_address_of_a_store_is_refused(tmp_path, address):
    definition = Definition.of(card_settings(tmp_path, COLUMNS, windows={"columns": WINDOWS}))
    assert definition is not None
    with pytest.raises(SettingsError, match="is no address of a Valkey or Redis") as refused:
        ValkeyStore(layout_of(definition, "nowhere"), address)
    assert "secret" not in str(refused.value)


def test_values_that_no_sum_holds_are_refused_and_data_without_ids_is_primed_once(tmp_path, ray_session):
    storage = Storage.at(str(tmp_path / "root"))
    world = world_of(tmp_path / "data", storage, count=2)
    layout = layout_of(world.definition, "refused")

    async def work() -> None:
        store = MemoryStore(layout)
        await store.prime(NOTHING, {}, ())
        raw = world.raw(slice(0, 1))
        huge = batch_of([str(id) for id in raw.ids], {**raw.columns, "amount": [1e18]})
        with pytest.raises(RequestFault, match="column 'amount' holds values up to 1e") as refused:
            await History(layout, store).answer(huge, score)
        assert refused.value.field == "transactions[0]"
        record, _ = await store.read(raw.ids[0], [])
        assert record is None
        columns = {name: column for name, column in COLUMNS.items() if name != "transaction_id"}
        declared = {"label_delay_days": LABEL_DELAY, "columns": WINDOWS}
        nameless = Definition.of(card_settings(tmp_path, columns, windows=declared, folds={"delay_days": 2}))
        assert nameless is not None
        assert await prime(store, storage, nameless, world.windowed.state) == 0

    run(work())
