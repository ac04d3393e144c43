"""Span attention over many devices: batch and heads divided, and rows divided along the sequence (context parallelism).

A span belongs to its query, so a shard may hold any queries of a row, as long as it has the keys that they see. Each
shard holds a part of the queries and of the keys; keys and values are gathered over the context axis inside attention,
and the gradients of keys and values are summed and scattered back. This is a `Kernel` made of another `Kernel`: what is
kept for the backward pass are the shards, and the backward pass gathers keys and values again, so that no device ever
keeps those of whole rows from one layer to the next. (Gathered and not passed round a ring: with grouped queries they
are few, for 7B 2 KiB a token in bfloat16, 256 MiB for 128k tokens in one layer.)

Late queries see more keys than early ones, so rows cut into consecutive parts would leave most devices waiting for
the last. `stripe_order` deals a row out in stripes, back and forth over the shards; the host puts every array of the
row into that order (also the spans, whose values stay slots), and attention puts gathered keys back into slot order.

The compiler does not divide Pallas kernels, so on an accelerator every run on more than one device needs this.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float, Int32

from swjax.attention.kernel import Kernel
from swjax.streaming import KeySpans


@dataclass(frozen=True)
class AttentionSharding:
    """How attention is divided over a mesh. Hashable by value, so that it can be part of a model's structure.

    Attributes:
        mesh: the devices.
        batch: mesh axes over which rows are divided.
        heads: mesh axis over which query and key heads are divided, if any.
        context: mesh axis, or axes, over which each row is divided, if any.
        stripe: slots of a stripe, if rows are in `stripe_order`; None if they are in slot order.
    """

    mesh: Mesh | AbstractMesh
    batch: tuple[str, ...] = ()
    heads: str | None = None
    context: str | tuple[str, ...] | None = None
    stripe: int | None = None

    def __post_init__(self) -> None:
        named = [*self.batch, *([] if self.heads is None else [self.heads]), *self.context_axes]
        for axis in named:
            if axis not in self.mesh.axis_names:
                raise ValueError(f"the mesh has no axis {axis!r}; it has {', '.join(map(str, self.mesh.axis_names))}")
        if len(set(named)) < len(named):
            raise ValueError(f"batch {self.batch}, heads {self.heads!r} and context {self.context!r} share a mesh axis")
        if self.stripe is not None and (self.context is None or self.stripe < 1):
            raise ValueError(f"stripe {self.stripe} needs a context axis, and must be at least 1")

    @property
    def context_axes(self) -> tuple[str, ...]:
        """The mesh axes over which each row is divided."""
        return (self.context,) if isinstance(self.context, str) else self.context or ()

    @property
    def context_shards(self) -> int:
        """The number of parts that a row is cut into."""
        return math.prod(self.mesh.shape[axis] for axis in self.context_axes)

    @property
    def head_shards(self) -> int:
        """The number of parts that heads are cut into."""
        return 1 if self.heads is None else self.mesh.shape[self.heads]


def stripe_order(length: int, shards: int, stripe: int) -> Int32[np.ndarray, "L"]:
    """The order of slots in which consecutive parts of a row are equally dear: `row[order]` is dealt out in stripes.

    Stripes go to the shards in turn, back and forth: 0 1 2 3 3 2 1 0 0 1 ... Two stripes a shard are the zigzag that
    levels a causal row; thinner stripes also level rows whose cost rises and falls. For 8 shards the dearest one is
    above the mean, in pairs of query and key, by 0 % (causal), 0.2 % (an answer before its video) and 6 % (packed
    examples of 2k to 20k) with 65,536 slots in stripes of 64, and by 0, 1 and 17 % with 131,072 in stripes of 512.
    Stripes thinner than a kernel's block of queries widen the union of a block's spans, and so what it works through:
    for blocks of 512 with stripes of 64, by 5, 11 and 109 %.

    Args:
        length: slots of the row, a multiple of shards x stripe.
        shards: parts that the row will be cut into.
        stripe: slots of a stripe.

    Returns:
        Slots in their new order; `np.argsort` of it is the order that leads back.

    Raises:
        ValueError: if the length is no multiple of shards x stripe.
    """
    if length % (shards * stripe):
        raise ValueError(
            f"a row of {length} slots cannot be dealt to {shards} shards in stripes of {stripe}; "
            f"make it a multiple of {shards * stripe}"
        )
    slots = np.arange(length, dtype=np.int32).reshape(-1, stripe)
    return slots[_stripes_by_shard(len(slots), shards)].reshape(-1)


def _stripes_by_shard(num_stripes: int, shards: int) -> Int32[np.ndarray, "stripes"]:
    rounds = np.arange(num_stripes, dtype=np.int32).reshape(-1, shards)
    rounds[1::2] = rounds[1::2, ::-1]
    return rounds.T.reshape(-1)


@functools.cache
def sharded_kernel(kernel: Kernel, sharding: AttentionSharding) -> Kernel:
    """A kernel that runs another one on each device's share.

    Args:
        kernel: what computes attention of one device's queries.
        sharding: how queries, keys and values are divided.
    """
    batch, heads, context = sharding.batch or None, sharding.heads, sharding.context_axes or None
    whole = PartitionSpec(batch, context, heads, None)
    spans_spec = KeySpans(*[PartitionSpec(batch, context)] * 2)
    lse_spec = PartitionSpec(batch, heads, context)

    run_backward = kernel.backward
    if run_backward is None:
        raise ValueError("an attention implementation without a backward pass takes no sharding")

    def forward_shard(q: Array, k: Array, v: Array, spans: KeySpans) -> tuple[Array, Array]:
        return kernel.forward(q, _gather(k, sharding), _gather(v, sharding), spans)

    def backward_shard(
        q: Array, k: Array, v: Array, spans: KeySpans, out: Array, lse: Array, dout: Array
    ) -> tuple[Array, Array, Array]:
        keys, values = _gather(k, sharding), _gather(v, sharding)
        dq, dk, dv = run_backward(q, keys, values, spans, out, lse, dout)
        return dq, _scatter(dk, sharding), _scatter(dv, sharding)

    # Varying axes are not checked: nothing here is differentiated or left replicated for the checker to follow.
    forward = jax.shard_map(
        forward_shard,
        mesh=sharding.mesh,
        in_specs=(whole, whole, whole, spans_spec),
        out_specs=(whole, lse_spec),
        check_vma=False,
    )
    backward = jax.shard_map(
        backward_shard,
        mesh=sharding.mesh,
        in_specs=(whole, whole, whole, spans_spec, whole, lse_spec, whole),
        out_specs=(whole, whole, whole),
        check_vma=False,
    )
    return Kernel(forward, backward, kernel.cache, kernel.platforms)


def check_divides(q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], sharding: AttentionSharding) -> None:
    """Looks whether arrays can be divided as a sharding says.

    Args:
        q, k: queries and keys of all devices together.
        sharding: how they are to be divided.

    Raises:
        ValueError: names the size that cannot.
    """
    mesh = sharding.mesh
    rows = math.prod(mesh.shape[axis] for axis in sharding.batch)
    heads = sharding.head_shards
    keys_divisor = sharding.context_shards * (sharding.stripe or 1)
    for what, size, divisor in (
        ("rows", q.shape[0], rows),
        ("queries a row", q.shape[1], sharding.context_shards),
        ("keys a row", k.shape[1], keys_divisor),
        ("query heads", q.shape[2], heads),
        ("key heads", k.shape[2], heads),
    ):
        if size % divisor:
            raise ValueError(f"attention over {sharding} needs a multiple of {divisor} {what}, got {size}")


def repeat_key_heads(k: Float[Array, "B S K H"], sharding: AttentionSharding) -> Float[Array, "B S k H"]:
    """Keys or values with each head so often that there is one for every shard of the heads, where there are fewer.

    Args:
        k: keys or values.
        sharding: how heads are to be divided.
    """
    shards, heads = sharding.head_shards, k.shape[2]
    return jnp.repeat(k, shards // heads, axis=2) if heads < shards and shards % heads == 0 else k


def _gather(x: Float[Array, "B s K H"], sharding: AttentionSharding) -> Float[Array, "B S K H"]:
    """Keys or values of whole rows, in slot order."""
    if sharding.context_shards == 1:
        return x
    x = jax.lax.all_gather(x, sharding.context_axes, axis=1, tiled=True)
    return _permute_stripes(x, sharding, inverse=True)


def _scatter(dx: Float[Array, "B S K H"], sharding: AttentionSharding) -> Float[Array, "B s K H"]:
    """This shard's part of the sum over all shards; summed in float32."""
    if sharding.context_shards == 1:
        return dx
    striped = _permute_stripes(dx, sharding, inverse=False).astype(jnp.float32)
    summed = jax.lax.psum_scatter(striped, sharding.context_axes, scatter_dimension=1, tiled=True)
    return summed.astype(dx.dtype)


def _permute_stripes(x: Float[Array, "B S K H"], sharding: AttentionSharding, *, inverse: bool) -> Array:
    if sharding.stripe is None:
        return x
    batch, length, *rest = x.shape
    order = _stripes_by_shard(length // sharding.stripe, sharding.context_shards)
    order = np.argsort(order) if inverse else order
    return x.reshape(batch, -1, sharding.stripe, *rest)[:, order].reshape(x.shape)
