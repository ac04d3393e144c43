"""Fine-tune released weights on your own films with LoRA; docs/finetuning.md goes from a folder of films to a model.

    swjax import Qwen/Qwen2.5-VL-3B-Instruct --out weights/3b
    swjax train --config configs/finetune.py --config.data.train=films/manifest.jsonl

For 7B: `--config.init_from=weights/7b`. For all weights instead of adapters: configs/finetune_full.py. For more chips:
`--config.batch_size` rows at once, one a chip, and where a chip is too small for the weights, `--config.mesh.data=1
--config.mesh.fsdp=-1`, which divides them.
"""

from ml_collections import ConfigDict

from swjax.training.config import base_config


def get_config() -> ConfigDict:
    """Returns the configuration of a LoRA run of three epochs."""
    config = base_config()
    config.run_dir = "runs/finetune"
    config.init_from = "weights/3b"

    config.data.train = "films/manifest.jsonl"  # or any format that `swjax data inspect` knows
    config.data.max_pixels = 448 * 448  # a frame of 256 tokens

    config.epochs = 3.0
    config.batch_size = 1  # rows at once; 16 make a step
    config.accumulation = 16

    config.lora.rank = 16
    config.lora.alpha = 32.0

    config.checkpoint_every = 100
    config.eval_every = 100
    return config
