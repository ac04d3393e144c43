"""Models whose layers can be looked at and changed one by one."""

from flax import nnx

from swjax.models.layers import layers_apart


def with_layers_apart(model):
    """The same model with its layers as lists in the place of stacks; other weights are shared."""
    held = nnx.merge(*nnx.split(model))
    held.decoder.layers, held.visual.blocks = layers_apart(model.decoder.layers), layers_apart(model.visual.blocks)
    return held
