import inspect
from dataclasses import asdict, replace

import pytest

from swjax.data.builders.recipe import Recipe
from swjax.data.pipeline_config import PipelineConfig
from swjax.evaluation.sweep import Sweep
from swjax.inference.memory import memory_of
from swjax.inference.settings import StreamSettings
from swjax.serving.limits import Limits
from swjax.streaming import StreamSpec, build_layout
from swjax.streaming.dropping import drop_of
from swjax.training.config import DEFAULTS, STREAM_KEYS


def test_every_part_has_the_same_defaults() -> None:
    spec = asdict(StreamSpec())
    others = [PipelineConfig(batch_size=1, max_tokens=8, max_patches=4), Recipe(), StreamSettings(), Limits()]
    for other in others:
        shared = spec.keys() & vars(other).keys()
        assert shared
        as_made = spec | {"memory": memory_of(spec["memory"]), "drop": drop_of(spec["drop"])}
        expected = as_made if isinstance(other, StreamSettings) else spec
        assert {name: getattr(other, name) for name in shared} == {name: expected[name] for name in shared}
    of_training = {key.rpartition(".")[2]: DEFAULTS[key] for key in STREAM_KEYS}
    assert of_training | {"max_tail": spec["max_tail"]} == spec
    assert inspect.signature(build_layout).parameters["gap"].default == spec["gap"]
    assert Sweep.max_tail == spec["max_tail"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "gddpe"}, "unknown variant 'gddpe'"),
        ({"wait_k": 0}, "wait_k is 0; it must be of type int above 0"),
        ({"wait_k": True}, "wait_k is True; it must be of type int above 0"),
        ({"gap": -1}, "gap is -1; it must be of type int and at least 0"),
        ({"max_tail": 2.5}, r"max_tail is 2\.5; it must be of type int above 0"),
        ({"fps": float("nan")}, "fps must be above 0, got nan"),
        ({"fps": "2"}, "fps is '2'; it must be of type float above 0"),
        (
            {"memory": "window sources=3"},
            "memory is 'window sources=3'; it must be a name, and its numbers as in name:",
        ),
        ({"drop": "dtd:tau=2"}, "dtd's tau must be a finite number from -1 to 1, got 2"),
        ({"min_pixels": 500_000}, r"max_pixels must be at least min_pixels \(500000\), got 200704"),
    ],
)
def test_values_that_no_model_is_trained_with_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(StreamSpec(), **change)


def test_an_answer_may_begin_at_0() -> None:
    assert StreamSpec(gap=0).gap == 0
