"""When something is said, against when it happens: pure functions of frame numbers, and what constants get.

A number of these says little alone. Whoever never speaks has every quiet episode right, whoever always speaks misses
nothing, and whoever speaks at the annotated times has OmniStar's TimDiff of silence; so `score_constants` and
`live_constants` give the same scores of speakers that see nothing.
"""

from swjax.evaluation.timing.constants import best_prior, constant_speakers, score_constants, timer
from swjax.evaluation.timing.episodes import Episode, match_times, timing_scores
from swjax.evaluation.timing.live import (
    LiveTurn,
    frame_difference,
    live_constants,
    live_fluency,
    live_patience,
    live_scores,
)
from swjax.evaluation.timing.omnistar import OmniStar, omnistar_scores
from swjax.evaluation.timing.threshold import threshold_curve

__all__ = [
    "Episode",
    "LiveTurn",
    "OmniStar",
    "best_prior",
    "constant_speakers",
    "frame_difference",
    "live_constants",
    "live_fluency",
    "live_patience",
    "live_scores",
    "match_times",
    "omnistar_scores",
    "score_constants",
    "threshold_curve",
    "timer",
    "timing_scores",
]
