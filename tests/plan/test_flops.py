"""Operations of an epoch from those of one batch, and the hours that they take."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import runs
from skinvl.model.base import read_config
from skinvl.plan import gpus, workload
from skinvl.plan.meta_step import MetaStep, Trace
from skinvl.plan.workload import Load


@pytest.mark.parametrize("family", ["qwen2_vl", "mllama"])
def test_one_batch_gives_the_operations_of_another(family: str, tmp_path: Path) -> None:
    one = runs.make(tmp_path, family)
    chat = runs.chat(one)
    config, kind = read_config(Path(one.base.location))
    rows = workload.rows_of(chat, one)
    stage = MetaStep(one, config, kind, cached=False, checkpointing=True)
    loads, traces = [], []
    for share in (True, False):
        batch = workload.drawn(one, chat, rows, 1, share).largest
        loads.append(workload.load(chat, batch, share))
        traces.append(stage.step(workload.inputs(chat, config, batch, share, None)))
    rates = gpus.rates(traces[0], loads[0])
    assert rates.of(loads[0]) == pytest.approx(sum(traces[0].flops.values()))
    assert rates.of(loads[1]) == pytest.approx(sum(traces[1].flops.values()), rel=0.03)
    assert 0 < traces[1].flops["pairs"] == pytest.approx(rates.pair * loads[1].pairs)
    assert 0 < traces[1].flops["trained"] == pytest.approx(rates.trained * loads[1].trained)
    assert loads[1] != loads[0]
    assert sum(traces[1].flops.values()) > 1.1 * sum(traces[0].flops.values())


def test_a_tower_in_every_step_is_added() -> None:
    trace = Trace((1, 1, 1), {"positions": 10.0, "pairs": 20.0, "trained": 6.0, "vision": 8.0})
    load = Load(positions=5, pairs=10, trained=3, vision=4)
    assert gpus.rates(trace, load) == gpus.Rates(2, 2, 2, 2)
    assert gpus.rates(trace, load, 5).of(load) == 44 + 5 * 4


def test_hours_follow_from_the_rate_that_is_reached() -> None:
    gpu = gpus.Gpu("one", 80, 100)
    assert gpus.hours(3600 * 100e12, gpu, 1.0) == pytest.approx(1)
    assert gpus.hours(3600 * 100e12, gpu, 0.5) == pytest.approx(2)
    assert gpus.hours(1e15, gpu) == gpus.hours(1e15, gpu, gpus.MFU)
