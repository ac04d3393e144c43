"""Scenes of Moving Shapes: what moves where and when, drawn at random, with the caption that tells it.

One shape, the mover, enters a square picture (the first frame finds it half-way in), turns, bounces off a second shape
that stands still, changes colour and leaves. Lengths are in picture widths, x to the right and y downwards; times are
in seconds.

So that a video at 2 fps says exactly what happened, an event never falls inside a frame (the samples at f and f + 0.5
s) but between two: it has either not begun when a frame is seen or is plain in the whole of the next one. No two events
fall between the same two frames. (Leaving, which takes its time, counts when the mover is out of sight.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Sequence

import numpy as np

from swjax.data.moving_shapes.grammar import (
    COLOURS,
    DIRECTION_OF_SIDE,
    OPPOSITE,
    SHAPES,
    SIDE_OF_DIRECTION,
    SIDES,
    Event,
    Kind,
)
from swjax.data.moving_shapes.narration import SECONDS_PER_SAMPLE, Sentence, TimedEvent, narrate

MIN_DURATION_S, MAX_DURATION_S = 5, 12
BACKGROUNDS = ("noise", "stripes", "checks", "dots", "grain", "gradient")
# How far each shape reaches from its centre, in radii, when something comes at its middle: left, right, up, down.
REACH = {
    "circle": dict(left=1.0, right=1.0, up=1.0, down=1.0),
    "square": dict(left=0.85, right=0.85, up=0.85, down=0.85),
    "triangle": dict(left=0.65, right=0.65, up=1.1, down=0.55),
}

_RADIUS = (0.17, 0.2)  # least and most, of either shape
_STEP = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_HEAD_START_S = (0.5, 0.9)  # how long before the video the mover has reached the border, on its way in
_STRETCH_S = 0.9  # least time between two corners
_EVENT_WINDOW_S = (0.52, 0.9)  # when an event may happen, from the start of a frame
_ATTEMPTS_PER_PLAN, _PLANS = 400, 100
_DURATION_WEIGHTS = np.array([18, 18, 16, 14, 12, 9, 7, 6]) / 100  # of 5, 6, ... 12 s


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """The shape that stands still: where its centre is and how large it is, in picture widths."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True)
class Background:
    """A texture: its kind, mean colour (0 to 255), contrast (0 to 255), period in picture widths, angle, own seed."""

    kind: str
    rgb: tuple[float, float, float]
    contrast: float
    period: float
    angle: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that a video shows and says.

    Attributes:
      duration_s: whole seconds, which is also the number of frames that a model sees.
      shape, radius, tilt: of the mover; radius in picture widths, tilt in radians.
      path: (time, x, y) of the corners of its way; between them it moves evenly.
      colours: (time, colour), the first one at time 0.
      obstacle: the second shape, if there is one.
      background: the texture behind.
      events: what happens, in order, fillers excluded.
      sentences: the caption; joined with spaces it is `caption`.
    """

    duration_s: int
    shape: str
    radius: float
    tilt: float
    path: tuple[tuple[float, float, float], ...]
    colours: tuple[tuple[float, str], ...]
    obstacle: Obstacle | None
    background: Background
    events: tuple[TimedEvent, ...]
    sentences: tuple[Sentence, ...]

    @property
    def caption(self) -> str:
        """The whole caption."""
        return " ".join(sentence.text for sentence in self.sentences)


def draw_scene(seed: Sequence[int]) -> Scene:
    """The scene of a seed, which may be of several numbers (data set, split, index). The same seed, the same scene."""
    rng = np.random.default_rng(list(seed))
    for _ in range(_PLANS):
        plan = _draw_plan(rng)
        for _ in range(_ATTEMPTS_PER_PLAN):
            scene = _try_scene(rng, plan)
            if scene is not None:
                return scene
    raise RuntimeError(f"no scene fits in {_PLANS} plans with seed {list(seed)}; please report this seed")


def draw_visitor(seed: Sequence[int], shape: str, without: Kind | None = None) -> Scene:
    """A scene of a seed in which one shape alone enters, moves and leaves.

    Args:
        seed: as for `draw_scene`.
        shape: of the mover.
        without: a kind of event that does not happen.
    """
    rng = np.random.default_rng(list(seed))
    while True:
        plan = dataclasses.replace(_draw_plan(rng), hits=False, has_obstacle=False, leaves=True)
        if without == "recolour":
            plan = dataclasses.replace(plan, num_recolours=0)
        if without == "turn":  # there is always one in the longer ones
            plan = dataclasses.replace(plan, duration_s=MIN_DURATION_S + int(rng.integers(2)))
        for _ in range(_ATTEMPTS_PER_PLAN):
            scene = _try_scene(rng, plan, shape)
            if scene is not None and all(timed.event.kind != without for timed in scene.events):
                return scene


def scene_identity(scene: Scene) -> str:
    """A digest of everything in a scene: equal for equal scenes, different for different ones."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(scene), sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a scene is to hold. It is drawn before the attempts, or the scenes that fit easily would be the most."""

    duration_s: int
    hits: bool
    has_obstacle: bool
    leaves: bool
    num_recolours: int


