"""The paper's recipe: Qwen2.5-VL-7B on 20 K captions of PE-Video, one epoch.

Fetch the weights and make records of PE-Video first:

    swjax import Qwen/Qwen2.5-VL-7B-Instruct --out weights/7b
    swjax prepare pe_video --source /data/PE-Video --tokenizer weights/7b --output data

The paper's main tables are of the 3B model: for it, `--config.init_from=weights/3b --config.model.preset=3b`.
"""

from ml_collections import ConfigDict

from swjax.training.config import base_config

EXAMPLES = 20_000
"""Training examples, drawn at random from those whose answers have 3 to 6 tokens a second."""

DEVICES = 4
"""The paper's GPUs, each with one row at a time."""


def get_config() -> ConfigDict:
    """Returns the configuration of the paper's training on PE-Video."""
    config = base_config()
    config.run_dir = "runs/pe_video_7b"
    config.init_from = "weights/7b"
    config.model.preset = "7b"  # refused if the weights are of another size

    config.variant = "gdpe"  # each design of the paper is a run of its own: ospe, gdpe, gipe, interleave, offline
    config.wait_k = 3  # tokens after each frame, which is 1 s at 2 fps
    config.frozen = ("visual/(?!merger)",)  # the vision tower stays; merger and decoder train
    config.dtype = "bfloat16"  # of the computations; parameters and moments are float32

    config.data.train = "data/pe_video:train"
    config.data.validation = "data/pe_video:test"
    config.data.fps = 2.0  # videos of 5 to 30 s: 30 frames at most
    config.data.max_pixels = 448 * 448  # a frame of 256 tokens, whatever the video's length
    config.data.max_tokens = 8192
    config.data.max_patches = 30 * 1024
    config.data.max_labels = 256

    # 4 rows x 16 batches a step. On more devices, raise batch_size and lower accumulation: 64 x 1 is the same step.
    config.batch_size = DEVICES
    config.accumulation = 16
    config.steps = -(-EXAMPLES // (config.batch_size * config.accumulation))  # one epoch

    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_fraction = 0.03  # then a cosine to 0
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0

    # Less is computed again on chips with 32 GiB and more, such as v5p and v6e, with `--config.remat=minimal`, and on
    # v5e with `--config.remat=attention` (docs/planning.md).
    # float32 parameters, gradients and two moments of 7 billion parameters are shared out over all devices.
    config.mesh.data = 1
    config.mesh.fsdp = -1

    config.checkpoint_every = 50
    config.eval_every = 50
    return config
