"""The operations that a training step needs by the sizes of the model alone, whoever computes them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from swjax.models.config import ModelConfig
from swjax.models.parameters import Leaves


@dataclass(frozen=True)
class Rows:
    """Rows of a step, one streaming video of a frame a second in each, that fill them.

    Attributes:
        count: rows of a step.
        tokens, patches, labels: of a row.
        decoder_pairs: pairs of query and key that see each other in a row.
        vision_pairs: the same in a layer of the vision tower, the mean over its layers.
        seconds: of video in a row.
    """

    count: int
    tokens: int
    patches: int
    labels: int
    decoder_pairs: float
    vision_pairs: float
    seconds: float


def model_flops(model: ModelConfig, rows: Rows, shapes: Leaves, trainable: Iterable[str]) -> dict[str, float]:
    """Operations of a step that any implementation needs: for each parameter and token 2 forward and 4 more backward.

    Half of those backward are for the gradient of what trains, so a frozen weight behind one that trains needs 2.
    What has nothing trained before it needs no backward pass; recomputation is not counted.

    Args:
        model: its sizes.
        rows: of the step.
        shapes: path -> anything with a `shape`, of all parameters.
        trainable: paths of those that train.

    Returns:
        Operations of `decoder`, `vision`, `head`, `decoder attention` and `vision attention`.
    """
    trained = set(trainable)
    vision_trains = any(path.startswith("visual/") and "merger" not in path for path in trained)
    text, vision = model.text, model.vision
    sizes = {path: float(np.prod(array.shape)) for path, array in shapes.items()}

    def each(paths: Iterable[str], behind: bool) -> float:
        """Operations a token of some weights; `behind` says whether what goes into them needs a gradient."""
        return sum(sizes[path] * (2.0 + 2.0 * behind + 2.0 * (path in trained)) for path in paths)

    layers = [path for path in sizes if re.search(r"(^|/)layers/", path) and "visual" not in path]
    merger = [path for path in sizes if path.startswith("visual/") and "merger" in path]
    tower = [path for path in sizes if path.startswith("visual/") and "merger" not in path]
    merger_trains = vision_trains or not trained.isdisjoint(merger)
    head = 4.0 + 2.0 * any(path.startswith(("decoder/head", "decoder/embedding")) for path in trained)
    merged = rows.patches / vision.spatial_merge_size**2
    backward = 3.0 if vision_trains else 1.0
    decoder_pair = 4.0 * text.num_layers * text.num_heads * text.head_dim
    vision_pair = 4.0 * vision.depth * vision.num_heads * vision.head_dim
    return {
        "decoder": rows.count * each(layers, True) * rows.tokens,
        "vision": rows.count * (each(tower, vision_trains) * rows.patches + each(merger, merger_trains) * merged),
        "head": rows.count * head * text.vocab_size * text.hidden_size * rows.labels,
        "decoder attention": rows.count * 3.0 * decoder_pair * rows.decoder_pairs,
        "vision attention": rows.count * backward * vision_pair * rows.vision_pairs,
    }


def rows_of_batch(model: ModelConfig, batch: Mapping[str, np.ndarray]) -> Rows:
    """What the rows of a batch hold together, as one row: its real tokens and patches, not the padding.

    Args:
        model: the model's sizes.
        batch: host arrays, rows first, as `swjax.data.batching` makes them.
    """
    seen = (batch["span_stop"] - batch["span_start"]).astype(np.int64)
    is_padding = (batch["token_ids"] == 0) & (seen == 1)
    grids = batch["video_grid_thw"].reshape(-1, 3).astype(np.int64)
    frames, patches = grids[:, 0], grids[:, 1] * grids[:, 2]
    pairs = sum(
        float(t * p * width) * layers
        for t, p in zip(frames.tolist(), patches.tolist(), strict=True)
        for width, layers in (model.vision.widths(p) if t * p else ())
    )
    return Rows(
        count=1,
        tokens=int((~is_padding).sum()),
        patches=int((frames * patches).sum()),
        labels=int((batch["labels"] >= 0).sum()),
        decoder_pairs=float(seen[~is_padding].sum()),
        vision_pairs=pairs / model.vision.depth,
        seconds=float(frames.sum()),
    )