def _draw_plan(rng: np.random.Generator) -> _Plan:
    durations = np.arange(MIN_DURATION_S, MAX_DURATION_S + 1)
    hits = bool(rng.random() < 0.55)
    return _Plan(
        duration_s=int(rng.choice(durations, p=_DURATION_WEIGHTS)),
        hits=hits,
        has_obstacle=hits or bool(rng.random() < 0.15),
        leaves=bool(rng.random() < 0.6),
        num_recolours=int(rng.choice([0, 1, 2, 3], p=[0.2, 0.4, 0.25, 0.15])),
    )


def _try_scene(rng: np.random.Generator, plan: _Plan, only: str | None = None) -> Scene | None:
    radius, speed = rng.uniform(*_RADIUS), rng.uniform(0.18, 0.26)
    shape, colour, side = _pick(rng, SHAPES), _pick(rng, COLOURS), _pick(rng, SIDES)
    shape = only or shape
    way = _draw_way(rng, plan, shape, radius, speed, side)
    if way is None:
        return None
    obstacle = _draw_obstacle(rng, way, shape, radius, colour) if plan.has_obstacle else None
    if obstacle is None and plan.has_obstacle:
        return None
    recolours = _draw_recolours(rng, plan, way, colour, radius / speed, obstacle)
    if recolours is None:
        return None
    start = TimedEvent(Event("enter", colour=colour, shape=shape, side=side), 0.0, SECONDS_PER_SAMPLE)
    later = [*way.events, *(_timed(Event("recolour", colour=new), time) for time, new in recolours)]
    if obstacle is not None and way.hit is not None:
        later.append(_timed(Event("hit", colour=obstacle.colour, shape=obstacle.shape), way.hit))
    events = (start, *sorted(later, key=lambda timed: timed.time_s))
    sentences = narrate(events, plan.duration_s)
    if sentences is None:
        return None
    return Scene(
        duration_s=plan.duration_s,
        shape=shape,
        radius=float(radius),
        tilt=float(rng.uniform(-0.15, 0.15)),
        path=way.corners,
        colours=((0.0, colour), *recolours),
        obstacle=obstacle,
        background=draw_background_of(rng),
        events=events,
        sentences=sentences,
    )


@dataclasses.dataclass(frozen=True)
class _Way:
    """The way of the mover: its corners, turns and leaving, the time of its hit (None: no hit) and the headings."""

    corners: tuple[tuple[float, float, float], ...]
    headings: tuple[str, ...]
    events: tuple[TimedEvent, ...]
    hit: float | None


