"""Extracts as three banks would hand them over, each in its own way: small, and with a fraud that can be learnt."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FIRST = datetime(2024, 3, 1)
CHANNELS = np.array(["pos", "web", "atm"])


def world(rows: int, days: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns (rows,) in the order of time. Fraud is dear, on the web and at night."""
    rng = np.random.default_rng(seed)
    seconds = np.sort(rng.integers(0, days * 86_400, rows))
    amount = np.round(rng.lognormal(3, 1, rows), 2) + 0.01
    channel = rng.choice(CHANNELS, rows, p=[0.6, 0.3, 0.1])
    night = seconds % 86_400 < 6 * 3_600
    odds = -9 + 4 * (amount > 40) + 4 * (channel == "web") + 3 * night
    return {
        "time": np.datetime64(FIRST, "us") + seconds.astype("timedelta64[s]"),
        "card": rng.integers(0, rows // 20, rows),
        "amount": amount,
        "channel": channel,
        "mcc": rng.choice([5411, 5812, 5999, 4829], rows),
        "abroad": rng.random(rows) < 0.1,
        "fraud": rng.random(rows) < 1 / (1 + np.exp(-odds)),
    }


def spark(folder: Path, rows: int = 24_000, days: int = 40) -> Path:
    """As Spark writes by default: INT96, hive folders, decimals, text flags, and files that are no data."""
    w = world(rows, days)
    table = pa.table(
        {
            "txn_id": [f"T{i:012d}" for i in range(rows)],
            "event_time": w["time"],
            "card_number": [f"card-{card:05d}" for card in w["card"]],
            "amount": pc.round(pa.array(w["amount"]), 2).cast(pa.decimal128(12, 2)),
            "mcc": pa.array(w["mcc"], pa.int32()),
            "channel": pa.array(w["channel"]),
            "is_abroad": np.where(w["abroad"], "T", "F"),
            "limit_left": pa.array(np.where(w["card"] % 7 == 0, np.nan, 1000 - w["amount"]), from_pandas=True),
            "bank": ["ours"] * rows,
            "memo": [f"thanks for order {i}" for i in range(rows)],
            "items": [[1, 2]] * rows,
            "fraud_case": pa.array(np.where(w["fraud"], "case", None), pa.string()),
            "is_fraud": np.where(w["fraud"], "Y", "N"),
        }
    )
    of_day = ((w["time"] - np.datetime64(FIRST, "us")) // np.timedelta64(1, "D")).astype(int)
    for day in range(days):
        at = FIRST + timedelta(days=day)
        part = folder / f"year={at.year}/month={at.month}/day={at.day}/part-00000-c000.snappy.parquet"
        part.parent.mkdir(parents=True)
        pq.write_table(
            table.filter(pa.array(of_day == day)), part, use_deprecated_int96_timestamps=True, store_schema=False
        )
        (part.parent / f".{part.name}.crc").write_bytes(b"crc\0")
    (folder / "_SUCCESS").touch()
    return folder


def half_hours(folder: Path, rows: int = 8_000, days: int = 20) -> Path:
    """A parquet file each half hour, times in milliseconds since 1970, and when each label became known."""
    w = world(rows, days, seed=1)
    rng = np.random.default_rng(2)
    known = w["time"] + np.where(w["fraud"], rng.integers(1, 3 * 86_400, rows), 4 * 86_400).astype("timedelta64[s]")
    table = pa.table(
        {
            "ts": w["time"].astype("datetime64[ms]").astype(np.int64),
            "account_id": pa.array(w["card"] + 10**9, pa.int64()),
            "value": pa.array(w["amount"], pa.float32()),
            "channel": pa.array(w["channel"]).dictionary_encode(),
            "terminal_no": pa.array(w["card"] % 3_000 + 7, pa.int32()),
            "abroad": pa.array(w["abroad"], pa.bool_()),
            "label": pa.array(w["fraud"], pa.int8()),
            "label_known_at": pa.array(known, pa.timestamp("us")),
        }
    )
    of_half = ((w["time"] - np.datetime64(FIRST, "us")) // np.timedelta64(30, "m")).astype(int)
    bounds = np.searchsorted(of_half, np.arange(days * 48 + 1))
    for half, (first, end) in enumerate(itertools.pairwise(bounds)):
        at = FIRST + timedelta(minutes=30 * half)
        part = folder / f"{at:%Y%m%d}/{at:%H%M}.parquet"
        part.parent.mkdir(parents=True, exist_ok=True)
        if end > first:
            pq.write_table(table.slice(first, end - first), part)
    return folder


def german_csv(file: Path, rows: int = 12_000, days: int = 30) -> Path:
    """One CSV with semicolons and decimal commas, as spreadsheets in German write it."""
    w = world(rows, days, seed=3)
    lines = ["Buchungsnr;Zeitpunkt;Kontonummer;Betrag;Kanal;Ausland;Betrug"]
    for i in range(rows):
        amount, abroad = f"{w['amount'][i]:.2f}".replace(".", ","), "JN"[int(not w["abroad"][i])]
        at = str(w["time"][i].astype("datetime64[s]")).replace("T", " ")
        lines.append(f"{i + 1};{at};{700_000 + w['card'][i]};{amount};{w['channel'][i]};{abroad};{int(w['fraud'][i])}")
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
