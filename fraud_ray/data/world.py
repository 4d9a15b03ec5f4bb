"""A synthetic world of cards, generated a block of customers at a time.

Customers live around cities, have favourite categories, a spending level and one or two cards; a card is replaced
after some months. They buy in sessions: once, in several shops, or on a journey. Fraudsters are at work between them,
in the patterns of `patterns.py`, and a pattern only shapes the features of its rows. The label is drawn at the very
end, from the probability that the features alone give.

Nothing depends on the date but the rhythm of day and week: any two months have the same distributions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from fraud_ray.data import patterns
from fraud_ray.data.patterns import Booleans, Floats, Ints
from fraud_ray.settings import SimulateSettings

SCHEMA = pa.schema(
    [
        ("transaction_id", pa.int64()),
        ("timestamp", pa.timestamp("us")),
        ("customer_id", pa.int64()),
        ("card_id", pa.int64()),
        ("merchant_id", pa.int64()),
        ("merchant_category", pa.string()),
        ("transaction_amount", pa.float64()),  # currency units
        ("time_since_last_transaction", pa.float64()),  # seconds; null for a card's first transaction
        ("location_deviation", pa.float64()),  # km from the card's usual place
        ("device_fingerprint_match", pa.bool_()),
        ("fraud_probability", pa.float64()),
        ("is_fraud", pa.int8()),
    ]
)

ROWS_PER_BLOCK = 500_000  # at most; a worker takes about 350 MB for it
ROWS_PER_CUSTOMER_AND_DAY = 0.6
CARD_DAYS = (90.0, 270.0)  # how long a card is in use
SECOND_CARD_SHARE = 0.3
INTERCEPTED_SHARE = 0.12  # of new cards

CITIES, EXTENT_KM, NEARBY_CITIES = 150, 1500.0, 6
MERCHANTS_PER_CELL = 8  # a cell is a city and a category
COMPROMISED_MERCHANTS, COMPROMISED_DAYS = 9, 12  # at any time, and for how long

DAY_S = 86_400
WEEK = np.array([0.95, 0.93, 0.97, 1.02, 1.18, 1.15, 0.80])  # Monday to Sunday
HOURS = np.array([4, 2, 1, 1, 2, 6, 18, 38, 52, 58, 66, 78, 86, 76, 68, 70, 82, 96, 92, 74, 54, 36, 20, 10], np.float64)
FRAUD_HOURS = HOURS + 40


@dataclass(frozen=True)
class SessionKind:
    """Transactions with one card that belong together.

    share: of all sessions; rows: fewest and most; median_gap_s, gap_spread: median of the seconds between rows, and
    standard deviation of their logarithm; unknown_device: share of rows whose device is not the card's usual one.
    """

    share: float
    rows: tuple[int, int]
    median_gap_s: float
    gap_spread: float
    unknown_device: float = 0.03


KINDS = {
    "purchase": SessionKind(0.8470, (1, 1), 1, 0.0),
    "shops": SessionKind(0.1120, (2, 4), 2_700, 0.6),
    "journey": SessionKind(0.0355, (1, 3), 10_800, 0.6, 0.01),
    "burst": SessionKind(0.0011, (3, 6), 90, 0.5),
    "remote": SessionKind(0.0020, (1, 3), 2_400, 0.6, 1.0),
    "just_under": SessionKind(0.0009, (1, 3), 7_200, 0.6, 0.3),
    "test": SessionKind(0.0014, (1, 2), 1_800, 0.6, 1.0),
}
PURCHASE, SHOPS, JOURNEY, BURST, REMOTE, JUST_UNDER, TEST = range(len(KINDS))
KIND_SHARES = np.array([k.share for k in KINDS.values()])
FEWEST, MOST = np.array([k.rows for k in KINDS.values()]).T
LOG_GAPS = np.log([k.median_gap_s for k in KINDS.values()])
GAP_SPREADS = np.array([k.gap_spread for k in KINDS.values()])
UNKNOWN_DEVICE = np.array([k.unknown_device for k in KINDS.values()])
UNKNOWN_DEVICE_OF_TRAVEL = 0.3  # travel bought on a journey

TARGETS = {  # where fraudsters shop
    BURST: [patterns.NAMES.index(c) for c in ("grocery", "fuel", "pharmacy", "clothing", "household", "electronics")],
    REMOTE: [
        patterns.NAMES.index(c) for c in ("clothing", "household", "entertainment", "digital_goods", "electronics")
    ],
    JUST_UNDER: np.flatnonzero(patterns.CASH_LIKE).tolist(),
}


@dataclass(frozen=True)
class Places:
    """What all blocks share. Positions in km.

    cities (c, 2) with their shares of the customers (c,) and their nearest others (c, NEARBY_CITIES); merchants (m, 2),
    in the order of `merchant_at`; compromised (slots, periods): the merchant that leaks cards in each slot and period
    of COMPROMISED_DAYS; phases (slots,): days by which a slot's periods begin earlier.
    """

    cities: Floats
    shares: Floats
    nearest: Ints
    merchants: Floats
    compromised: Ints
    phases: Floats


@dataclass(frozen=True)
class Population:
    """The customers of a block (n,): where they live, what they like; and their cards in turn, a slot (k,) a card.

    owner: a slot's customer; is_second: whether it is their second; card_days: how long each of its cards is in use;
    age_days: how long the first one was, on the first day.
    """

    city: Ints
    home: Floats
    favourites: Ints
    spending: Floats
    owner: Ints
    is_second: Booleans
    activity: Floats
    card_days: Floats
    age_days: Floats


@dataclass(frozen=True)
class Sessions:
    """Sessions (s,): their kind, slot and number of rows, whether the buyer is away from home, and in which city."""

    kind: Ints
    slot: Ints
    rows: Ints
    is_away: Booleans
    city: Ints


def rows_of_blocks(rows: int) -> list[int]:
    """The rows of each block: as few blocks as ROWS_PER_BLOCK allows, of equal size but for one row."""
    count = -(-rows // ROWS_PER_BLOCK)
    return [rows // count + (block < rows % count) for block in range(count)]


def generate(settings: SimulateSettings, block: int) -> pa.Table:
    """One block of the world, as SCHEMA, by time. Depends on the settings and the block's number alone."""
    sizes = rows_of_blocks(settings.rows)
    count, before = sizes[block], sum(sizes[:block])
    customers = max(1, round(sizes[0] / (settings.days * ROWS_PER_CUSTOMER_AND_DAY)))
    rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(block,)))
    places = places_of(settings.seed, settings.days)
    people = _population(rng, places, customers)
    sessions = _sessions(rng, places, people, count)

    session, time = _times(rng, settings, sessions)
    kind, slot = sessions.kind[session], sessions.slot[session]
    customer = people.owner[slot]
    card = ((time / (DAY_S * 1e6) + people.age_days[slot]) / people.card_days[slot]).astype(np.int64)
    gap = _gaps(rng, settings, people, sessions, slot, card, time)
    category, merchant = _merchants(rng, places, people, sessions, session, time)
    deviation = _deviations(rng, places, people, sessions, session, category, merchant)
    is_travel = (kind == JOURNEY) & (category == patterns.TRAVEL)
    known_device = rng.random(count) >= np.where(is_travel, UNKNOWN_DEVICE_OF_TRAVEL, UNKNOWN_DEVICE[kind])
    amount = _amounts(rng, kind, category, people.spending[customer], is_first=np.isnan(gap))

    probability = patterns.fraud_probability(amount, category, gap, deviation, known_device)
    customer_id = block * customers + customer
    values = {
        "timestamp": np.datetime64(settings.start, "us") + time.astype("timedelta64[us]"),
        "customer_id": customer_id,
        "card_id": (customer_id * 2 + people.is_second[slot]) * 1_000 + card,
        "merchant_id": merchant,
        "transaction_amount": amount,
        "time_since_last_transaction": gap,
        "location_deviation": deviation,
        "device_fingerprint_match": known_device,
        "fraud_probability": probability,
        "is_fraud": (rng.random(count) < probability).astype(np.int8),
    }
    by_time = np.argsort(time, kind="stable")
    columns = {name: pa.array(column[by_time], from_pandas=True) for name, column in values.items()}
    columns["transaction_id"] = pa.array(np.arange(before, before + count))
    columns["merchant_category"] = pa.array(patterns.NAMES).take(pa.array(category[by_time]))
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


