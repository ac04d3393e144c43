"""Moving Shapes Live: films without end, drawn as they play, with exact answers to questions at any time.

Several shapes, one of each kind at a time, come, turn, change colour and leave, each as the mover of a scene
(`swjax.data.moving_shapes.scene`). Visits begin at whole seconds, so an event never falls inside a frame (the samples
at f and f + 0.5 s), and no two events fall between the same two frames. What a film shows depends on its seed alone;
nothing but the visits that last is kept, however long it plays.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from swjax.data.moving_shapes.drawing import draw_background, draw_mover, positions
from swjax.data.moving_shapes.grammar import SHAPES, Event, Kind, write_sentence
from swjax.data.moving_shapes.narration import SECONDS_PER_SAMPLE
from swjax.data.moving_shapes.scene import Background, Scene, draw_background_of, draw_visitor

MOST_SHAPES = 3
SECONDS_BETWEEN = (1, 2)
"""Seconds from one attempt to let a shape in to the next."""

_ATTEMPTS = 3
_APART = 0.75  # least distance of two centres, in radii of both: one may cover a part of the other, never its centre


@dataclasses.dataclass(frozen=True)
class Film:
    """Which film.

    Attributes:
        seed: of several numbers (data set, split, index).
        without: a kind of event that never happens in it.
    """

    seed: tuple[int, ...]
    without: Kind | None = None


@dataclasses.dataclass(frozen=True)
class Visit:
    """A shape from when it comes to when it has gone.

    Attributes:
        scene: what its mover does.
        begins_s: when the scene begins, in whole seconds of the film.
    """

    scene: Scene
    begins_s: int

    @property
    def ends_s(self) -> int:
        """When nothing more is seen of it, in whole seconds of the film."""
        return self.begins_s + self.scene.duration_s

    @property
    def happenings(self) -> tuple[Happening, ...]:
        """What it does, in order."""
        return tuple(
            Happening(self.begins_s + timed.visible_s, self.scene.shape, timed.event) for timed in self.scene.events
        )


class Happening(NamedTuple):
    """Something that a shape does.

    Attributes:
        visible_s: time of the first sample (at 2 fps) that shows it, in seconds of the film.
        shape: which; there is one of each at a time.
        event: what it does.
    """

    visible_s: float
    shape: str
    event: Event

    @property
    def frame(self) -> int:
        """The first frame that shows it: frame f shows the samples at f and f + 0.5 s."""
        return math.floor(self.visible_s)

    @property
    def sentence(self) -> str:
        """What there is to say of it."""
        return write_sentence(self.event, None).replace("It ", f"The {self.shape} ", 1)


def visits(film: Film) -> Iterator[Visit]:
    """All visits of a film in the order in which they begin, without end."""
    rng = np.random.default_rng([*film.seed, 0])
    present: list[Visit] = []
    second = 0
    while True:
        present = [visit for visit in present if visit.ends_s > second]
        if len(present) < MOST_SHAPES:
            absent = sorted(set(SHAPES) - {visit.scene.shape for visit in present})
            candidates = (
                Visit(draw_visitor((*film.seed, 1, second, number), str(rng.choice(absent)), film.without), second)
                for number in range(_ATTEMPTS)
            )
            fitting = next((visit for visit in candidates if _fits(visit, present)), None)
            if fitting is not None:
                present.append(fitting)
                yield fitting
        second += int(rng.integers(*SECONDS_BETWEEN, endpoint=True))


def _fits(visit: Visit, present: Sequence[Visit]) -> bool:
    """Whether a visit covers nobody, and nothing happens in it when something else does."""
    taken = {happening.frame for other in present for happening in other.happenings}
    if taken & {happening.frame for happening in visit.happenings}:
        return False
    times = np.arange(0, visit.scene.duration_s, 0.25)
    for other in present:
        apart = positions(visit.scene, times) - positions(other.scene, times + visit.begins_s - other.begins_s)
        if (np.hypot(*apart.T) < _APART * (visit.scene.radius + other.scene.radius)).any():
            return False
    return True


def happenings(film: Film) -> Iterator[Happening]:
    """All that happens in a film in order, without end."""
    waiting: list[Happening] = []
    for visit in visits(film):
        # What comes later begins no earlier than this visit.
        while waiting and waiting[0].visible_s < visit.begins_s:
            yield waiting.pop(0)
        waiting = sorted([*waiting, *visit.happenings], key=lambda happening: happening.visible_s)


def play(film: Film, *, size: int, fps: int) -> Iterator[tuple[float, UInt8[np.ndarray, "size size 3"]]]:
    """The pictures of a film, RGB, each with its time in seconds, without end.

    Args:
        film: which.
        size: pixels, both ways.
        fps: pictures a second.
    """
    still = draw_background(background_of(film), size).round().astype(np.uint8)
    coming, present = visits(film), list[Visit]()
    following = next(coming)
    for second in itertools.count():
        while following.begins_s <= second:
            present, following = [*present, following], next(coming)
        present = [visit for visit in present if visit.ends_s > second]
        times = second + np.arange(fps) / fps
        frames = np.repeat(still[None], fps, axis=0)
        for visit in present:
            draw_mover(frames, visit.scene, times - visit.begins_s)
        yield from zip(times.tolist(), frames, strict=True)


def background_of(film: Film) -> Background:
    """What is behind the shapes of a film."""
    return draw_background_of(np.random.default_rng([*film.seed, 2]))


def shown_at(said: Sequence[Happening], frame: int) -> str:
    """What a film shows when a frame has been seen: the shapes, in the order in which they came.

    Args:
        said: what has happened up to then, in order.
        frame: the newest frame.
    """
    there: dict[str, str] = {}
    for happening in said:
        if happening.frame > frame:
            break
        event = happening.event
        if event.kind == "leave":
            there.pop(happening.shape, None)
        elif event.kind in ("enter", "recolour"):
            there[happening.shape] = event.colour or ""
    shapes = [f"a {colour} {shape}" for shape, colour in there.items()]
    return "The video shows " + (" and ".join(shapes) if shapes else "nothing") + "."


def seconds_of(frame: int) -> float:
    """When a frame has arrived: the time of its last sample."""
    return frame + SECONDS_PER_SAMPLE
