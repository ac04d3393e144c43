from collections import Counter

from swjax.serving.line import in_turn


def order(waiting: list[tuple[str, ...]], rows: dict[str, int] | None = None) -> list[int]:
    numbered = list(enumerate(waiting))
    return [number for number, _ in in_turn(numbered, lambda client: client[1], Counter(rows or {}))]


def test_one_who_comes_often_does_not_come_before_one_who_comes_once():
    assert order([("a",), ("a",), ("a",), ("b",), ("b",), ("c",)]) == [0, 3, 5, 1, 4, 2]


def test_who_has_rows_waits_for_who_has_none():
    assert order([("a",), ("b",), ("a",), ("c",)], {"a": 2, "b": 1}) == [3, 1, 0, 2]


def test_an_address_and_a_token_both_count():
    waiting = [("one", "red"), ("two", "red"), ("three", "red"), ("three", "blue")]
    assert order(waiting) == [0, 1, 3, 2]


def test_among_equals_who_came_first_is_first():
    assert order([("a",), ("b",), ("c",), ()]) == [0, 1, 2, 3]
