"""CSV that says nothing of itself: what stands between values, and what its texts are."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.data.kinds import Reading, from_text
from fraud_ray.settings import CsvSettings

_DELIMITERS = ";\t|,"
_LINES = 100
_NO_NUMBER = r"^\s*[-+]?(0\d|\d{16})"  # a number of a card or a branch, say, of which a number would lose digits


def sniffed(head: bytes) -> CsvSettings:
    """How CSV is written, by its first bytes."""
    lines = head.decode("utf-8-sig", "replace").splitlines()[: _LINES + 1]
    text = "\n".join(lines[:-1] if len(lines) > 1 else lines)  # the last one may be half a line

    def rows(delimiter: str) -> list[list[str]]:
        return [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]

    def width(delimiter: str) -> int:
        """Values a line, where all lines have as many; else 0."""
        widths = {len(row) for row in rows(delimiter)}
        return widths.pop() if len(widths) == 1 else 0

    delimiter = max(_DELIMITERS, key=width)
    columns = zip(*rows(delimiter)[1:], strict=True) if width(delimiter) > 1 else ()
    point = "," if any(map(_has_decimal_commas, columns)) else "."
    return CsvSettings(delimiter=delimiter if width(delimiter) > 1 else ",", decimal_point=point)


def _has_decimal_commas(texts: Sequence[str]) -> bool:
    """Whether all are numbers, and some have a comma that parts no thousands."""
    present = [text.strip() for text in texts if text.strip()]
    return all(re.fullmatch(r"[-+]?\d*(,\d+)?", text) for text in present) and any(
        re.search(r",(\d{1,2}|\d{4,})$", text) for text in present
    )


def values_of(table: pa.Table, decimal_point: str) -> pa.Table:
    """A table whose texts are whole numbers, numbers or times where all of them read so."""
    for position, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(position, field.name, _values(table.column(position), decimal_point))
    return table


def _values(texts: pa.ChunkedArray, decimal_point: str) -> pa.ChunkedArray:
    if texts.null_count == len(texts):
        return pa.chunked_array([pa.nulls(len(texts))])
    if pc.any(pc.match_substring_regex(texts, _NO_NUMBER)).as_py():
        return texts
    numbers = from_text(texts, Reading("numeric"), decimal_point)
    if pa.types.is_floating(numbers.type):
        is_whole = not pc.any(pc.match_substring_regex(texts, r"[.,eEnN]")).as_py()
        return pc.cast(numbers, pa.int64()) if is_whole else numbers
    times = from_text(texts, Reading("timestamp"))
    return times if pa.types.is_timestamp(times.type) else texts
