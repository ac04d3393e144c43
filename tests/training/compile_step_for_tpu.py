"""Compiles a training step ahead of time for a TPU topology and prints what came of it, as a line of JSON.

Two narrow decoder layers and vision blocks, with the vocabulary of 7B and rows of thousands of slots. A program of its
own, because a process can hold one TPU compiler only, and the test process none.
"""

import json
import re
import sys

from jax.experimental import topologies

from swjax.models.qwen2_5_vl import Qwen2_5_VLConfig
from swjax.training.config import base_config, freeze
from swjax.training.program import batch_shapes, make_program

# Sizes that no other axis of the program has, so that an array of them is known by its shape.
TOKENS, PATCHES, LABELS, ROWS, VOCABULARY = 3072, 5120, 448, 4, 151_936


def shapes_in(text):
    """Every array of a compiled program: (dtype, sizes)."""
    found = set(re.findall(r"\b(pred|[suf]\d+|bf16)\[([\d,]+)\]", text))
    return {(dtype, tuple(map(int, sizes.split(",")))) for dtype, sizes in found}


def compile_step(topology_name, *, attention="auto", **mesh):
    text = {
        "vocab_size": VOCABULARY,
        "num_layers": 2,
        "hidden_size": 512,
        "intermediate_size": 1792,
        "num_heads": 4,
        "num_kv_heads": 2,
        "tie_word_embeddings": False,
    }
    vision = {
        "depth": 2,
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_heads": 4,
        "out_hidden_size": 512,
        "full_attention_blocks": (1,),
    }
    model = Qwen2_5_VLConfig.preset("7b", text=text, vision=vision)
    config = base_config()
    config.data.max_tokens, config.data.max_patches, config.data.max_labels = TOKENS, PATCHES, LABELS
    config.batch_size, config.accumulation, config.remat = ROWS, 2, "minimal"
    config.attention = attention
    config.mesh.update({"data": 1} | mesh)
    config = freeze(config)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=topology_name)
    program = make_program(config, model, devices=topology.devices)
    shapes = batch_shapes((2, ROWS), config.data, model, program, dtype=config.dtype)
    lowered = program.train_step.lower(program.shapes, shapes)
    compiled = lowered.compile()
    memory, arrays = compiled.memory_analysis(), shapes_in(compiled.as_text())
    vocabulary = {VOCABULARY // parts for parts in (1, 2, 4)}
    parts = {length // parts for length in (TOKENS, PATCHES) for parts in (1, 2, 4)}
    dense = [sizes for _, sizes in arrays if sum(size in parts for size in sizes) > 1]
    logits = [sizes for _, sizes in arrays if vocabulary & set(sizes) and any(size % LABELS == 0 for size in sizes)]
    return {
        "kernels": lowered.as_text().count("tpu_custom_call"),
        "scatters": lowered.as_text().count('"stablehlo.scatter"'),
        "dense": dense,
        "logits": logits,
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
    }


if __name__ == "__main__":
    print(json.dumps(compile_step(sys.argv[1], **json.loads(sys.argv[2]))))
