import numpy as np

from swjax.training.objectives.labels import count_labels, count_tokens, labelled_slots


def test_labelled_slots_come_in_slot_order_and_are_filled_up() -> None:
    labels = np.array([[-100, 7, -100, 5, 6], [-100, -100, -100, -100, 9]], np.int32)
    slots, is_labelled = labelled_slots(labels, 3)
    np.testing.assert_array_equal(slots[0], [1, 3, 4])
    assert slots[1, 0] == 4
    np.testing.assert_array_equal(is_labelled, [[True, True, True], [True, False, False]])
    assert count_labels(labels) == 4


def test_padding_is_no_token() -> None:
    batch = {
        "token_ids": np.array([[5, 0, 0, 0]], np.int32),  # token 0 that sees others is a word
        "span_start": np.array([[0, 0, 2, 3]], np.int32),
        "span_stop": np.array([[1, 2, 3, 4]], np.int32),
    }
    assert count_tokens(batch) == 2
