"""Few queries packed with the heads of their group, and their keys divided: for kernels that work in blocks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from swjax.attention.kernel import EMPTY_LSE
from swjax.streaming import KeySpans

NO_KEYS = -1e30
"""Log-sum-exp of a part of the keys that holds none."""


def pack(q: Float[Array, "B T N H"], spans: KeySpans, key_heads: int) -> tuple[Float[Array, "B R K H"], KeySpans]:
    """Queries and heads of a group as one row of T x N / K queries, of K heads.

    Args:
        q: queries [B, T, N, H].
        spans: of the T queries.
        key_heads: K.
    """
    batch, length, heads, width = q.shape
    group = heads // key_heads
    rows = q.reshape(batch, length, key_heads, group, width).transpose(0, 1, 3, 2, 4)
    spans = KeySpans(*(jnp.repeat(edge, group, axis=1) for edge in spans))
    return rows.reshape(batch, length * group, key_heads, width), spans


def unpack(
    out: Float[Array, "B R K H"], lse: Float[Array, "B K R"], length: int
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """What attention gave for packed queries, as of `length` queries.

    Args:
        out, lse: as the kernel gives them for packed queries.
        length: T.
    """
    batch, rows, key_heads, width = out.shape
    group = rows // length
    out = out.reshape(batch, length, group, key_heads, width).transpose(0, 1, 3, 2, 4)
    lse = lse.reshape(batch, key_heads, length, group).transpose(0, 1, 3, 2)
    return out.reshape(batch, length, group * key_heads, width), lse.reshape(batch, group * key_heads, length)


def merge(
    outs: Float[Array, "splits B T N H"], lses: Float[Array, "splits B N T"]
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Attention to all keys from that to each part of them; `NO_KEYS` where a part holds none.

    Args:
        outs, lses: of each part of the keys, parts first.
    """
    if len(outs) == 1:
        return outs[0], lses[0]
    lse = jax.nn.logsumexp(lses, axis=0)
    weights = jnp.where(lses > NO_KEYS, jnp.exp(lses - lse), 0.0)
    out = jnp.einsum("pbtnh,pbnt->btnh", outs, weights, precision=jax.lax.Precision.HIGHEST)
    return out, jnp.where((lses > NO_KEYS).any(axis=0), lse, EMPTY_LSE)
