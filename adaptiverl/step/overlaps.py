"""Which tensors of a step lie in each other's memory: a sweep over all at once would race there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Spans(NamedTuple):
    """Pieces of one memory that rows of a table read or write.

    Attributes:
        begins: int64 [rows, columns], addresses; 0 where there is nothing.
        ends: Of the same shape.
        written: bool [columns].
    """

    begins: Tensor
    ends: Tensor
    written: Tensor


def overlapping_rows(tables: Sequence[Spans]) -> list[set[int]]:
    """The rows of each table that lie in memory which another span is written to as well.

    Args:
        tables: All of one device.
    """
    begins = torch.cat([t.begins.flatten() for t in tables])
    ends = torch.cat([t.ends.flatten() for t in tables])
    written = torch.cat([t.written.expand_as(t.begins).flatten() for t in tables])
    order = begins.argsort()
    order = order[(begins < ends)[order]]
    begins, ends, written = begins[order], ends[order], written[order]
    # A piece begins where nothing that began before reaches to.
    is_new = begins[1:] >= ends.cummax(0).values[:-1]
    if bool(is_new.all()):
        return [set() for _ in tables]
    piece = torch.cat([is_new.new_zeros(1, dtype=torch.int64), is_new.cumsum(0)])
    shared = (piece.bincount() > 1) & (piece.bincount(written.to(torch.float64)) > 0)
    return _rows_of(order[shared[piece]].tolist(), tables)


def _rows_of(places: Sequence[int], tables: Sequence[Spans]) -> list[set[int]]:
    """Places among all spans of all tables to rows of each."""
    found, first = [], 0
    for table in tables:
        rows, columns = table.begins.shape
        end = first + rows * columns
        found.append({(place - first) // columns for place in places if first <= place < end})
        first = end
    return found