@lru_cache(maxsize=1)
def places_of(seed: int, days: int) -> Places:
    """Cities, merchants and which of them are compromised when; for all blocks the same."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    cities = rng.uniform(0, EXTENT_KM, (CITIES, 2))
    shares = rng.pareto(1.5, CITIES) + 0.3
    apart = np.hypot(*(cities[:, None, :] - cities).T)
    merchants = np.repeat(cities, len(patterns.NAMES) * MERCHANTS_PER_CELL, axis=0)
    merchants += rng.normal(0, 6, merchants.shape)
    periods = (COMPROMISED_MERCHANTS, days // COMPROMISED_DAYS + 2)
    grounds = np.resize(np.flatnonzero(patterns.TESTING_GROUNDS), COMPROMISED_MERCHANTS)  # the same mix at any time
    compromised = merchant_at(rng.integers(CITIES, size=periods), grounds[:, None], rng, periods)
    phases = rng.uniform(0, COMPROMISED_DAYS, COMPROMISED_MERCHANTS)
    return Places(cities, shares, np.argsort(apart)[:, 1 : 1 + NEARBY_CITIES], merchants, compromised, phases)


def merchant_at(city: Ints, category: Ints, rng: np.random.Generator, size: int | tuple[int, int]) -> Ints:
    """A merchant of the city and category, at random."""
    return (city * len(patterns.NAMES) + category) * MERCHANTS_PER_CELL + rng.integers(MERCHANTS_PER_CELL, size=size)


def _population(rng: np.random.Generator, places: Places, customers: int) -> Population:
    city = _draw(rng, places.shares, customers)
    owner = np.repeat(np.arange(customers), 1 + (rng.random(customers) < SECOND_CARD_SHARE))
    card_days = rng.uniform(*CARD_DAYS, len(owner))
    return Population(
        city=city,
        home=places.cities[city] + rng.normal(0, 5, (customers, 2)),
        favourites=_draw(rng, patterns.SHARES, (customers, 3)),
        spending=rng.normal(0, 0.3, customers),
        owner=owner,
        is_second=np.diff(owner, prepend=-1) == 0,
        activity=rng.gamma(2.0, size=len(owner)) + 0.05,
        card_days=card_days,
        age_days=card_days * rng.random(len(owner)),
    )


def _sessions(rng: np.random.Generator, places: Places, people: Population, rows: int) -> Sessions:
    """As many sessions as hold exactly `rows` rows; the last one is cut short."""
    kind = _draw(rng, KIND_SHARES, rows)
    length = rng.integers(FEWEST[kind], MOST[kind], endpoint=True)
    ends = np.cumsum(length)
    count = int(np.searchsorted(ends, rows)) + 1
    kind, length = kind[:count], length[:count]
    length[-1] -= ends[count - 1] - rows
    slot = _draw(rng, people.activity, count)
    home = people.city[people.owner[slot]]
    is_away = (kind == JOURNEY) | (kind == REMOTE) | ((kind == BURST) & (rng.random(count) < 0.4))
    is_nearby = rng.random(count) < np.where(kind == REMOTE, 0.1, 0.5)
    nearby = places.nearest[home, rng.integers(NEARBY_CITIES, size=count)]
    elsewhere = np.where(is_nearby, nearby, rng.integers(CITIES, size=count))
    return Sessions(kind, slot, length, is_away, np.where(is_away, elsewhere, home))


def _times(rng: np.random.Generator, settings: SimulateSettings, sessions: Sessions) -> tuple[Ints, Ints]:
    """Each row's session, and its microseconds since the first midnight, in the order of (slot, time)."""
    count, end = len(sessions.kind), settings.days * DAY_S
    weekdays = (settings.start.weekday() + np.arange(settings.days)) % 7
    hour = np.where(sessions.kind >= BURST, _draw(rng, FRAUD_HOURS, count), _draw(rng, HOURS, count))
    start = _draw(rng, WEEK[weekdays], count) * DAY_S + (hour + rng.random(count)) * 3_600
    session = np.repeat(np.arange(count), sessions.rows)
    kind = sessions.kind[session]
    first = np.cumsum(sessions.rows) - sessions.rows
    gaps = np.exp(LOG_GAPS[kind] + GAP_SPREADS[kind] * rng.normal(size=len(session)))
    gaps[first] = 0
    passed = np.cumsum(gaps)
    passed -= passed[first][session]
    # A session that would reach beyond the last day begins so much earlier.
    start -= np.maximum(start + passed[first + sessions.rows - 1] - (end - 1), 0)
    time = (np.maximum(start[session] + passed, 0) * 1e6).astype(np.int64)
    order = np.argsort(sessions.slot[session] * np.int64(end * 1_000_000) + time, kind="stable")
    return session[order], time[order]


