import jaxtyping
import numpy as np
import pytest

from swjax.streaming import SpecialTokens, build_layout


@pytest.mark.parametrize("wrong", [{"input_ids": np.ones((2, 3), int)}, {"gap": "far"}, {"input_ids": np.ones(3)}])
def test_arguments_that_are_not_of_their_annotations_are_refused(wrong):
    given = {"input_ids": np.ones(3, int), "video_grid_thw": (), "gap": 0}
    with pytest.raises(jaxtyping.TypeCheckError, match=next(iter(wrong))):
        build_layout(**given | wrong, variant="gdpe", special_tokens=SpecialTokens.qwen2_5_vl())
