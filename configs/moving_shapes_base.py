"""A model for the miniature tables to start from: it has seen Moving Shapes offline, as Qwen2.5-VL has seen the world.

Its videos are other ones than those of the sweeps (another seed). Make them and the sweeps' own first, then the model;
docs/results/README.md has the commands.
"""

import moving_shapes
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the configuration of the base: the quickstart's, smaller and offline."""
    config = moving_shapes.get_config()
    config.run_dir = "runs/sweeps/base"
    config.variant = "offline"
    config.model.overrides = {"text": {"num_layers": 3, "intermediate_size": 256}}  # minutes on one core

    config.data.train = "data/records_base/moving_shapes/2fps_3136px:train"
    config.data.validation = "data/records/moving_shapes/2fps_3136px:validation"
    config.data.batching = "bucket"  # half of the videos are far shorter than the longest
    config.data.buckets = ((96, 112), (112, 144))
    config.data.cache_mb = 2048

    config.steps = 3400
    config.batch_size = 16
    config.optimizer.learning_rate = 3e-3

    config.checkpoint_every = 400
    config.eval_every = 400
    config.compilation_cache = "runs/sweeps/compiled"
    return config
