"""Weights and cache divided over a mesh: the words are those of one device."""

import jax
import pytest
from full_passes import make_frames

from swjax.inference import BatchEngine, Mode, Request, StreamSettings, Weights, run_streams
from swjax.inference.sampler import Sampling
from swjax.mesh import make_mesh

SETTINGS = {
    Mode.PARALLEL: StreamSettings(variant="gdpe", wait_k=2, max_tail=4),
    Mode.SEQUENTIAL: StreamSettings(variant="gipe", wait_k=3, max_tail=4, sampling=Sampling(repetition_penalty=1.2)),
    Mode.INTERLEAVED: StreamSettings(variant="interleave", wait_k=2, max_tail=4),
    Mode.OFFLINE: StreamSettings(variant="ospe", max_tail=8),
}


def mesh_of(data: int, tensor: int):
    return make_mesh(data=data, tensor=tensor, devices=jax.devices()[: data * tensor])


def words(weights: Weights, tokenizer) -> list[list[int]]:
    engine = BatchEngine(weights, rows=2, frame_units=4, slots=256, chunk_sizes=(16,))
    requests = [
        Request("What happens?", make_frames(3, seed), settings, mode)
        for seed, (mode, settings) in enumerate(SETTINGS.items())
    ]
    streams = {number: stream for number, stream, _ in run_streams(engine, tokenizer, requests)}
    return [streams[number].answer for number in sorted(streams)]


@pytest.fixture(scope="module")
def usual(weights, tokenizer):
    return words(weights, tokenizer)


# Two key heads: one a device, or each on two devices.
@pytest.mark.parametrize(("data", "tensor"), [(1, 2), (1, 4), (2, 2)])
def test_words_are_those_of_one_device(data, tensor, model, usual, tokenizer):
    weights = Weights(model, mesh_of(data, tensor))
    assert words(weights, tokenizer) == usual
    whole = weights.decoder.parameters["layers/0/gate_weight_df"]
    assert whole.sharding.shard_shape(whole.shape)[1] == whole.shape[1] // tensor


def test_a_cache_is_divided(model):
    weights = Weights(model, mesh_of(2, 4))
    cache = BatchEngine(weights, rows=2, frame_units=4)._speaker._cache.keys
    layers, _, _, slots, width = cache.shape
    assert cache.sharding.shard_shape(cache.shape) == (layers, 1, 1, slots, width)


@pytest.mark.parametrize(
    ("mesh", "rows", "message"),
    [
        (lambda: mesh_of(1, 8), 2, "divided by tensor=8; choose one of 1, 2, 4"),
        (lambda: mesh_of(2, 2), 3, "3 rows are not divided by the mesh's data x fsdp = 2"),
        (lambda: make_mesh(context=2, devices=jax.devices()[:2]), 2, "no context axis"),
    ],
)
def test_what_does_not_fit_is_refused(mesh, rows, message, model):
    with pytest.raises(ValueError, match=message):
        BatchEngine(Weights(model, mesh()), rows=rows, frame_units=4)
