"""What a lane runs on its devices: the encoding of a frame, the pass of all rows, and what memories ask for."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, DTypeLike, Float, Int32

from swjax.compiler import STREAMING_OPTIONS
from swjax.inference import rows
from swjax.inference.packing import COLUMNS, Batch
from swjax.inference.place import CACHE, INBOX, SAID, Where, kept, key_head_copies, row_shards, shape_of
from swjax.inference.sampler import mark_said, sample
from swjax.inference.weights import Weights, assembled
from swjax.models.cache import KeyValueCache
from swjax.models.config import ModelConfig
from swjax.models.decoder import Decoder
from swjax.models.family import abstract_model
from swjax.models.parameters import Parameters
from swjax.streaming import KeySpans


def lower_pass(
    config: ModelConfig, *, rows: int, size: int, slots: int, dtype: DTypeLike, where: Where
) -> jax.stages.Lowered:
    """The pass that a lane runs, lowered for devices that need not be there.

    Args:
        config: the model's sizes.
        rows: streams (B).
        size: tokens of a row, of frames and words together.
        slots: of every row's cache.
        dtype: of weights, cache and computations.
        where: all of it lies.
    """
    weights = Weights(abstract_model(config, param_dtype=dtype), where, consume=True)
    return lower(
        weights.compiled(programs_of),
        True,
        weights.decoder.parameters,
        config,
        rows=rows,
        size=size,
        slots=slots,
        inbox=(1, size),
        dtype=dtype,
        where=where,
    )


def lower_encode(config: ModelConfig, *, side: int, dtype: DTypeLike, where: Where) -> jax.stages.Lowered:
    """The encoding of one frame, lowered for devices that need not be there.

    Args:
        config: the model's sizes.
        side: patches along a side of the frame.
        dtype: of weights and computations.
        where: all of it lies.
    """
    weights = Weights(abstract_model(config, param_dtype=dtype), where, consume=True)
    patches, units = side * side, side * side // config.vision.spatial_merge_size**2
    inbox = shape_of(where, jax.ShapeDtypeStruct((1, 1, units, config.text.hidden_size), dtype), INBOX)
    pixels = shape_of(where, jax.ShapeDtypeStruct((patches, config.geometry.patch_dim), jnp.uint8), "--")
    grid, zero = np.array([[1, side, side]], np.int32), np.int32(0)
    return weights.compiled(programs_of).encode.lower(weights.visual.parameters, inbox, pixels, grid, zero, zero)


def lower(
    programs: "Programs",
    with_head: bool,
    parameters: Parameters,
    config: ModelConfig,
    *,
    rows: int,
    size: int,
    slots: int,
    inbox: tuple[int, int],
    dtype: DTypeLike,
    where: Where,
) -> jax.stages.Lowered:
    """The pass of some programs, lowered without any array.

    Args:
        programs: from `programs_of`.
        with_head: whether words are chosen.
        parameters: of the decoder, or their shapes.
        config, rows, size, slots, dtype, where: as for `lower_pass`.
        inbox: frames that may wait in a row's inbox, and the features of each.
    """
    text, copies = config.text, key_head_copies(where, config)
    cache = jax.eval_shape(lambda: KeyValueCache.empty(text, batch=rows, slots=slots, dtype=dtype, copies=copies))
    state = (
        jax.tree.map(lambda one: shape_of(where, one, CACHE), cache),
        shape_of(where, jax.ShapeDtypeStruct((rows, text.vocab_size), bool), SAID),
        shape_of(where, jax.ShapeDtypeStruct((rows, *inbox, text.hidden_size), dtype), INBOX),
    )
    packed = np.zeros((rows, size + 1, COLUMNS), np.int32)
    return programs.advance.lower(with_head, parameters, *state, packed)


class Programs(NamedTuple):
    """What a lane runs, compiled for each shape that it is called with."""

    encode: jax.stages.Wrapped
    advance: jax.stages.Wrapped
    attend: jax.stages.Wrapped
    surprise: jax.stages.Wrapped
    rerun: jax.stages.Wrapped
    ask: jax.stages.Wrapped


@functools.cache
def programs_of(decoder: nnx.GraphDef, visual: nnx.GraphDef, platform: str, mesh: Mesh | None) -> Programs:
    """The programs of a model, remembered.

    They are bound to the structures, whose hash, were it an argument, each call would compute: half a millisecond.

    Args:
        decoder, visual: structures of the model's halves (`swjax.inference.weights.Held`).
        platform: what they are compiled for.
        mesh: over which the arrays are divided, if they are.
    """
    jit = functools.partial(jax.jit, compiler_options=STREAMING_OPTIONS.get(platform))
    return Programs(
        jit(functools.partial(_encode, visual, mesh), donate_argnums=1),
        jit(functools.partial(_advance, decoder, mesh), static_argnums=0, donate_argnums=(2, 3)),
        jit(functools.partial(_attend, decoder)),
        jit(functools.partial(_surprise, decoder)),
        jit(functools.partial(_rerun, decoder, mesh)),
        jit(functools.partial(_ask, decoder)),
    )


def _encode(
    structure: nnx.GraphDef,
    mesh: Mesh | None,
    parameters: Parameters,
    inbox: Array,
    patches: Array,
    grid_thw: Array,
    row: Array,
    cell: Array,
) -> Array:
    features = assembled(structure, parameters)(patches[None], grid_thw[None])
    inbox = jax.lax.dynamic_update_slice(inbox, features[None].astype(inbox.dtype), (row, cell, 0, 0))
    return kept(mesh, inbox, INBOX)


def _advance(
    structure: nnx.GraphDef,
    mesh: Mesh | None,
    with_head: bool,
    parameters: Parameters,
    cache: KeyValueCache,
    said: Bool[Array, "B V"],
    inbox: Float[Array, "B R U D"],
    packed: Int32[Array, "B lines C"],
) -> tuple[Int32[Array, "B"], KeyValueCache, Bool[Array, "B V"]]:
    decoder, batch = assembled(structure, parameters), Batch.unpack(packed)
    x = decoder.embed(batch.token_ids)
    # Looked up row by row, so that rows on different devices need nothing of one another.
    features = jax.vmap(lambda of_row, at: of_row.reshape(-1, of_row.shape[-1])[at])(
        inbox, jnp.maximum(batch.features, 0)
    )
    x = jnp.where(batch.features[..., None] >= 0, features.astype(x.dtype), x)
    hidden, cache = decoder.extend(x, batch.positions, batch.spans, cache, batch.slots)
    cache = kept(mesh, cache, CACHE)
    if not with_head:
        return jnp.zeros(len(x), jnp.int32), cache, said
    last = jax.vmap(lambda of_row, at: of_row[at])(hidden, batch.last)
    chosen = sample(decoder.logits(last), said, batch.choices)
    return chosen, cache, kept(mesh, mark_said(said, chosen, batch.speaks, batch.choices), SAID)


def _row_of(cache: KeyValueCache, row: Array) -> KeyValueCache:
    """The cache of one row alone."""
    return KeyValueCache(*(jax.lax.dynamic_slice_in_dim(x, row, 1, axis=1) for x in cache))


def _attend(
    structure: nnx.GraphDef,
    parameters: Parameters,
    cache: KeyValueCache,
    row: Array,
    slots: Int32[Array, "P"],
    token_ids: Int32[Array, "n"],
    positions: Int32[Array, "3 n"],
    start: Int32[Array, "n"],
    stop: Int32[Array, "n"],
) -> Float[Array, "layers K P"]:
    decoder = assembled(structure, parameters)
    of_row = _row_of(cache, row)
    spans = KeySpans(start[None], stop[None])
    _, mass = decoder.reread(decoder.embed(token_ids[None]), positions[:, None], spans, of_row)
    return mass[:, 0][:, :, slots]


def _losses(decoder: Decoder, hidden: Float[Array, "B n D"], following: Int32[Array, "n"]) -> Float[Array, "n"]:
    """Cross entropy of the tokens that follow those of the first row, in nats."""
    scores = jax.nn.log_softmax(decoder.logits(hidden)[0].astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(scores, following[:, None], axis=-1)[:, 0]


def _surprise(
    structure: nnx.GraphDef,
    parameters: Parameters,
    cache: KeyValueCache,
    row: Array,
    token_ids: Int32[Array, "n"],
    following: Int32[Array, "n"],
    positions: Int32[Array, "3 n"],
    start: Int32[Array, "n"],
    stop: Int32[Array, "n"],
) -> Float[Array, "n"]:
    decoder = assembled(structure, parameters)
    of_row = _row_of(cache, row)
    spans, x = KeySpans(start[None], stop[None]), decoder.embed(token_ids[None])
    hidden, _ = decoder.reread(x, positions[:, None], spans, of_row)
    return _losses(decoder, hidden, following)


def _ask(
    structure: nnx.GraphDef, parameters: Parameters, token_ids: Int32[Array, "P"], count: Array
) -> Float[Array, "layers K H"]:
    decoder, ids = assembled(structure, parameters), jnp.arange(len(token_ids), dtype=jnp.int32)[None]
    weights = jnp.where(ids < count, 1 / count, 0)
    spans = KeySpans(jnp.zeros_like(ids), ids + 1)
    return decoder.queries(decoder.embed(token_ids[None]), jnp.tile(ids, (3, 1, 1)), spans, weights)[:, 0]


def _rerun(
    structure: nnx.GraphDef,
    mesh: Mesh | None,
    parameters: Parameters,
    cache: KeyValueCache,
    row: Array,
    first: Array,
    token_ids: Int32[Array, "n"],
    following: Int32[Array, "n"],
    positions: Int32[Array, "3 n"],
    start: Int32[Array, "n"],
    stop: Int32[Array, "n"],
    slots: Int32[Array, "n"],
) -> tuple[Float[Array, "n"], Float[Array, "layers K n H"], Float[Array, "layers K n H"]]:
    decoder = assembled(structure, parameters)
    alike = row_shards(mesh)  # where rows are divided over devices, each has the row
    spans = KeySpans(*(jnp.tile(one[None], (alike, 1)) for one in (start, stop)))
    x = jnp.tile(decoder.embed(token_ids[None]), (alike, 1, 1))
    of_row = jax.tree.map(lambda one: jnp.repeat(one, alike, axis=1), _row_of(cache, row))
    ids, at = jnp.tile(positions[:, None], (1, alike, 1)), jnp.tile(slots[None], (alike, 1))
    hidden, new = decoder.extend(x, ids, spans, of_row, at)
    return _losses(decoder, hidden, following), *rows.take(new, jnp.int32(0), first, len(token_ids))
