"""What the compiled pass of a lane copies on a CPU; `tests/planning/test_plan.py` asks the same of a TPU."""

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from swjax.inference.programs import lower_pass
from swjax.models.qwen2_5_vl import Qwen2_5_VLConfig

SLOTS = 30_011

pytestmark = pytest.mark.usefixtures("compiled_well")


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 9)])
def test_neither_the_cache_nor_weights_are_copied(rows, size):
    config = Qwen2_5_VLConfig.preset("tiny", text={"intermediate_size": 16_384, "num_layers": 3})
    here = SingleDeviceSharding(jax.devices()[0])
    lowered = lower_pass(config, rows=rows, size=size, slots=SLOTS, dtype="float32", where=here)
    compiled = lowered.compile()
    text = config.text
    layer = rows * SLOTS * text.num_kv_heads * text.head_dim * 4
    weight = text.hidden_size * text.intermediate_size * 4
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * text.num_layers * layer, "the cache is updated in place"
    assert memory.temp_size_in_bytes < min(layer, weight)
