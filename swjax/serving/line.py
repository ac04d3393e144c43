"""The line of those who wait for a row: who has few rows comes before who has many, then who came first."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Client = TypeVar("Client")


def in_turn(
    waiting: Iterable[Client], owners_of: Callable[[Client], Sequence[str]], rows: Counter[str]
) -> list[Client]:
    """Clients in the order in which they get rows, as if each got one and nobody gave one back.

    Args:
        waiting: those who wait, in the order in which they came.
        owners_of: addresses and tokens that a client counts for.
        rows: how many rows each address or token has.
    """
    so_far = Counter(rows)
    ranked = []
    for client in waiting:
        owners = owners_of(client)
        ranked.append((max((so_far[owner] for owner in owners), default=0), client))
        so_far.update(owners)
    return [client for _, client in sorted(ranked, key=lambda pair: pair[0])]
