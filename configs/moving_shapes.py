"""Moving Shapes from scratch: a tiny model learns to describe synthetic videos in minutes, on two CPU cores.

Make the data first: `swjax prepare moving_shapes`. The videos are small, so pixels are few and the model sees all.
"""

from ml_collections import ConfigDict

from swjax.training.config import base_config


def get_config() -> ConfigDict:
    """Returns the configuration of the quickstart."""
    config = base_config()
    config.run_dir = "runs/moving_shapes"

    config.model.preset = "tiny"
    config.frozen = ()  # nothing is pretrained, so everything trains, the vision tower too
    config.dtype = "float32"  # a CPU has no fast bfloat16
    config.remat = "nothing"  # the model is small

    config.data.train = "data/moving_shapes/train/manifest.jsonl"
    config.data.validation = "data/moving_shapes/validation/manifest.jsonl"
    config.data.min_pixels = 56 * 56
    config.data.max_pixels = 56 * 56
    config.data.max_tokens = 136
    config.data.max_patches = 192  # 12 s: 12 frames of 16 patches
    config.data.max_labels = 64
    config.data.cache_mb = 1024

    config.steps = 700
    config.batch_size = 32
    config.accumulation = 1
    config.optimizer.learning_rate = 2e-3
    config.optimizer.b2 = 0.98

    config.checkpoint_every = 175
    config.eval_every = 175
    return config
