"""What a threshold on the probability of silence does: from silent to talkative, without running the model again."""

from collections.abc import Sequence
from dataclasses import replace

from swjax.evaluation.bootstrap import Score, ratio_score
from swjax.evaluation.timing.episodes import Episode, timing_scores
from swjax.streaming import Moment, speaking_of

Decision = tuple[float, bool]
"""The probability of the skip token after a frame, and whether no other token is likelier."""


def threshold_curve(
    episodes: Sequence[Episode],
    decisions: Sequence[Sequence[Decision]],
    thresholds: Sequence[float],
    *,
    tolerances: Sequence[int] = (0, 1),
) -> dict[float, dict[str, Score]]:
    """Scores by threshold of decisions that were recorded teacher forced, as if each led to one utterance at once.

    Args:
        episodes: what was due; what was said is replaced.
        decisions: of each episode, one a frame.
        thresholds: of the rule `decide`: skip is not chosen where its probability is below.
        tolerances: as of `timing_scores`.

    Returns:
        By threshold `timing_scores`, and `silent`, the share of frames after which nothing is said. A higher threshold
        says something wherever a lower one does: it is never more silent, and never recalls less.

    Raises:
        ValueError: if there are not as many decisions as frames.
    """
    for number, (episode, made) in enumerate(zip(episodes, decisions, strict=True)):
        if len(made) != episode.num_frames:
            raise ValueError(f"episode {number} has {episode.num_frames} frames and {len(made)} decisions")
    curve = {}
    for threshold in thresholds:
        rule = speaking_of(f"decide:threshold={float(threshold)!r}")
        said = [
            replace(
                episode,
                spoken=tuple(
                    frame
                    for frame, (skip, likeliest) in enumerate(made)
                    if rule.speaks(
                        Moment(frame, frame * episode.frame_s, skip_probability=skip, skip_is_likeliest=likeliest)
                    )
                ),
            )
            for episode, made in zip(episodes, decisions, strict=True)
        ]
        frames = [episode.num_frames for episode in said]
        silent = [episode.num_frames - len(episode.spoken) for episode in said]
        curve[threshold] = timing_scores(said, tolerances=tolerances) | {"silent": ratio_score(silent, frames)}
    return curve
