"""A model for the miniature tables to start from: it has seen Moving Shapes offline, as Qwen2.5-VL has seen the world.

Its videos are other ones than those of the sweeps (another seed). Make them and the sweeps' own first, then the model;
docs/results/README.md has the commands.
"""

from ml_collections import ConfigDict

from swjax.training.config import base_config


def get_config() -> ConfigDict:
    """Returns the configuration of the base; the sweeps change what fine-tuning does otherwise."""
    config = base_config()
    config.run_dir = "runs/sweeps/base"
    config.variant = "offline"

    config.model.preset = "tiny"
    config.model.overrides = {"text": {"num_layers": 3, "intermediate_size": 256}}  # minutes on one core
    config.frozen = ()  # nothing is pretrained, so everything trains
    config.dtype = "float32"
    config.remat = "nothing"

    config.data.train = "data/records_base/moving_shapes/2fps_3136px/1.0.0:train"
    config.data.validation = "data/records/moving_shapes/2fps_3136px/1.0.0:validation"
    config.data.min_pixels = 56 * 56
    config.data.max_pixels = 56 * 56
    config.data.batching = "bucket"  # half of the videos are far shorter than the longest
    config.data.buckets = ((96, 112), (112, 144))
    config.data.max_tokens = 136
    config.data.max_patches = 192  # 12 s: 12 frames of 16 patches
    config.data.max_labels = 64
    config.data.cache_mb = 2048

    config.steps = 3400
    config.batch_size = 16
    config.accumulation = 1
    config.optimizer.learning_rate = 3e-3
    config.optimizer.b2 = 0.98

    config.checkpoint_every = 400
    config.eval_every = 400
    config.compilation_cache = "runs/sweeps/compiled"
    return config
