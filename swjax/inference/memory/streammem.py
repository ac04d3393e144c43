"""StreamMem (Yang et al., 2025, arXiv 2508.15717): in each layer the sources that a proxy question attends to.

The paper runs the chat template's tokens as the question. Here the words that have just been spoken are run again: what
is being said says what is being looked at. Not here: the filter of like frames (see `swjax.inference.dropping`) and
prototypes, means of a frame's keys, of which no position id would be right.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from swjax.inference.memory.book import Book, StoredKeys
from swjax.inference.memory.scored import Scored
from swjax.inference.numbers import whole


@dataclass(frozen=True)
class StreamMem(Scored):
    """The newest frames, and the sources with the most attention mass; equal in all heads of a layer.

    Attributes:
        proxy: newest words that are run again.
    """

    proxy: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("a memory's proxy", self.proxy, least=1)

    def scores(self, book: Book, stored: StoredKeys, stays: Bool[Array, "#L #K P"]) -> Float[Array, "L 1 P"]:
        """Attention mass, the mean of a layer's key heads.

        Args:
            book: gives the newest words.
            stored: runs them again.
            stays: not looked at.
        """
        return attention_mass(book, stored, self.proxy)


def attention_mass(book: Book, stored: StoredKeys, proxy: int) -> Float[Array, "L 1 P"]:
    """How much the newest words attend to each source; nothing where none has been stored.

    Args:
        book: gives the words: their ids, position ids and slots.
        stored: runs them again over the sources that are stored.
        proxy: how many words are run again; while there are fewer, the first is repeated.

    Returns:
        Attention mass, the mean over words and over a layer's heads; zeros where no word has been stored.
    """
    count = len(book.words)
    if not count:
        return jnp.zeros((*stored.padded_keys.shape[:1], 1, stored.padded_keys.shape[2]))
    # Always as many, so that one program serves all: the first is repeated while there are fewer.
    newest = np.maximum(np.arange(count - proxy, count), 0)
    mass = stored.attention(book.word_tokens[newest], book.word_ids[:, newest], book.word_slots[newest])
    return mass.mean(axis=1, keepdims=True)
