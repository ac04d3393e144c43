"""A lane: weights, cache and frame features on one device (or mesh), and the compiled pass that advances all rows.

A row of a pass holds the tokens of one stream, whatever they are: parts of a frame, the word that was spoken last, the
prompt. All of them go through the weights together; their spans say what each may see. Rows are padded to one of a few
sizes, so that nothing recompiles.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int32, UInt8

from swjax.conversion.parameters import merge_parameters, split_parameters
from swjax.inference.sampler import Sampling, SamplingRows, mark_said, sample
from swjax.inference.track import Tokens
from swjax.models.qwen2_5_vl import KeyValueCache, Qwen2_5_VL, Qwen2_5_VLConfig
from swjax.models.qwen2_5_vl.model import abstract_model
from swjax.streaming import KeySpans

NO_FEATURE = -1


class RowTokens(NamedTuple):
    """The tokens of one row of a pass.

    Attributes:
        tokens: what is written; slots and spans count from the stream's origin.
        features: for each, its place in the row's inbox of frame features; `NO_FEATURE` for text.
        origin: slot of the lane's cache at which the stream's first source is stored.
    """

    tokens: Tokens
    features: Int32[np.ndarray, "N"]
    origin: int


class Piece(NamedTuple):
    """Keys and values of some slots of one row: [layers, n, K, H] each."""

    keys: Float[Array, "layers n K H"]
    values: Float[Array, "layers n K H"]


class _Batch(NamedTuple):
    token_ids: Any
    positions: Any
    spans: KeySpans
    slots: Any
    features: Any
    last: Any
    speaks: Any


class Lane:
    """What one device holds and computes for all rows.

    Attributes:
        left: slots to the left of the origin in rows of grouped designs.
        slots: slots of every row.
        passes: passes that have been run.
    """

    def __init__(
        self,
        model: Qwen2_5_VL,
        *,
        rows: int,
        left: int,
        right: int,
        frame_units: int,
        inbox_frames: int,
        sharding: jax.sharding.Sharding | None = None,
    ):
        self._structure, parameters = split_parameters(model)
        self._config, self._rows, self._sharding = model.config, rows, sharding
        self.frame_units, self.inbox_frames, self.left = frame_units, inbox_frames, left
        self._parameters = parameters if sharding is None else jax.device_put(parameters, sharding)
        text, dtype = model.config.text, parameters["decoder/embedding_vd"].dtype
        self._cache = self._put(KeyValueCache.empty(text, batch=rows, slots=left + right, dtype=dtype))
        self._inbox = self._put(jnp.zeros((rows, inbox_frames, frame_units, text.hidden_size), dtype))
        self._said = self._put(jnp.zeros((rows, text.vocab_size), bool))
        self.passes = 0

    @property
    def slots(self) -> int:
        """Slots of every row."""
        return self._cache.slots

    def grow(self, left: int, right: int) -> None:
        """Add slots to every row."""
        self._cache = self._put(self._cache.grown(left, right))
        self.left += left

    def forget(self, row: int) -> None:
        """Make a row ready for a new stream. What is stored there is never seen again, so it stays."""
        self._said = self._said.at[row].set(False)

    def encode(self, row: int, place: int, patches: UInt8[np.ndarray, "P C"], grid_hw: tuple[int, int]) -> None:
        """Encode a frame into a place of a row's inbox; returns before it is done."""
        grid = np.array([[1, *grid_hw]], np.int32)
        self._inbox = _encode(
            self._structure, self._parameters, self._inbox, patches, grid, np.int32(row), np.int32(place)
        )

    def advance(
        self,
        tokens: Mapping[int, RowTokens],
        size: int,
        speaking: Mapping[int, Any],
        choices: SamplingRows,
    ) -> Int32[Array, "B"]:
        """Write tokens of some rows in one pass over the weights; returns before it is done.

        Args:
            tokens: what to write, by row.
            size: length to which rows are padded.
            speaking: the rows in which the token that follows the last one is to be chosen.
            choices: how each row chooses.

        Returns:
            The tokens chosen; those of other rows mean nothing.
        """
        batch = self._assemble(tokens, size, speaking)
        chosen, self._cache, self._said = _advance(
            self._structure, bool(speaking), self._parameters, self._cache, self._said, self._inbox, batch, choices
        )
        self.passes += 1
        return chosen

    def take(self, row: int, first: int, count: int) -> Piece:
        """A copy of the keys and values of `count` slots of a row."""
        return _take(self._cache, np.int32(row), np.int32(first), count)

    def put(self, row: int, first: int, piece: Piece) -> None:
        """Store keys and values that another lane has computed; they are moved to this lane's devices first."""
        self._cache = _store(self._cache, np.int32(row), np.int32(first), self.fetch(piece))

    def fetch(self, piece: Piece) -> Piece:
        """Move keys and values to this lane's devices; returns before they are there."""
        return piece if self._sharding is None else jax.device_put(piece, self._sharding)

    def _put(self, arrays: Any) -> Any:
        return arrays if self._sharding is None else jax.device_put(arrays, self._sharding)

    def _assemble(self, tokens: Mapping[int, RowTokens], size: int, speaking: Mapping[int, Any]) -> _Batch:
        shape = (self._rows, size)
        ids, start, stop = (np.zeros(shape, np.int32) for _ in range(3))
        positions = np.zeros((3, *shape), np.int32)
        # Slots beyond the cache are not written, and empty spans see nothing.
        slots = np.full(shape, self.slots, np.int32)
        features = np.full(shape, NO_FEATURE, np.int32)
        last, speaks = np.zeros(self._rows, np.int32), np.zeros(self._rows, bool)
        for row, (piece, places, origin) in tokens.items():
            count = len(piece.token_ids)
            ids[row, :count], features[row, :count] = piece.token_ids, places
            positions[:, row, :count] = piece.positions
            start[row, :count], stop[row, :count] = piece.start + origin, piece.stop + origin
            slots[row, :count] = piece.slots + origin
            last[row] = count - 1
        speaks[list(speaking)] = True
        return _Batch(ids, positions, KeySpans(start, stop), slots, features, last, speaks)


