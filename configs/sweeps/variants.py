"""The paper's six designs side by side, under wait-3 and under three random schedules, three seeds each.

Make the data and the base model first: docs/results/README.md.
"""

from _miniature import miniature

from swjax.evaluation.sweep import Sweep


def get_sweep() -> Sweep:
    """Returns 18 runs."""
    # The comparison that matters most first.
    variants = ("offline", "gdpe", "interleave", "gipe", "ospe", "offline_gdpe")
    return miniature("variants", {"variant": variants}, random_schedules=3)
