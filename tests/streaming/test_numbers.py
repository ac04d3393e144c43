import numpy as np
import pytest

from swjax.streaming.numbers import real, whole


@pytest.mark.parametrize("read", [whole, real])
@pytest.mark.parametrize("value", [True, np.True_, "1", None, float("nan"), 10**400])
def test_what_is_no_number_within_bounds_is_refused_by_name(read, value) -> None:
    with pytest.raises(ValueError, match="top_k must be a"):
        read("top_k", value)


def test_numbers_of_numpy_become_those_of_python() -> None:
    assert type(whole("top_k", np.int64(3))) is int
    assert type(real("temperature", np.float32(0.5))) is float
    assert real("temperature", 1) == 1.0
