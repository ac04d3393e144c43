"""The PyTorch side of the GPU benchmark, in miniature: its records, and that it computes what ours computes."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PARTS = ROOT / "benchmarks" / "gpu_parts"
torch = pytest.importorskip("torch")


@pytest.fixture
def step(monkeypatch):
    monkeypatch.syspath_prepend(str(PARTS))
    return importlib.import_module("torch_step")


def records_of(out: Path, part: str, *words: str) -> list[dict]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, PARTS / part, "--out", out, "--dry-run", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


def tiny(step, method: str):
    """A model in float32, its batch, its mask and the layout."""
    shape = step.TINY_MODELS["7b_4_layers"]
    layout, grid = step.streaming_row(step.TINY_STEP_LENGTH)
    model = step.build_model(shape, step.METHODS[method], dtype=torch.float32)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights *= 6  # so that what a token sees shows in its logits
    batch = step.make_batch(layout, grid, shape.vocab_size, dtype=torch.float32)
    return model, batch, step.attention_mask(method, layout.spans, dtype=torch.float32), layout


def logits_of(model, batch, mask) -> np.ndarray:
    with torch.no_grad():
        return model(**batch.inputs, attention_mask=mask, use_cache=False).logits[0].numpy()


def test_every_method_of_attention_is_exact_and_timed(tmp_path):
    found = records_of(tmp_path / "records.jsonl", "torch_attention.py")
    assert not [record for record in found if "failed" in record]
    errors = {record["method"]: record for record in found if record["method"].endswith("_error")}
    methods = {"torch_flex", "torch_flex_causal", "torch_sdpa_causal", "torch_sdpa_mask"}
    assert errors.keys() == {f"{method}_error" for method in methods}
    assert all(0 < record["error"] < 0.01 and 0 < record["gradient_error"] < 0.02 for record in errors.values())
    timed = {(record["method"], record["which"]): record for record in found if "which" in record}
    assert timed.keys() == {(method, which) for method in methods for which in ("forward", "both")}
    assert all(record["seconds"] > 0 and record["length"] == 256 for record in timed.values())
    assert timed["torch_sdpa_causal", "both"]["pairs"] == 256 * 257 // 2
    assert timed["torch_flex", "both"]["pairs"] == timed["torch_sdpa_mask", "both"]["pairs"] < 256 * 257 // 2


def test_a_step_is_timed_or_says_why_not(tmp_path):
    (record,) = records_of(tmp_path / "records.jsonl", "torch_step.py", "--case", "3b:sdpa")
    assert "failed" not in record
    assert (record["method"], record["model"], record["runs"]) == ("HF sdpa", "3b", 1)
    assert record["tokens"] == 280
    assert record["tokens_per_second"] == pytest.approx(280 / record["seconds"])
    assert record["labels"] == 13
    assert np.isfinite(record["loss"])


def test_logits_of_every_method_are_those_of_our_model(step, tmp_path):
    import jax.numpy as jnp
    from flax import nnx

    from swjax.hub import load_hf
    from swjax.streaming import KeySpans

    model, batch, _, layout = tiny(step, "eager")
    model.save_pretrained(tmp_path)
    ours = nnx.jit(lambda model, *arguments, **pixels: model(*arguments, **pixels))(
        load_hf(tmp_path),
        jnp.asarray(batch.inputs["input_ids"].numpy(), jnp.int32),
        jnp.asarray(layout.position_ids[:, None]),
        KeySpans(jnp.asarray(layout.spans.start[None]), jnp.asarray(layout.spans.stop[None])),
        pixel_values=jnp.asarray(batch.inputs["pixel_values_videos"].numpy()[None]),
        video_grid_thw=jnp.asarray(batch.inputs["video_grid_thw"].numpy()[None], jnp.int32),
    )
    real = layout.chat_index >= 0
    right = np.asarray(ours[0])[real]
    assert np.std(right) > 0.1
    for method in step.METHODS:
        other = tiny(step, method)[0]
        other.load_state_dict(model.state_dict())
        theirs = logits_of(other, batch, step.attention_mask(method, layout.spans, dtype=torch.float32))[real]
        np.testing.assert_allclose(theirs, right, rtol=0, atol=2e-5 * np.abs(right).max(), err_msg=method)


@pytest.mark.parametrize("method", ["eager", "sdpa", "flex"])
def test_only_those_who_see_a_token_notice_that_it_changed(step, method):
    model, batch, mask, layout = tiny(step, method)
    before = logits_of(model, batch, mask)
    last_word, last_source = 0, int((layout.chat_index >= 0).sum()) - 1
    for slot, seen_by in ((last_word, [0]), (last_source, [0, 1, 2, 3, 4, 5, last_source])):
        kept = batch.inputs["input_ids"].clone()
        batch.inputs["input_ids"][0, slot] = 500
        moved = np.abs(logits_of(model, batch, mask) - before).max(axis=-1)
        batch.inputs["input_ids"] = kept
        assert np.flatnonzero(moved > 1e-3).tolist() == seen_by
        assert moved[np.setdiff1d(np.arange(len(layout)), seen_by)].max() < 1e-5


def test_the_loss_of_all_logits_is_that_of_the_labelled_ones(step):
    model, batch, mask, _ = tiny(step, "sdpa")
    losses = [step.loss_of(model, batch, mask, every_logit=every).item() for every in (True, False)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_windows_in_one_batch_are_what_transformers_computes_one_by_one(step):
    model, batch, _, _ = tiny(step, "sdpa")
    pixels, grid = batch.inputs["pixel_values_videos"], batch.inputs["video_grid_thw"]
    with torch.no_grad():
        ours = model.model.visual(pixels, grid).pooler_output
        for block in model.model.visual.blocks:
            del block.attn.forward
        theirs = model.model.visual(pixels, grid).pooler_output
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert float(theirs.std()) > 0.01


def test_the_tower_is_frozen_and_its_merger_is_not(step):
    model, batch, mask, _ = tiny(step, "sdpa")
    step.loss_of(model, batch, mask, every_logit=False).backward()
    with_gradient = {name for name, weights in model.named_parameters() if weights.grad is not None}
    assert not [name for name in with_gradient if ".visual.blocks." in name or "patch_embed" in name]
    assert [name for name in with_gradient if ".visual.merger." in name]
    assert [name for name in with_gradient if ".language_model.layers." in name]


def test_what_does_not_fit_is_computed_again(step, monkeypatch):
    model, batch, mask, _ = tiny(step, "sdpa")
    really = step.time_steps

    def small_device(model, *arguments):
        if not model.is_gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return really(model, *arguments)

    kept = step.time_either(model, batch, mask, "sdpa", 1)
    monkeypatch.setattr(step, "time_steps", small_device)
    model = tiny(step, "sdpa")[0]
    again = step.time_either(model, batch, mask, "sdpa", 1)
    assert (kept["gradient_checkpointing"], again["gradient_checkpointing"]) == (False, True)
    assert again["loss"] == pytest.approx(kept["loss"], rel=1e-6)


def test_adapters_train_alone(step):
    pytest.importorskip("peft")
    model = step.build_model(step.TINY_MODELS["7b"], "sdpa")
    trained = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
    assert len(trained) == 2 * 7 * 2, "two matrices on each of seven products of two layers"
    assert all("lora_" in name and weights.dtype == torch.bfloat16 for name, weights in trained.items())
