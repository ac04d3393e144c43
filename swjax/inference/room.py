"""Room in the rows of a cache: by how many slots an end that runs over is made longer."""

LOOK_AHEAD = 4 / 3
"""How much further than now a stream is looked at: larger rows are compiled while a quarter of an end is free."""


def slots_to_add(left: int, right: int, lowest: int, highest: int, spare: int) -> tuple[int, int] | None:
    """Slots to add at both ends: an end that would run over is doubled, as far as the limit allows.

    Args:
        left, right: slots on either side of the origin.
        lowest: first slot that is needed, counted from the origin: negative on its left.
        highest: last slot that is needed, and one.
        spare: slots that may be added.

    Returns:
        Those to the left and to the right; None if what is needed is more than may be added.
    """
    need_left, need_right = max(0, -lowest - left), max(0, highest - right)
    if need_left + need_right > spare:
        return None
    add_left = min(max(need_left, left), spare - need_right) if need_left else 0
    return add_left, min(max(need_right, right), spare - add_left) if need_right else 0


def padded_size(count: int) -> int:
    """Sizes in which keys and values are moved: powers of two, so that few are compiled."""
    return max(4, 1 << (count - 1).bit_length())