def _gaps(
    rng: np.random.Generator,
    settings: SimulateSettings,
    people: Population,
    sessions: Sessions,
    slot: Ints,
    card: Ints,
    time: Ints,
) -> Floats:
    """Seconds since the card's last transaction, NaN for its first; rows in the order of (slot, time).

    A slot's first card (0) has a history before the first day, unless it was issued too shortly before.
    """
    rate = len(sessions.kind) / (settings.days * DAY_S) * people.activity / people.activity.sum()
    unused = rng.exponential(1 / rate)
    unused[unused > people.age_days * DAY_S] = np.nan
    opens_slot = np.diff(slot, prepend=-1) != 0
    opens_card = opens_slot | (np.diff(card, prepend=-1) != 0)
    gap = np.diff(time, prepend=0) / 1e6
    gap[opens_card] = np.nan
    continues = opens_slot & (card == 0)
    gap[continues] = np.round(time[continues] / 1e6 + unused[slot[continues]])
    return gap


def _merchants(
    rng: np.random.Generator, places: Places, people: Population, sessions: Sessions, session: Ints, time: Ints
) -> tuple[Ints, Ints]:
    """Category and merchant of each row."""
    count, kind = len(session), sessions.kind[session]
    customer = people.owner[sessions.slot[session]]
    liked = people.favourites[customer, rng.integers(people.favourites.shape[1], size=count)]
    category = np.where(rng.random(count) < 0.5, liked, _draw(rng, patterns.SHARES, count))
    category[(kind == JOURNEY) & (rng.random(count) < 0.3)] = patterns.TRAVEL
    for pattern, targets in TARGETS.items():
        chosen = np.flatnonzero(kind == pattern)
        category[chosen] = rng.choice(targets, len(chosen))
    merchant = merchant_at(sessions.city[session], category, rng, count)
    tests = np.flatnonzero(kind == TEST)
    leak = rng.integers(COMPROMISED_MERCHANTS, size=len(tests))
    period = (time[tests] / (DAY_S * 1e6) + places.phases[leak]) // COMPROMISED_DAYS
    merchant[tests] = places.compromised[leak, period.astype(np.int64)]
    category[tests] = merchant[tests] // MERCHANTS_PER_CELL % len(patterns.NAMES)
    return category, merchant


