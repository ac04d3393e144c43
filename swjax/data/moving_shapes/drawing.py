"""Draws scenes of Moving Shapes: textured backgrounds and anti-aliased shapes with an outline, as RGB frames."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from swjax.data.moving_shapes.scene import Background, Scene

COLOUR_RGB = {
    "red": (226, 44, 40),
    "green": (38, 176, 62),
    "blue": (38, 84, 236),
    "yellow": (246, 216, 34),
    "purple": (172, 54, 206),
    "white": (246, 246, 242),
}
OUTLINE_RGB = (18, 18, 22)
OUTLINE = 0.018  # width of the outline, in picture widths
FADE_S = 0.1  # how long a change of colour takes
SMOOTHING_S = 0.08  # corners of the way are rounded over this time to either side


def draw_frames(scene: Scene, *, size: int, fps: int) -> UInt8[np.ndarray, "frames size size 3"]:
    """All frames of a scene, `duration_s * fps` of them, of size x size pixels.

    Args:
        scene: what is drawn.
        size: height and width in pixels.
        fps: frames a second; the first is at time 0.
    """
    times = np.arange(scene.duration_s * fps) / fps
    still = draw_background(scene.background, size).round().astype(np.uint8)[None]
    if scene.obstacle is not None:
        other = scene.obstacle
        colour = np.array([COLOUR_RGB[other.colour]], np.float32)
        _draw_shape(still, other.shape, other.radius, 0.0, np.array([[other.x, other.y]]), colour)
    frames = np.repeat(still, len(times), axis=0)
    draw_mover(frames, scene, times)
    return frames


def draw_mover(frames: UInt8[np.ndarray, "N size size 3"], scene: Scene, times: Float64[np.ndarray, "N"]) -> None:
    """Draw the mover of a scene into frames, in place, as it is at `times` in seconds.

    Args:
        frames: RGB, with what stands still; written to.
        scene: whose mover it is.
        times: of each frame, in seconds from the start of the scene.
    """
    where, colours = positions(scene, times), mover_colours(scene, times)
    _draw_shape(frames, scene.shape, scene.radius, scene.tilt, where, colours)


def positions(scene: Scene, times: Float64[np.ndarray, "N"]) -> Float64[np.ndarray, "N 2"]:
    """Centres (x, y) of the mover in picture widths at `times` in seconds. Corners are rounded."""
    path = np.array(scene.path)
    around = times[:, None] + np.linspace(-SMOOTHING_S, SMOOTHING_S, 5)
    before, after = path[1, 1:] - path[0, 1:], path[-1, 1:] - path[-2, 1:]
    first, last = path[0, 0] - 1.0, path[-1, 0] + 1.0  # it comes from beyond the border, and goes on beyond the end
    path = np.concatenate(
        [
            [[first, *(path[0, 1:] - before / (path[1, 0] - path[0, 0]))]],
            path,
            [[last, *(path[-1, 1:] + after / (path[-1, 0] - path[-2, 0]))]],
        ]
    )
    return np.stack([np.interp(around, path[:, 0], path[:, axis]).mean(axis=1) for axis in (1, 2)], axis=1)


def mover_colours(scene: Scene, times: np.ndarray) -> Float32[np.ndarray, "N 3"]:
    """The mover's colour (0 to 255) at `times`: each change fades in within `FADE_S`."""
    colours = np.tile(np.array(COLOUR_RGB[scene.colours[0][1]], np.float32), (len(times), 1))
    for time, name in scene.colours[1:]:
        share = np.clip((times - time) / FADE_S, 0, 1)[:, None].astype(np.float32)
        colours += share * (np.array(COLOUR_RGB[name], np.float32) - colours)
    return colours


