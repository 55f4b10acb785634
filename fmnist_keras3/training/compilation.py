"""Compiles the programs of a training before the clock starts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fmnist_keras3.data.plan import evaluation_plan

if TYPE_CHECKING:
    from fmnist_keras3.training.fit import Fit


def compile_programs(fit: Fit) -> None:
    """Compile the programs by running chunks of no steps, at the first step of an epoch or a run.

    Not within an epoch: the feed is at the beginning of it afterwards.
    """
    steps = fit.step_plan(0)
    plan = fit.open_epoch(0)  # at the position there may be no step left
    starts = [0]
    short = fit.feed.ends_at(plan, 0)  # a batch of another size is another program
    if short < min(plan.steps, fit.max_steps or plan.steps):
        starts.append(short)
    with fit.profiler.section("compile"):
        for start in starts:
            fit.feed.open(plan, start)
            fit.engine.train(dataclasses.replace(fit.feed.take(1), count=0), steps)
        if (feed := fit.validation_feed) is not None:
            feed.open(evaluation_plan(len(feed.split), fit.data.batch_size))
            fit.engine.infer([dataclasses.replace(feed.take(1), count=0)])
    fit.run.update(compile_seconds=round(fit.profiler.sections["compile"].seconds, 3))
