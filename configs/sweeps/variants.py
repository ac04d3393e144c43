"""The paper's six designs side by side, under wait-3 and under a random schedule, three seeds each.

Make the data first: `swjax prepare moving_shapes`.
"""

from swjax.evaluation.sweep import Sweep
from swjax.streaming import Variant


def get_sweep() -> Sweep:
    """Returns 18 runs of the quickstart's model."""
    return Sweep(
        config="configs/moving_shapes.py",
        output="runs/sweeps/variants",
        data="data/moving_shapes/test/manifest.jsonl",
        grids=({"variant": tuple(str(variant) for variant in Variant), "seed": (0, 1, 2)},),
        overrides={
            "steps": 450,
            "checkpoint_every": 150,
            "eval_every": 450,
            "compilation_cache": "runs/sweeps/compiled",
        },
        schedules=("fixed", "random:0"),
        limit=100,
        max_tail=60,
    )
