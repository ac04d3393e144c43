"""Fine-tune all of a released model on your own films, but for its vision tower; docs/finetuning.md says how.

A parameter that trains takes 12 bytes (itself and its gradient in float32, two moments in bfloat16), beside what the
activations take. All of it is divided over the chips that are there; `swjax plan` says before whether it fits.
"""

import finetune
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the configuration of a run of three epochs that trains merger and decoder."""
    config = finetune.get_config()
    config.run_dir = "runs/finetune_full"
    config.lora.rank = 0
    config.frozen = ("visual/(?!merger)",)
    config.optimizer.learning_rate = 1e-5
    config.optimizer.moments_dtype = "bfloat16"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
