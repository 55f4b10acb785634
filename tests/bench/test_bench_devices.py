"""The table of speeds by devices, and the share of what they exchange in a trace."""

import gzip
import json

import pytest

from bench import devices


def cell(kind, count, size, *speeds, **more):
    given = {"model": "lenet", "kind": kind, "devices": count, "batch_size": size}
    return {**given, "images_per_second": speeds, "exchange": 0.25, **more}


def test_speeds_stand_beside_those_of_one_device():
    found = [
        cell("shared", 1, 128, 90, 100),
        cell("shared", 2, 128, 150),
        {"model": "lenet", "kind": "shared", "devices": 4, "batch_size": 128, "error": "too few"},
        cell("each", 2, 256, 180),
        cell("shared", 1, 128, 110),
        cell("mesh", 1, 128, 196, 200, 204, plain=[190, 200, 210], exchange=None),
    ]
    rows = devices.table(found)
    assert [row[1:] for row in rows] == [
        ["shared", "1", "128", "100", "1.00", "-"],
        ["shared", "2", "128", "150", "1.50", "25 %"],
        ["shared", "4", "128", "failed: too few", "-", "-"],
        ["each", "2", "256", "180", "1.80", "25 %"],
        ["mesh", "1", "128", "200", "1.00", "-"],
    ]
    assert all(len(row) == len(devices.COLUMNS) for row in rows)


def test_the_exchange_is_a_share_of_the_operations_alone(tmp_path):
    def event(name, duration, **args):
        return {"name": name, "dur": duration, "args": args}

    events = [
        event("dot.1", 60, hlo_op="dot.1"),
        event("all-reduce.2", 20, hlo_op="all-reduce.2"),
        event("python", 1000),
        {"name": "thread", "ph": "M"},
    ]
    assert devices.exchange(tmp_path) is None
    with gzip.open(tmp_path / "perfetto_trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    assert devices.exchange(tmp_path) == pytest.approx(0.25)
