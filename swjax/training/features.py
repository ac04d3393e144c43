"""What a frozen vision tower makes of each image and video, kept from epoch to epoch instead of being encoded again."""

import hashlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike, Float, UInt8

from swjax.models.config import ModelConfig
from swjax.models.family import abstract_model
from swjax.models.parameters import merge_parameters, split_parameters
from swjax.training.config import ConfigError
from swjax.training.step import TrainState

KEY = "config.data.feature_cache_mb"

Encode = Callable[[UInt8[np.ndarray, "P C"], tuple[int, int, int]], Float[np.ndarray, "P D"]]
"""The features of the patches of one image or video, of a size (t, h, w) in patches."""


class FeatureCache:
    """Puts features in the place of a batch's pixels.

    Each image and video is encoded by itself, padded to a power of two, so its features are the same bits whatever
    stands beside it, kept or not. What comes first is kept, up to a number of bytes: epochs meet all alike.

    Args:
        encode: makes the features.
        max_bytes: of the features that are kept.
    """

    def __init__(self, encode: Encode, max_bytes: int) -> None:
        self.encode, self._max_bytes = encode, max_bytes
        self._kept: dict[tuple[bytes, tuple[int, ...]], np.ndarray] = {}
        self.num_bytes = self.encoded = 0

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with `pixel_values` [rows, P, D]; patches behind the videos are zero."""
        found: np.ndarray | None = None
        rows, patches, _ = batch["pixel_values"].shape
        for row, grids in enumerate(batch["video_grid_thw"]):
            first = 0
            for grid in grids[grids.any(axis=1)]:
                stop = first + int(grid.prod())
                features = self._features(batch["pixel_values"][row, first:stop], tuple(map(int, grid)))
                if found is None:
                    found = np.zeros((rows, patches, features.shape[1]), features.dtype)
                found[row, first:stop] = features
                first = stop
        if found is None:  # text alone: a frame of nothing has the width of features
            unit = np.zeros((4, batch["pixel_values"].shape[2]), np.uint8)
            features = self.encode(unit, (1, 2, 2))
            found = np.zeros((rows, patches, features.shape[1]), features.dtype)
        return {**batch, "pixel_values": found}

    def _features(self, pixels: UInt8[np.ndarray, "P C"], grid: tuple[int, ...]) -> np.ndarray:
        key = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(), grid
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        features = self.encode(pixels, grid)  # type: ignore[arg-type]
        self.encoded += 1
        if self.num_bytes + features.nbytes <= self._max_bytes:
            self._kept[key] = features
            self.num_bytes += features.nbytes
        return features


def open_feature_cache(
    megabytes: int, dtype: DTypeLike, model_config: ModelConfig, state: TrainState
) -> FeatureCache | None:
    """The cache of a run; None where it is not asked for.

    Args:
        megabytes: of features that are kept; 0 asks for none.
        dtype: of the computations.
        model_config: the model's sizes.
        state: whose tower is copied to one device.

    Raises:
        ConfigError: the tower trains, its family cannot do without pixels, or the run has several processes.
    """
    if not megabytes:
        return None
    trains = sorted(path for path in state.trainable if path.startswith("visual/") and "visual/merger" not in path)
    if trains:
        raise ConfigError(f"{KEY} needs a vision tower that is frozen, and {trains[0]} trains; set {KEY}=0")
    if jax.process_count() > 1:
        raise ConfigError(f"{KEY} works in one process, and there are {jax.process_count()}; set {KEY}=0")
    dtype = jnp.dtype(dtype)
    model = abstract_model(model_config, param_dtype=dtype)
    width = getattr(model_config.vision, "hidden_size", model_config.geometry.patch_dim)
    if not hasattr(model.visual, "patch_features") or width == model_config.geometry.patch_dim:
        raise ConfigError(f"{KEY}: this model's vision tower keeps no features; set {KEY}=0")
    structure, shapes = split_parameters(model.visual)
    device = jax.local_devices()[0]

    def copied(path: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
        # Through the host: the state's own buffers are given to each step. The merger is not run.
        leaf = state.frozen.get(f"visual/{path}")
        whole = np.zeros(shape.shape, dtype) if leaf is None else np.asarray(leaf)
        return jax.device_put(whole.astype(dtype), device)

    parameters = {path: copied(path, shape) for path, shape in shapes.items()}

    @jax.jit
    def run(parameters: Mapping[str, jax.Array], pixels: jax.Array, grid: jax.Array) -> jax.Array:
        return merge_parameters(structure, parameters).patch_features(pixels[None], grid[None, None])[0]

    def encode(pixels: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
        size = max(16, 1 << (len(pixels) - 1).bit_length())
        padded = np.pad(pixels, ((0, size - len(pixels)), (0, 0)))
        with jax.default_device(device):
            return np.asarray(run(parameters, padded, np.array(grid, np.int32)))[: len(pixels)]

    return FeatureCache(encode, megabytes * 1_000_000)
