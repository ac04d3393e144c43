"""Whether interleave only needs longer: it and GDPE fine-tuned for four times as many steps.

Make the data and the base model first: docs/results/README.md.
"""

from _miniature import miniature

from swjax.evaluation.sweep import Sweep


def get_sweep() -> Sweep:
    """Returns 6 runs."""
    return miniature("longer", {"variant": ("interleave", "gdpe"), "steps": (640,)}, random_schedules=1)
