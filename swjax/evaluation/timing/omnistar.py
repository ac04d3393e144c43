"""TimDiff, redundancy and coverage of OmniStar's real-time narration (LiveStar, Yang et al., 2025).

The annotated time of a caption is the *end* of its segment: the first segment is the first time alone, each later one
begins one unit behind the time before. The three must be read together: speaking at the annotated times has the TimDiff
of silence, and speaking all the time has a TimDiff of 0.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class OmniStar(NamedTuple):
    """Means over the segments of a video.

    Attributes:
        tim_diff: units of time from the start of a segment to the first time that something is said in it; the
            segment's length less one where nothing is.
        redundancy: distance between 1 and how often something is said in a segment.
        coverage: share of the segments in which something is said.
    """

    tim_diff: float
    redundancy: float
    coverage: float


def omnistar_scores(spoken: Sequence[int], annotated: Sequence[int]) -> OmniStar:
    """Scores of one video.

    Args:
        spoken: when something was said, in whole units of time (seconds in OmniStar, frames elsewhere), in any order;
            what is behind the last annotation counts for nothing.
        annotated: the end of each segment in the same unit, ascending.

    Raises:
        ValueError: if nothing is annotated, or the times do not ascend.
    """
    if not annotated or any(later <= earlier for earlier, later in itertools.pairwise(annotated)):
        raise ValueError(f"annotated times must ascend, and there must be one, got {list(annotated)}")
    tim_diff = redundancy = coverage = 0
    for start, end in zip([annotated[0], *(end + 1 for end in annotated[:-1])], annotated, strict=True):
        inside = [time for time in spoken if start <= time <= end]
        tim_diff += min(inside, default=end) - start
        redundancy += abs(1 - len(inside))
        coverage += bool(inside)
    count = len(annotated)
    return OmniStar(tim_diff / count, redundancy / count, coverage / count)
