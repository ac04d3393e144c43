"""Fine-tune released weights on your own films with LoRA; docs/finetuning.md goes from a folder of films to a model.

    swjax import Qwen/Qwen2.5-VL-3B-Instruct --out weights/3b
    swjax train --config configs/finetune.py --config.data.train=films/manifest.jsonl

For 7B: `--config.init_from=weights/7b`. For all weights instead of adapters: configs/finetune_full.py. It runs as it is
on one chip and on many, a row on each; where a chip is too small for the weights, `--config.mesh.data=1
--config.mesh.fsdp=-1` divides them.
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
    config.batch_size = 0  # a row for each chip
    config.accumulation = 16  # on one chip; on 8 chips 2, so that 16 rows make a step

    config.lora.rank = 16
    config.lora.alpha = 32.0

    config.checkpoint_every = 100
    config.eval_every = 100
    return config
