"""When a model that decides has spoken, and when something was to be said: episodes of its predictions."""

from collections.abc import Mapping, Sequence

import numpy as np

from swjax.data.encoding import frame_arrivals
from swjax.data.example import VideoExample
from swjax.evaluation.predict import Prediction
from swjax.evaluation.timing import Episode
from swjax.streaming import DecisionTokens

SPEAKERS = {"never": "never speaks", "always": "speaks after every frame", "every_2": "speaks after every second frame"}
"""Speakers that see nothing, by their names in `swjax.evaluation.timing`, as rows of a table."""


def read_episodes(
    predictions: Sequence[Prediction],
    examples: Mapping[str, VideoExample],
    decisions: DecisionTokens,
    *,
    fps: float,
    pictures: int,
) -> list[Episode]:
    """An episode a prediction about a video whose sentences have times.

    Args:
        predictions: what was said.
        examples: by key; those that have a caption without times are left out.
        decisions: the tokens that say that nothing, or no more, is to be said.
        fps: pictures a second.
        pictures: of a frame.
    """
    episodes = []
    for one in predictions:
        example = examples[one.key]
        if example.caption and not example.sentences:
            continue
        arrival_s = frame_arrivals(one.frames, fps=fps, pictures=pictures)
        due = np.searchsorted(arrival_s, np.minimum([sentence.time_s for sentence in example.sentences], arrival_s[-1]))
        pauses = (decisions.skip, decisions.end)
        begun = [
            frame
            for number, (token, frame) in enumerate(zip(one.token_ids, one.after_frame, strict=True))
            if token not in pauses and (number == 0 or one.token_ids[number - 1] in pauses)
        ]
        frames = tuple(sorted(set(due.tolist())))
        kind = example.question or ""
        episodes.append(Episode(tuple(begun), frames, num_frames=one.frames, frame_s=pictures / fps, kind=kind))
    return episodes
