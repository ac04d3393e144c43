"""The next token from its scores: greedy, or drawn with a temperature, top-k and top-p; with a repetition penalty.

Every row of a batch has its own choices and its own random numbers, which depend on its seed and on how many tokens it
has spoken, and not on the rows beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt32

from swjax.inference.numbers import LARGEST_REAL, real, whole
from swjax.inference.voice import UNDECIDED, Deciding
from swjax.streaming import skip_is_unwanted

NO_TOKEN = -1
"""What is chosen where scores are not finite: nothing."""


class NotFiniteError(ArithmeticError):
    """The scores of a stream's next token are not finite, so no token can be chosen."""

    def __init__(self, spoken: int):
        super().__init__(
            f"the model's scores of answer token {spoken} are not finite: its numbers overflow on this video; load it "
            "in a dtype of a wider range (float32 or bfloat16), or choose sampling nearer to its usual values"
        )


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: draw from the k likeliest; 0 from all.
        top_p: draw from the likeliest that together have this probability.
        repetition_penalty: scores of tokens that the answer already has are divided by it where positive, and
            multiplied where negative (Keskar et al., 2019, arXiv 1909.05858). The paper evaluates with 1.15.
        seed: of the random numbers.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        least = 1 / LARGEST_REAL
        try:
            given = {
                "temperature": real("temperature", self.temperature, least=0),
                "top_k": whole("top_k", self.top_k),
                "top_p": real("top_p", self.top_p, least=least, most=1),
                "repetition_penalty": real("repetition_penalty", self.repetition_penalty, least=least),
                "seed": whole("the seed", self.seed, most=2**32 - 1),
            }
        except ValueError as error:
            raise ValueError(
                f"sampling needs temperature >= 0, top_k >= 0, 0 < top_p <= 1 and repetition_penalty > 0; {error}"
            ) from error
        for name, value in given.items():
            object.__setattr__(self, name, value)


GREEDY = Sampling()
"""The likeliest token."""


class SamplingRows(NamedTuple):
    """The choices of each row of a batch, how many answer tokens it has spoken, and how the next one may decide about
    silence (`Deciding`); arrays of numpy or jax."""

    temperature: Float[Any, "B"]
    top_k: Int32[Any, "B"]
    top_p: Float[Any, "B"]
    repetition_penalty: Float[Any, "B"]
    seed: UInt32[Any, "B"]
    spoken: Int32[Any, "B"]
    skip: Int32[Any, "B"]
    end: Int32[Any, "B"]
    below: Float[Any, "B"]

    @classmethod
    def of(
        cls, choices: Sequence[Sampling], spoken: Sequence[int], deciding: Sequence[Deciding] | None = None
    ) -> "SamplingRows":
        """Arrays of numpy from the choices of each row.

        Args:
            choices: how each row chooses.
            spoken: answer tokens that each row has spoken.
            deciding: how each row may decide about silence; None where none may.
        """
        deciding = [UNDECIDED] * len(choices) if deciding is None else deciding
        return cls(
            np.array([one.temperature for one in choices], np.float32),
            np.array([one.top_k for one in choices], np.int32),
            np.array([one.top_p for one in choices], np.float32),
            np.array([one.repetition_penalty for one in choices], np.float32),
            np.array([one.seed for one in choices], np.uint32),
            np.array(spoken, np.int32),
            np.array([one.skip for one in deciding], np.int32),
            np.array([one.end for one in deciding], np.int32),
            np.array([one.below for one in deciding], np.float32),
        )


def sample(logits: Float[Array, "B V"], said: Bool[Array, "B V"], rows: SamplingRows) -> Int32[Array, "B"]:
    """Choose a token for each row; `NO_TOKEN` where scores are not finite.

    Args:
        logits: scores.
        said: the tokens that the row's answer has already.
        rows: how each row chooses.
    """
    given = logits.astype(jnp.float32)
    logits = penalize(given, said, rows.repetition_penalty)
    draws = rows.temperature > 0
    unwanted = skip_is_unwanted(given, rows.skip, rows.below, xp=jnp)
    best = jnp.argmax(jnp.where(unwanted, -jnp.inf, logits), axis=-1)
    likeliest = jnp.where(_finite(logits), best, NO_TOKEN).astype(jnp.int32)

    def draw() -> Int32[Array, "B"]:
        scaled = logits / jnp.maximum(rows.temperature, 1e-6)[:, None]
        kept = keep_likely(jnp.where(unwanted, -jnp.inf, scaled), rows.top_k, rows.top_p)
        keys = jax.vmap(lambda seed, spoken: jax.random.fold_in(jax.random.key(seed), spoken))(rows.seed, rows.spoken)
        drawn = jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
        return jnp.where(draws, jnp.where(_finite(scaled), drawn, NO_TOKEN), likeliest)

    # Drawing sorts the vocabulary, which a batch of greedy rows need not.
    return jax.lax.cond(jnp.any(draws), draw, lambda: likeliest)


def _finite(scores: Float[Array, "B V"]) -> Bool[Array, "B"]:
    return jnp.isfinite(scores).all(axis=-1)


def penalize(logits: Float[Array, "B V"], said: Bool[Array, "B V"], penalty: Float[Array, "B"]) -> Float[Array, "B V"]:
    """Lower the scores of tokens that have been said.

    Args:
        logits: scores of the next token.
        said: the tokens that the row's answer has already.
        penalty: of each row, above 0; 1 changes nothing (`Sampling.repetition_penalty`).
    """
    lowered = jnp.where(logits > 0, logits / penalty[:, None], logits * penalty[:, None])
    return jnp.where(said, lowered, logits)


def keep_likely(logits: Float[Array, "B V"], top_k: Int32[Array, "B"], top_p: Float[Array, "B"]) -> Float[Array, "B V"]:
    """Set all but the likeliest to -inf: the k likeliest, and of these as many as have probability p together.

    Args:
        logits: scores of the next token.
        top_k: of each row; 0 keeps all.
        top_p: of each row; 1 keeps all.
    """
    size = logits.shape[-1]
    falling = -jnp.sort(-logits, axis=-1)
    rank = jnp.arange(size)
    count = jnp.where(top_k > 0, jnp.minimum(top_k, size), size)[:, None]
    falling = jnp.where(rank < count, falling, -jnp.inf)
    chances = jax.nn.softmax(falling, axis=-1)
    likelier = jnp.cumsum(chances, axis=-1) - chances
    kept = (likelier < top_p[:, None]) & (rank < count) | (rank == 0)
    least = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def mark_said(
    said: Bool[Array, "B V"], tokens: Int32[Array, "B"], speaks: Bool[Array, "B"], rows: SamplingRows
) -> Bool[Array, "B V"]:
    """Note the token of each row that has spoken one; those of decisions are no repetition.

    Args:
        said: tokens that have been said.
        tokens: the one chosen in each row.
        speaks: which rows have spoken it.
        rows: whose decisions are left out.
    """
    row = jnp.arange(len(tokens))
    is_word = (tokens != NO_TOKEN) & (tokens != rows.skip) & (tokens != rows.end)
    return said.at[row, tokens].set(said[row, tokens] | (speaks & is_word))
