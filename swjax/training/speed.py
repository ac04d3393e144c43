"""How fast a run is: seconds and tokens of each step, the share of its chips that it uses, and the time left."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import jax
import numpy as np

from swjax.chips import CHIPS, chip_of
from swjax.models.config import ModelConfig
from swjax.training.flops import model_flops, rows_of_batch
from swjax.training.step import TrainState

SPEED = ("seconds_per_step", "tokens_per_second", "mfu", "seconds_left")
"""What a run says of its speed; unlike its other metrics, never twice the same."""


class StepClock:
    """Times the steps of a run. What lies between two steps, as validation, belongs to none if `pause` is called.

    The first step, which compiles, is not counted in what is left.
    """

    def __init__(self, steps: int, flops: Callable[[Mapping[str, np.ndarray]], float], peak: float | None) -> None:
        """Start the clock.

        Args:
            steps: of the whole run.
            flops: operations that the model needs for a batch of all processes, from this process's rows.
            peak: operations that all devices do in a second at most; None where that is not known.
        """
        self._steps, self._flops, self._peak = steps, flops, peak
        self._needed: dict[int, float] = {}
        self._last = time.perf_counter()
        self._smooth: float | None = None
        self._is_first = True

    def begin(self, step: int, rows: Mapping[str, np.ndarray]) -> None:
        """Notes what a step has to compute."""
        if self._peak:
            self._needed[step] = self._flops(rows)

    def pause(self) -> None:
        """What came since the last step was no step."""
        self._last = time.perf_counter()

    def read(self, step: int, tokens: float) -> dict[str, float]:
        """The speed of a step that has just ended.

        Args:
            step: which.
            tokens: that it trained on.

        Returns:
            Those of `SPEED` that are known: seconds, tokens a second, share of the peak (MFU), and seconds left.
        """
        now = time.perf_counter()
        seconds, self._last = max(now - self._last, 1e-9), now
        if not self._is_first:
            self._smooth = seconds if self._smooth is None else 0.9 * self._smooth + 0.1 * seconds
        self._is_first = False
        found = {"seconds_per_step": seconds, "tokens_per_second": tokens / seconds}
        if self._peak:
            found["mfu"] = self._needed.pop(step) / seconds / self._peak
        found["seconds_left"] = (self._smooth or seconds) * (self._steps - step)
        return found


def start_clock(
    steps: int, model: ModelConfig, state: TrainState, parts: int, *, dtype: str, keeps_features: bool
) -> StepClock:
    """A clock for a run on the devices that are there.

    Args:
        steps: of the whole run.
        model: the model's sizes.
        state: its shapes.
        parts: in how many parts the rows of a batch are read by the processes.
        dtype: of the computations.
        keeps_features: whether batches have features in the place of pixels.
    """
    shapes = {**state.trainable, **state.frozen}
    if keeps_features:  # the step runs the merger alone
        shapes = {path: leaf for path, leaf in shapes.items() if not path.startswith("visual/") or "merger" in path}

    def flops(rows: Mapping[str, np.ndarray]) -> float:
        held = rows_of_batch(model, rows)
        held = replace(held, vision_pairs=0.0) if keeps_features else held
        return parts * sum(model_flops(model, held, shapes, state.trainable).values())

    kind = jax.devices()[0].device_kind
    known = any(kind.startswith(name) for name in CHIPS) and dtype == "bfloat16"
    return StepClock(steps, flops, jax.device_count() * chip_of(kind).flops if known else None)


def describe_step(step: int, steps: int, metrics: Mapping[str, float]) -> str:
    """One line of a log: loss, learning rate and speed of a step.

    Args:
        step, steps: which, and of how many.
        metrics: those of the step, with its speed.
    """
    left = round(metrics["seconds_left"])
    parts = [
        f"loss {metrics['loss']:.4f}",
        f"lr {metrics['learning_rate']:.2e}",
        f"{metrics['tokens_per_second']:,.0f} tokens/s",
        f"{metrics['seconds_per_step']:.3g} s/step",
        *([f"MFU {metrics['mfu']:.1%}"] if "mfu" in metrics else []),
        f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left",
    ]
    return f"step {step}/{steps}: {', '.join(parts)}"