def lower_pass(
    config: Qwen2_5_VLConfig, *, rows: int, size: int, slots: int, dtype: DTypeLike, sharding: jax.sharding.Sharding
) -> jax.stages.Lowered:
    """The pass that a lane runs, lowered for devices that need not be there.

    Args:
        config: the model's sizes.
        rows: streams (B).
        size: tokens of a row, of frames and words together.
        slots: of every row's cache.
        dtype: of weights, cache and computations.
        sharding: where all of it lies.
    """
    structure, parameters = split_parameters(abstract_model(config, param_dtype=dtype))
    text, frame_units = config.text, size

    def make() -> tuple[Any, ...]:
        numbers = jnp.zeros((rows, size), jnp.int32)
        batch = _Batch(
            token_ids=numbers,
            positions=jnp.zeros((3, rows, size), jnp.int32),
            spans=KeySpans(numbers, numbers),
            slots=numbers,
            features=numbers,
            last=jnp.zeros(rows, jnp.int32),
            speaks=jnp.zeros(rows, bool),
        )
        choices = SamplingRows.of([Sampling()] * rows, [0] * rows)
        return (
            KeyValueCache.empty(text, batch=rows, slots=slots, dtype=dtype),
            jnp.zeros((rows, text.vocab_size), bool),
            jnp.zeros((rows, 1, frame_units, text.hidden_size), dtype),
            batch,
            jax.tree.map(jnp.asarray, choices),
        )

    shapes = (parameters, *jax.eval_shape(make))
    placed = jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=sharding), shapes)
    return _advance.lower(structure, True, *placed)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _encode(
    structure: nnx.GraphDef, parameters: Any, inbox: Array, patches: Array, grid_thw: Array, row: Array, place: Array
) -> Array:
    features = merge_parameters(structure, parameters).encode_video(patches, grid_thw)
    return jax.lax.dynamic_update_slice(inbox, features[None, None].astype(inbox.dtype), (row, place, 0, 0))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4))
def _advance(
    structure: nnx.GraphDef,
    with_head: bool,
    parameters: Any,
    cache: KeyValueCache,
    said: Bool[Array, "B V"],
    inbox: Float[Array, "B R U D"],
    batch: _Batch,
    choices: SamplingRows,
) -> tuple[Int32[Array, "B"], KeyValueCache, Bool[Array, "B V"]]:
    model = merge_parameters(structure, parameters)
    x = model.decoder.embed(batch.token_ids)
    rows = jnp.arange(x.shape[0])
    flat = inbox.reshape(inbox.shape[0], -1, inbox.shape[-1])
    features = flat[rows[:, None], jnp.maximum(batch.features, 0)]
    x = jnp.where(batch.features[..., None] >= 0, features.astype(x.dtype), x)
    hidden, cache = model.decoder.extend(x, batch.positions, batch.spans, cache, batch.slots)
    if not with_head:
        return jnp.zeros(len(rows), jnp.int32), cache, said
    chosen = sample(model.logits(hidden[rows, batch.last]), said, choices)
    return chosen, cache, mark_said(said, chosen, batch.speaks)


@functools.partial(jax.jit, static_argnums=3)
def _take(cache: KeyValueCache, row: Array, first: Array, count: int) -> Piece:
    layers, _, _, heads, width = cache.keys.shape
    where, size = (0, row, first, 0, 0), (layers, 1, count, heads, width)
    return Piece(*(jax.lax.dynamic_slice(x, where, size)[:, 0] for x in cache))


@functools.partial(jax.jit, donate_argnums=0)
def _store(cache: KeyValueCache, row: Array, first: Array, piece: Piece) -> KeyValueCache:
    pairs = zip(cache, piece, strict=True)
    where = (0, row, first, 0, 0)
    return KeyValueCache(
        *(jax.lax.dynamic_update_slice(old, new[:, None].astype(old.dtype), where) for old, new in pairs)
    )
