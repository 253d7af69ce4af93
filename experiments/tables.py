"""The tables, in the order in which their runs are made."""

from __future__ import annotations

import anytime
import figure6
import imagenet
import pneumonia
import saddle
import snapshots
import table1
import table3
import table4
from cells import Table

ALL = (
    saddle.TABLE,
    table1.TABLE,
    figure6.TABLE,
    table3.TABLE,
    pneumonia.TABLE,
    anytime.TABLE,
    snapshots.SCALED,
    snapshots.SHORT,
    table4.SCALED,
    imagenet.STAND_IN,
    table4.TABLE,
    imagenet.TABLE,
    snapshots.TABLE,
)
TABLES: dict[str, Table] = {table.name: table for table in ALL}