def _deviations(
    rng: np.random.Generator,
    places: Places,
    people: Population,
    sessions: Sessions,
    session: Ints,
    category: Ints,
    merchant: Ints,
) -> Floats:
    """km between the card's usual place, its owner's home, and where each row happens: the shop or the device."""
    count, kind = len(session), sessions.kind[session]
    home = people.home[people.owner[sessions.slot[session]]]
    is_online = (rng.random(count) < patterns.ONLINE_SHARES[category]) | (kind == REMOTE) | (kind == TEST)
    base = np.where(sessions.is_away[session, None], places.cities[sessions.city[session]], home)
    device = base + rng.normal(0, 3, (count, 2))
    place = np.where(is_online[:, None], device, places.merchants[merchant])
    east, north = (place - home).T
    return np.round(np.hypot(east, north), 3)


def _amounts(rng: np.random.Generator, kind: Ints, category: Ints, spending: Floats, is_first: Booleans) -> Floats:
    """Amounts in currency units, to the cent."""
    is_modest = (kind == SHOPS) | is_first
    surprise = 0.95 * rng.normal(size=len(kind)) + spending - 0.6 * is_modest
    is_dear = (kind == BURST) | (is_first & (rng.random(len(kind)) < INTERCEPTED_SHARE))
    surprise[is_dear] = rng.normal(2.8, 0.4, is_dear.sum())
    amount = np.exp(patterns.LOG_MEDIANS[category] + patterns.SPREADS[category] * surprise)
    just_under = np.flatnonzero(kind == JUST_UNDER)
    amount[just_under] = rng.choice(patterns.LIMITS, len(just_under)) * rng.uniform(0.87, 0.995, len(just_under))
    tests = np.flatnonzero(kind == TEST)
    amount[tests] = rng.uniform(0.4, 2.8, len(tests))
    return np.maximum(np.round(amount, 2), 0.01)


def _draw(rng: np.random.Generator, shares: Floats, size: int | tuple[int, int]) -> Ints:
    """Positions in `shares`, drawn in their proportions."""
    cumulated = np.cumsum(shares)
    drawn = np.searchsorted(cumulated, rng.random(size) * cumulated[-1], side="right")
    return np.minimum(drawn, len(shares) - 1)
