"""The compiled functions behind a stream: encode a frame, write tokens into the cache, choose the next one."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, UInt8

from swjax.inference.sampler import SamplingRows, mark_said, sample
from swjax.inference.weights import Weights
from swjax.models.cache import KeyValueCache
from swjax.models.config import ModelConfig
from swjax.models.model import VideoLanguageModel
from swjax.models.parameters import merge_parameters
from swjax.streaming import KeySpans


class Engine:
    """A model ready to stream. One engine serves any number of sessions, one after another or side by side."""

    def __init__(self, model: VideoLanguageModel):
        self.config: ModelConfig = model.config
        weights = Weights(model)
        self._parameters = weights.parameters
        self._compiled = _compiled(weights.structure)
        self._dtype = self._parameters["decoder/embedding_vd"].dtype

    def new_cache(self, slots: int) -> KeyValueCache:
        """An empty cache for one stream."""
        return KeyValueCache.empty(self.config.text, batch=1, slots=slots, dtype=self._dtype)

    def encode_frame(self, patches: UInt8[np.ndarray, "P C"], grid_hw: tuple[int, int]) -> Float[Array, "1 U D"]:
        """Features of one frame."""
        return self._compiled.encode(self._parameters, patches, np.array([[1, *grid_hw]], np.int32))

    def write(
        self,
        cache: KeyValueCache,
        token_ids: Int32[np.ndarray, "L"],
        position_ids: Int32[np.ndarray, "3 L"],
        spans: KeySpans,
        slots: Int32[np.ndarray, "L"],
        features: Float[Array, "1 U D"] | None = None,
    ) -> tuple[Float[Array, "1 V"], KeyValueCache]:
        """Write tokens into the cache; returns the scores of what follows the last of them, and the cache.

        The cache that is handed in is used up.
        """
        order = np.argsort(slots)
        last = np.flatnonzero(order == len(slots) - 1)
        edges = KeySpans(*(edge[None, order] for edge in spans))
        rows = token_ids[None, order], position_ids[:, None, order], edges, slots[None, order]
        return self._compiled.write(self._parameters, cache, *rows, last, features)

    def choose(
        self, logits: Float[Array, "1 V"], said: Bool[Array, "1 V"], rows: SamplingRows
    ) -> tuple[Int32[Array, ""], Bool[Array, "1 V"]]:
        """Choose the next token; returns it, and `said` with it."""
        return _choose(logits, said, rows)


class _Compiled(NamedTuple):
    """What an engine runs of one structure."""

    encode: Any
    write: Any


@functools.cache
def _compiled(structure: nnx.GraphDef) -> _Compiled:
    """Bound to its structure, as the passes of a lane are, so that no call computes its hash."""
    return _Compiled(
        jax.jit(functools.partial(_encode, structure)),
        jax.jit(functools.partial(_write, structure), donate_argnums=1),
    )


def _encode(structure: nnx.GraphDef, parameters: Any, patches: Array, grid_thw: Array) -> Array:
    return merge_parameters(structure, parameters).encode_video(patches, grid_thw)[None]


def _write(
    structure: nnx.GraphDef,
    parameters: Any,
    cache: KeyValueCache,
    token_ids: Array,
    position_ids: Array,
    spans: KeySpans,
    slots: Array,
    last: Array,
    features: Array | None,
) -> tuple[Array, KeyValueCache]:
    model = merge_parameters(structure, parameters)
    hidden, cache = model.extend(token_ids, position_ids, spans, cache=cache, slots=slots, video_features=features)
    return model.logits(hidden[:, last[0]]), cache


@jax.jit
def _choose(logits: Array, said: Array, rows: SamplingRows) -> tuple[Array, Array]:
    tokens = sample(logits, said, rows)
    return tokens[0], mark_said(said, tokens, jnp.ones(1, bool))
