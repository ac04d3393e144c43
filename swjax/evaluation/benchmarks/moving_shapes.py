"""Scores of captions of Moving Shapes, exact, by parsing."""

from collections import Counter
from collections.abc import Mapping, Sequence

from swjax.data.json_lines import parse_line, read_lines
from swjax.data.moving_shapes.grammar import Event, event_accuracy, parse_caption
from swjax.evaluation.benchmarks.benchmark import Benchmark, Metric
from swjax.evaluation.bootstrap import Score, mean_score
from swjax.evaluation.errors import EvaluationError
from swjax.storage import AnyPath

Events = tuple[Event, ...]


def read_events(path: AnyPath) -> dict[str, Events]:
    """Read the events.jsonl of a split: what happens in each video, by key.

    Raises:
        EvaluationError: if the file is missing or a line of it cannot be read.
    """
    if not path.exists():
        raise EvaluationError(f"{path} is missing; `swjax prepare moving_shapes` writes it beside the manifest")
    found: dict[str, Events] = {}
    for number, line in read_lines(path):
        try:
            record = parse_line(line)
            found[record["video_id"]] = tuple(
                Event(**{slot: value for slot, value in event.items() if slot not in ("time_s", "visible_s")})
                for event in record["events"]
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"{path}:{number} cannot be read: {error!r}; prepare the data set again") from error
    return found


def score_captions(captions: Mapping[str, str], events: Mapping[str, Events]) -> dict[str, Score]:
    """Score captions against what happened.

    Args:
        captions: text by key.
        events: what happened, by key; must have every key of the captions.

    Returns:
        `event_accuracy`, the share of what happened that is said, exactly and in order
        (`swjax.data.moving_shapes.grammar.event_accuracy`), and `grammatical`, the share of captions that the grammar
        derives; each from 0 to 1, with its interval over videos.

    Raises:
        EvaluationError: if there are no captions, or a key has no events.
    """
    if not captions:
        raise EvaluationError("there are no captions to score")
    missing = sorted(set(captions) - set(events))
    if missing:
        raise EvaluationError(
            f"no events are known of {missing[0]} and {len(missing) - 1} more; are the splits the same?"
        )
    parsed = {key: parse_caption(text) for key, text in captions.items()}
    return {
        "event_accuracy": mean_score([event_accuracy(parsed[key].events, events[key]) for key in captions]),
        "grammatical": mean_score([caption.grammatical for caption in parsed.values()]),
    }


def best_constant_answer(candidates: Sequence[str], events: Mapping[str, Events]) -> tuple[str, float]:
    """The one caption that, said about every video, has the highest event accuracy, and that accuracy.

    The choice is made on the very videos that it is scored on, so no real constant answer does better.

    Args:
        candidates: captions to choose from, such as all of the training split.
        events: what happened, by key.
    """
    if not candidates or not events:
        raise EvaluationError("the best constant answer needs captions to choose from and videos to score on")
    weights = Counter(events.values())
    said = {parse_caption(caption).events: caption for caption in candidates}
    accuracy = {
        caption: sum(event_accuracy(parsed, true) * count for true, count in weights.items()) / len(events)
        for parsed, caption in said.items()
    }
    best = max(accuracy, key=accuracy.__getitem__)
    return best, accuracy[best]


MOVING_SHAPES = Benchmark(
    score_captions,
    {
        "event_accuracy": Metric("event accuracy", "{:.1%}"),
        "grammatical": Metric("grammatical", "{:.1%}"),
    },
    read=read_events,
    file="events.jsonl",
    constant=best_constant_answer,
)
