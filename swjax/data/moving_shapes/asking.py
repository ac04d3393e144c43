"""Questions about a film of Moving Shapes Live, asked at known times, and what is to be said and when, exactly.

Of three kinds: what has happened (backward), what is there now (present), and tell me when (forward). The first two are
answered at once. A forward question is about one kind of event, and is answered at each that follows, up to the next
question; where none follows, by silence.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from swjax.data.moving_shapes.film import Film, Happening, happenings, seconds_of, shown_at
from swjax.data.moving_shapes.grammar import Kind
from swjax.plain import Json

WAIT = "Say nothing before you are asked."
"""The question before the film, of which nothing is due."""

BACKWARD, PRESENT = "What happened last?", "What does the video show now?"
FORWARD: dict[Kind, str] = {
    "enter": "Tell me when a shape enters.",
    "turn": "Tell me when a shape turns.",
    "recolour": "Tell me when a shape becomes another colour.",
    "leave": "Tell me when a shape leaves.",
}
NOTHING_YET = "Nothing."
WITHHELD: tuple[Kind, ...] = ("turn", "recolour")
"""Kinds of events that may be missing in a whole film."""

FRAMES_BETWEEN = (3, 8)
_BEHIND_S = 0.25  # when a question comes, after the arrival of the newest frame that it can mean


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question at a time.

    Attributes:
        text: what is asked.
        kind: `backward`, `present` or `forward`.
        frame: the newest frame when it is asked.
        due: what is to be said, and when in seconds of the film.
    """

    text: str
    kind: str
    frame: int
    due: tuple[tuple[float, str], ...]

    @property
    def asked_s(self) -> float:
        """When it is asked, in seconds of the film."""
        return seconds_of(self.frame) + _BEHIND_S

    def to_record(self) -> Json:
        """An entry of `questions` in a manifest."""
        sentences = [{"text": text, "start_s": max(time_s, self.asked_s)} for time_s, text in self.due]
        return {"text": self.text, "kind": self.kind, "video_s": self.asked_s, "sentences": sentences}


def draw_film(seed: tuple[int, ...]) -> Film:
    """The film of a seed; in every second one, some kind of event never happens."""
    rng = np.random.default_rng([*seed, 3])
    without = WITHHELD[int(rng.integers(len(WITHHELD)))] if rng.random() < 0.5 else None
    return Film(seed, without)


def draw_questions(film: Film, num_frames: int) -> tuple[Asked, ...]:
    """Questions about the beginning of a film, drawn at random, the same for the same film.

    Of a film without some kind of event, forward questions are about that kind half of the time.

    Args:
        film: which.
        num_frames: frames of the video, one a second.
    """
    rng = np.random.default_rng([*film.seed, 4])
    told = tuple(itertools.takewhile(lambda one: one.frame < num_frames, happenings(film)))
    frames = list[int]()
    frame = int(rng.integers(1, FRAMES_BETWEEN[1], endpoint=True))
    while frame < num_frames - 1:
        frames.append(frame)
        frame += int(rng.integers(*FRAMES_BETWEEN, endpoint=True))
    return tuple(_ask(rng, film, told, first, stop) for first, stop in itertools.pairwise([*frames, num_frames - 1]))


def _ask(rng: np.random.Generator, film: Film, told: tuple[Happening, ...], frame: int, stop: int) -> Asked:
    """A question behind a frame, of which nothing is due behind another."""
    before = [one for one in told if one.frame <= frame]
    match int(rng.integers(3)):
        case 0:
            last = before[-1].sentence if before else NOTHING_YET
            return Asked(BACKWARD, "backward", frame, ((seconds_of(frame), last),))
        case 1:
            return Asked(PRESENT, "present", frame, ((seconds_of(frame), shown_at(told, frame)),))
    kind = list(FORWARD)[int(rng.integers(len(FORWARD)))]
    if film.without is not None and rng.random() < 0.5:
        kind = film.without
    due = tuple((one.visible_s, one.sentence) for one in told if frame < one.frame <= stop and one.event.kind == kind)
    return Asked(FORWARD[kind], "forward", frame, due)
