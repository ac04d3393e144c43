"""Whether interleave only needs longer: it, GDPE and offline fine-tuned for four times as many steps.

Make the data and the base model first: docs/results/README.md.
"""

from _miniature import miniature

from swjax.evaluation.sweep import Sweep


def get_sweep() -> Sweep:
    """Returns 9 runs."""
    return miniature("longer", {"variant": ("interleave", "gdpe", "offline"), "steps": (640,)}, random_schedules=1)
