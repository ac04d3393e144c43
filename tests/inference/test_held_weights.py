"""Weights as a GPU or a TPU is given them: products merged and split, filled-up widths, stacks of small arrays.

The words are the same.
"""

from flax import nnx
from full_passes import make_frames

from swjax.inference import BatchEngine, Mode, Request, StreamSettings, Weights, run_streams
from swjax.inference import weights as weights_module
from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig

ODD = {"intermediate_size": 90}


def words(model: Weights, tokenizer, rows: int) -> list[list[int]]:
    engine = BatchEngine(model, rows=rows, frame_units=4, slots=256, chunk_sizes=(16,))
    settings = StreamSettings(wait_k=2, max_tail=4)
    requests = [Request("What happens?", make_frames(3, seed), settings, Mode.PARALLEL) for seed in range(rows)]
    streams = {number: stream for number, stream, _ in run_streams(engine, tokenizer, requests)}
    return [streams[number].answer for number in sorted(streams)]


def test_words_are_those_of_the_model_as_it_is(tokenizer, monkeypatch):
    config = Qwen2_5_VLConfig.preset("tiny", text={"vocab_size": len(tokenizer), **ODD}, vision=ODD)
    model = Qwen2_5_VL(config, rngs=nnx.Rngs(0))
    plain = Weights(model)
    monkeypatch.setattr(weights_module, "platform_of", lambda where: "gpu")
    held = Weights(model)
    assert held.fewest_tokens > plain.fewest_tokens == 1
    assert held.decoder.parameters["layers/*/attention_norm_d"].shape == (4, 128)
    assert held.decoder.parameters["layers/0/gate_up_weight_dx"].shape == (128, 256)
    for rows in (1, 2):
        assert words(held, tokenizer, rows) == words(plain, tokenizer, rows)


def test_words_of_weights_as_a_tpu_holds_them_are_the_same(tokenizer, monkeypatch):
    config = Qwen2_5_VLConfig.preset("tiny", text={"vocab_size": len(tokenizer)})
    model, twin, used_up = (Qwen2_5_VL(config, rngs=nnx.Rngs(0)) for _ in range(3))
    plain = Weights(model)
    monkeypatch.setattr(weights_module, "platform_of", lambda where: "tpu")
    stacked, apart = Weights(twin), Weights(used_up, consume=True)
    heads, features = config.vision.num_heads, config.vision.hidden_size
    assert apart.visual.parameters["blocks/0/k_weight_dnh"].shape == (features, heads, 128)
    assert stacked.visual.parameters["blocks/qkv_weight_dxnh"].shape[1:] == (features, 3, heads, 128)
    for held in (stacked, apart):
        for rows in (1, 2):
            assert words(held, tokenizer, rows) == words(plain, tokenizer, rows)


def test_a_model_may_be_used_up(tokenizer):
    config = Qwen2_5_VLConfig.preset("tiny", text={"vocab_size": len(tokenizer)})
    model, twin = (Qwen2_5_VL(config, rngs=nnx.Rngs(0)) for _ in range(2))
    held = Weights(model, consume=True)
    assert model.decoder.layers.gate_weight_df[...].is_deleted()
    assert model.visual.blocks.gate_weight_df[...].is_deleted()
    assert words(held, tokenizer, 1) == words(Weights(twin), tokenizer, 1)
