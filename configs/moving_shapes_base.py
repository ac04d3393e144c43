"""A model for the miniature tables to start from: it has seen Moving Shapes offline, as Qwen2.5-VL has seen the world.

Its videos are other ones than those of the sweeps (another seed). Make them and the sweeps' own first, then the model;
docs/results/README.md has the commands.
"""

import quickstart
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the configuration of the base: the quickstart's, offline."""
    config = quickstart.get_config()
    config.run_dir = "runs/sweeps/base"
    config.variant = "offline"

    config.data.train = "data/records_base/moving_shapes/2fps_3136px:train"
    config.data.validation = "data/records/moving_shapes/2fps_3136px:validation"
    config.data.cache_mb = 2048
    config.compilation_cache = "runs/sweeps/compiled"
    return config
