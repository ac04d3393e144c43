"""What the miniature tables share: how each of their runs is fine-tuned and evaluated, apart from its grid."""

from collections.abc import Sequence
from typing import Any

from swjax.evaluation.sweep import Sweep

SEEDS = (0, 1, 2)


def miniature(name: str, grid: dict[str, Sequence[Any]], *, random_schedules: int) -> Sweep:
    """A sweep over a grid and three seeds, one seed after another, so that a part of it is a table too.

    Args:
        name: of its folder in runs/sweeps.
        grid: what it varies.
        random_schedules: how many each run is evaluated under, beside the fixed one.
    """
    return Sweep(
        config="moving_shapes_base",
        output=f"runs/sweeps/{name}",
        data="data/moving_shapes/test/manifest.jsonl",
        grids=({"seed": SEEDS, **grid},),
        overrides={
            "init_from": "exports/moving_shapes_base",
            "model.preset": "",
            "model.overrides": {},
            "frozen": ("visual/(?!merger)",),  # as in the paper
            "data.train": "data/records/moving_shapes/2fps_3136px:train",
            "data.validation": "",
            "steps": 160,
            "optimizer.name": "adamw",
            "optimizer.learning_rate": 1e-3,
            "optimizer.weight_decay": 0.0,
            "checkpoint_every": 160,
            "keep": 1,
        },
        schedules=("fixed", *(f"random:{seed}" for seed in range(random_schedules))),
        limit=100,
        max_tail=60,
        rows=25,
    )
