"""The parameters of a run at a glance: how many there are, which train, and what each is."""

from collections.abc import Iterator
from typing import Any

from swjax.training.step import TrainState


def describe_parameters(state: TrainState) -> Iterator[str]:
    """A line for all parameters, and one for each part of the model, with how many of them train.

    Args:
        state: a state or its shapes.
    """
    parts: dict[str, list[int]] = {}
    for path, leaf, trains in _parameters(state):
        counts = parts.setdefault("/".join(path.split("/")[:2]) if path.count("/") > 1 else path.split("/")[0], [0, 0])
        counts[0] += leaf.size
        counts[1] += leaf.size if trains else 0
    total, trained = (sum(counts[number] for counts in parts.values()) for number in (0, 1))
    yield f"{total:,} parameters, {trained:,} of them train"
    width = max(map(len, parts))
    for part, (size, training) in parts.items():
        what = "all train" if training == size else f"{training:,} train" if training else "frozen"
        yield f"  {part:<{width}}  {size:>15,}  {what}"


def parameter_lines(state: TrainState) -> Iterator[str]:
    """A line for every parameter: path, shape, dtype, size, whether it trains, and the mesh axes that divide it.

    Args:
        state: shapes with shardings, from `swjax.training.program.make_program`.
    """
    width = max(map(len, {**state.trainable, **state.frozen}))
    for path, leaf, trains in _parameters(state):
        axes = [str(axis) for axis in leaf.sharding.spec if axis is not None]
        over = f"  over {', '.join(axes)}" if axes else ""
        kind = "trains" if trains else "frozen"
        shape = " x ".join(map(str, leaf.shape))
        yield f"{path:<{width}}  {shape:>20}  {leaf.dtype!s:>8}  {leaf.size:>15,}  {kind}{over}"


def _parameters(state: TrainState) -> Iterator[tuple[str, Any, bool]]:
    """Path, leaf and whether it trains, in the order of the paths."""
    both = {**state.trainable, **state.frozen}
    for path in sorted(both):
        yield path, both[path], path in state.trainable
