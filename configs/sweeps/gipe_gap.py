"""GIPE's gap, which the paper leaves at one value: from none (which is GDPE) to 10,000, three seeds each.

Make the data and the base model first: docs/results/README.md.
"""

from _miniature import miniature

from swjax.evaluation.sweep import Sweep


def get_sweep() -> Sweep:
    """Returns 18 runs."""
    return miniature("gipe_gap", {"variant": ("gipe",), "gap": (0, 16, 64, 256, 1024, 10_000)}, random_schedules=1)
