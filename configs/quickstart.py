"""What the quickstart trains: Moving Shapes as `moving_shapes` has them, learned from in fewer and fuller steps.

Muon takes fewer steps than AdamW, and packed rows, of three to five videos each, have next to no padding.
"""

import moving_shapes
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the configuration of the quickstart."""
    config = moving_shapes.get_config()
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 4e-3

    config.data.batching = "pack"
    config.data.window = 128
    config.data.max_videos = 5
    config.data.max_tokens = 408
    config.data.max_patches = 576
    config.data.max_labels = 192
    config.batch_size = 8

    config.steps = 500
    config.checkpoint_every = 250
    config.eval_every = 250
    return config