def _draw_way(rng: np.random.Generator, plan: _Plan, shape: str, radius: float, speed: float, side: str) -> _Way | None:
    low, high = radius + 0.03, 1 - radius - 0.03
    heading = OPPOSITE[DIRECTION_OF_SIDE[side]]
    time, across = -float(rng.uniform(*_HEAD_START_S)), float(rng.uniform(low, high))
    x, y = {
        "left": (-radius, across),
        "right": (1 + radius, across),
        "top": (across, -radius),
        "bottom": (across, 1 + radius),
    }[side]
    corners, headings, events = [(time, x, y)], [heading], []
    earliest = time + (2 * radius + 0.03) / speed
    num_corners = int(rng.integers(max(plan.hits, (plan.duration_s - 4) // 3), plan.duration_s // 3 + 1))
    hit_corner = int(rng.integers(num_corners)) if plan.hits else None
    hit = None
    for corner in range(num_corners):
        dx, dy = _STEP[heading]
        latest = time + _room(x, y, heading, low, high) / speed
        if corner == hit_corner:
            latest -= 2 * radius / speed
        moment = _between_frames(rng, max(earliest, time + _STRETCH_S), latest)
        if moment is None:
            return None
        x, y = x + dx * speed * (moment - time), y + dy * speed * (moment - time)
        time = moment
        if corner == hit_corner:
            heading, hit = OPPOSITE[heading], time
        else:
            choices = [d for d in _STEP if d not in (heading, OPPOSITE[heading]) and _room(x, y, d, low, high) > speed]
            if not choices:
                return None
            heading = _pick(rng, choices)
            events.append(_timed(Event("turn", direction=heading), time))
        corners.append((time, x, y))
        headings.append(heading)
    return _finish_way(plan, corners, headings, events, hit, radius, speed)


def _finish_way(
    plan: _Plan,
    corners: list[tuple[float, float, float]],
    headings: list[str],
    events: list[TimedEvent],
    hit: float | None,
    radius: float,
    speed: float,
) -> _Way | None:
    """The last stretch: out of the picture, or on until the video ends."""
    time, x, y = corners[-1]
    heading = headings[-1]
    dx, dy = _STEP[heading]
    if plan.leaves:
        distance = _room(x, y, heading, -radius, 1 + radius)
        end = time + distance / speed
        behind = (end - SECONDS_PER_SAMPLE) % 1.0  # since the newest sample of a frame; a sliver in it is ambiguous
        if behind < 0.3 or end < time + _STRETCH_S or not 0.5 <= plan.duration_s - end <= 2.5:
            return None
        visible = math.ceil(end / SECONDS_PER_SAMPLE) * SECONDS_PER_SAMPLE
        events = [*events, TimedEvent(Event("leave", side=SIDE_OF_DIRECTION[heading]), end, visible)]
    else:
        end = float(plan.duration_s)
        distance = speed * (end - time)
        if end < time + 1 or distance > _room(x, y, heading, radius + 0.03, 1 - radius - 0.03):
            return None
    corners = [*corners, (end, x + dx * distance, y + dy * distance)]
    return _Way(tuple(corners), tuple(headings), tuple(events), hit)


def _draw_recolours(
    rng: np.random.Generator, plan: _Plan, way: _Way, colour: str, fade_s: float, obstacle: Obstacle | None
) -> tuple[tuple[float, str], ...] | None:
    """Times and colours of the changes, each in a frame of its own; None if there are too few frames."""
    first, last = max(2.0, way.corners[0][0] + 2 * fade_s), min(plan.duration_s - 1, way.corners[-1][0] - 2 * fade_s)
    busy = {int(corner[0]) for corner in way.corners[1:]}
    free = [f for f in range(math.ceil(first), math.floor(last)) if f not in busy]
    if len(free) < plan.num_recolours:
        return None
    frames = sorted(int(f) for f in rng.choice(free, plan.num_recolours, replace=False)) if plan.num_recolours else []
    taken = {colour} | ({obstacle.colour} if obstacle else set())
    new = [str(c) for c in rng.permutation([c for c in COLOURS if c not in taken])[: len(frames)]]
    return tuple((float(f + rng.uniform(*_EVENT_WINDOW_S)), c) for f, c in zip(frames, new, strict=True))


def _draw_obstacle(rng: np.random.Generator, way: _Way, shape: str, radius: float, colour: str) -> Obstacle | None:
    """The second shape: where the mover hits it, or out of its way; None if there is no room."""
    other, size = _pick(rng, SHAPES), float(rng.uniform(*_RADIUS))
    other_colour = _pick(rng, [c for c in COLOURS if c != colour])
    if way.hit is None:
        x, y = (float(value) for value in rng.uniform(size, 1 - size, 2))
        stretches = list(itertools.pairwise(way.corners))
    else:
        corner = next(index for index, (time, _, _) in enumerate(way.corners) if time == way.hit)
        heading = way.headings[corner - 1]
        dx, dy = _STEP[heading]
        apart = REACH[shape][heading] * radius + REACH[other][OPPOSITE[heading]] * size - 0.02
        x, y = way.corners[corner][1] + dx * apart, way.corners[corner][2] + dy * apart
        stretches = [p for i, p in enumerate(itertools.pairwise(way.corners)) if i not in (corner - 1, corner)]
    if not (size <= x <= 1 - size and size <= y <= 1 - size):
        return None
    if any(_distance(x, y, start, stop) < radius + size + 0.04 for start, stop in stretches):
        return None
    return Obstacle(other, other_colour, x, y, size)


def draw_background_of(rng: np.random.Generator) -> Background:
    """A texture, drawn at random."""
    grey = rng.uniform(55, 120)
    red, green, blue = (float(value) for value in grey + rng.uniform(-10, 10, 3))
    return Background(
        kind=_pick(rng, BACKGROUNDS),
        rgb=(red, green, blue),
        contrast=float(rng.uniform(6, 12)),
        period=float(rng.uniform(0.12, 0.3)),
        angle=float(rng.uniform(0, math.pi)),
        seed=int(rng.integers(2**31)),
    )


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _timed(event: Event, time: float) -> TimedEvent:
    """An event between two frames: it shows in the first sample of the next one."""
    return TimedEvent(event, time, float(math.ceil(time)))


def _between_frames(rng: np.random.Generator, earliest: float, latest: float) -> float | None:
    """A random time in the interval, after the second sample of some frame and well before the first of the next."""
    spans = [
        (max(earliest, f + _EVENT_WINDOW_S[0]), min(latest, f + _EVENT_WINDOW_S[1]))
        for f in range(math.floor(earliest), math.ceil(latest) + 1)
    ]
    spans = [(start, stop) for start, stop in spans if stop > start]
    if not spans:
        return None
    start, stop = spans[int(rng.integers(len(spans)))]
    return float(rng.uniform(start, stop))


def _room(x: float, y: float, heading: str, low: float, high: float) -> float:
    """How far a point may go in a direction before it leaves the interval [low, high]."""
    return {"left": x - low, "right": high - x, "up": y - low, "down": high - y}[heading]


def _distance(x: float, y: float, start: tuple[float, float, float], stop: tuple[float, float, float]) -> float:
    """From a point to a stretch of a way; stretches run along an axis."""
    (_, x0, y0), (_, x1, y1) = start, stop
    nearest_x = min(max(x, min(x0, x1)), max(x0, x1))
    nearest_y = min(max(y, min(y0, y1)), max(y0, y1))
    return math.hypot(x - nearest_x, y - nearest_y)