def draw_background(background: Background, size: int) -> Float32[np.ndarray, "size size 3"]:
    """The texture as RGB, 0 to 255."""
    rng = np.random.default_rng(background.seed)
    x, y = (np.indices((size, size), dtype=np.float32)[::-1] + 0.5) / size
    turned = math.cos(background.angle) * x + math.sin(background.angle) * y
    across = math.cos(background.angle) * y - math.sin(background.angle) * x
    wave = np.float32(2 * math.pi / background.period)
    if background.kind == "stripes":
        pattern = np.sin(wave * turned)
    elif background.kind == "checks":
        pattern = np.tanh(4 * np.sin(wave * turned) * np.sin(wave * across))
    elif background.kind == "dots":
        pattern = np.tanh(4 * (np.cos(wave * turned) + np.cos(wave * across) - 0.8))
    elif background.kind == "gradient":
        pattern = 2 * (turned - turned.min()) / np.ptp(turned) - 1
    elif background.kind == "noise":
        pattern = _value_noise(rng, size, max(2, round(1 / background.period)))
    elif background.kind == "grain":
        pattern = _value_noise(rng, size, 4) + 0.5 * _value_noise(rng, size, size // 4)
    else:
        raise ValueError(f"unknown kind of background {background.kind!r}")
    tint = rng.uniform(0.7, 1.0, 3).astype(np.float32)
    picture = np.array(background.rgb, np.float32) + background.contrast * pattern[..., None].astype(np.float32) * tint
    return np.clip(picture, 0, 255).astype(np.float32)


def _value_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Random values on a grid, smoothly interpolated; about -1 to 1."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    at = np.linspace(0, cells, size, endpoint=False, dtype=np.float32)
    low = at.astype(int)
    share = at - low
    share = share * share * (3 - 2 * share)
    rows = grid[low] * (1 - share[:, None]) + grid[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def _draw_shape(
    frames: UInt8[np.ndarray, "N size size 3"],
    shape: str,
    radius: float,
    tilt: float,
    where: Float64[np.ndarray, "N 2"],
    colours: Float32[np.ndarray, "N 3"],
) -> None:
    """Draw a shape into frames, in place: one position (picture widths) and one colour (0 to 255) a frame.

    Positions are rounded to a quarter of a pixel, so that a few pictures of the shape serve all frames.
    """
    size = frames.shape[1]
    half = math.ceil((1.2 * radius + OUTLINE) * size) + 1
    centre = np.round(where * size * 4) / 4
    corner = np.floor(centre).astype(int) - half
    parts = centre - np.floor(centre)
    looks, which = np.unique(np.concatenate([parts, colours], axis=1), axis=0, return_inverse=True)
    distance = _shape_distance(shape, radius * size, tilt, looks[:, :2], half)
    cover, fill = np.clip(0.5 - distance, 0, 1), np.clip(0.5 - distance - OUTLINE * size, 0, 1)
    under = np.repeat(1 - cover, 3, axis=-1)
    ink = (cover - fill) * np.array(OUTLINE_RGB) + fill * looks[:, None, None, 2:] + 0.5  # a half, to round
    under, ink = under.astype(np.float32), ink.astype(np.float32)
    for frame, (left, top), look in zip(frames, corner, which.reshape(-1), strict=True):
        rows = slice(max(0, -top), min(2 * half, size - top))
        columns = slice(max(0, -left), min(2 * half, size - left))
        if rows.start < rows.stop and columns.start < columns.stop:
            window = frame[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
            window[...] = window * under[look, rows, columns] + ink[look, rows, columns]


def _shape_distance(
    shape: str, radius: float, tilt: float, parts: Float64[np.ndarray, "M 2"], half: int
) -> Float64[np.ndarray, "M P P 1"]:
    """How far each pixel is outside of the shape, in pixels; its centre is `parts` (0 to 1) past the middle."""
    offsets = np.arange(2 * half) + 0.5 - half
    x, y = (offsets - parts[:, :1])[:, None, :], (offsets - parts[:, 1:])[:, :, None]
    cos, sin = math.cos(tilt), math.sin(tilt)
    return _DISTANCES[shape](x * cos + y * sin, y * cos - x * sin, radius)[..., None]


def _circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.hypot(x, y) - radius


def _square(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.85 * radius


def _triangle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Equilateral, on its base; its centre of mass is at the origin."""
    return np.maximum(math.sqrt(3) / 2 * np.abs(x) - 0.5 * y, y) - 0.575 * radius


_DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
}
