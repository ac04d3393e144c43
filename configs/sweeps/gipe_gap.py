"""GIPE's gap, which the paper leaves at one value: from none (which is GDPE) to 10,000, three seeds each.

Make the data first: `swjax prepare moving_shapes`.
"""

from swjax.evaluation.sweep import Sweep


def get_sweep() -> Sweep:
    """Returns 18 runs of the quickstart's model."""
    return Sweep(
        config="configs/moving_shapes.py",
        output="runs/sweeps/gipe_gap",
        data="data/moving_shapes/test/manifest.jsonl",
        grids=({"variant": ("gipe",), "gap": (0, 16, 64, 256, 1024, 10_000), "seed": (0, 1, 2)},),
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
