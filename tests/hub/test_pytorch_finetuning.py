"""PyTorch's finetuning.py of an exported folder beside swjax: the same layouts, masks and gradients; it trains."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from pytorch_files import make_pictures

from swjax.data.chat import encode_chat
from swjax.data.tokenizer import load_tokenizer
from swjax.hub import save_hf
from swjax.streaming import KeySpans, SpecialTokens, Variant, build_layout
from swjax.streaming.packing import concatenate_layouts

torch = pytest.importorskip("torch")

VISION = SimpleNamespace(spatial_merge_size=2, temporal_patch_size=2, tokens_per_second=2, patch_size=14)


@pytest.mark.parametrize("variant", Variant)
def test_layouts_are_those_of_training(files, variant):
    tokenizer = load_tokenizer(None)
    special = SpecialTokens.from_tokenizer(tokenizer)
    rng = np.random.default_rng(0)
    for case in range(20):
        ids, grids, total = random_chat(special, rng, videos=case % 3 != 0)
        schedule = rng.integers(0, 3, total).tolist() if case % 2 else int(rng.integers(1, 4))
        fps, gap = float(rng.choice([1, 2, 4, 1.6])), int(rng.integers(0, 300))
        wanted = build_layout(
            np.array(ids),
            np.array(grids).reshape(-1, 3),
            variant=variant,
            schedule=schedule,
            gap=gap,
            second_per_grid_t=2 / fps,
            special_tokens=special,
        )
        spec = files.streaming.Spec(variant=variant, gap=gap, fps=fps)
        found = files.finetuning.lay_out(ids, grids, tokenizer, spec, VISION, schedule)
        np.testing.assert_array_equal(found.token_ids, wanted.token_ids)
        np.testing.assert_array_equal(found.position_ids, wanted.position_ids)
        np.testing.assert_array_equal(found.start, wanted.spans.start)
        np.testing.assert_array_equal(found.stop, wanted.spans.stop)
        np.testing.assert_array_equal(found.labels, wanted.labels)


def random_chat(special, rng, *, videos):
    """Token ids of one to three turns, the grids of their videos, and how many frames they have."""
    ids, grids = [], []
    for _ in range(rng.integers(1, 4)):
        ids += [special.im_start, 50, *rng.integers(60, 90, 3)]
        count = int(rng.integers(1 if videos else 0, 3))
        for _ in range(count):
            grid = (int(rng.integers(1, 5)), 2 * int(rng.integers(1, 4)), 2 * int(rng.integers(1, 4)))
            grids.append(grid)
            pads = [special.video_pad] * (int(np.prod(grid)) // 4)
            ids += [special.vision_start, *pads, special.vision_end, *([70] if rng.random() < 0.5 else [])]
        words = rng.integers(60, 90, 40 if count else 3)
        ids += [special.im_end, special.newline, *special.prefix, *words, special.im_end, special.newline]
    return [int(token) for token in ids], grids, sum(grid[0] for grid in grids)


def test_gradients_of_a_training_step_are_ours(files, loaded, random_model, tmp_path):
    import jax
    import jax.numpy as jnp
    from flax import nnx

    model, tokenizer = loaded
    spec, vision = files.streaming.Spec.of(model), model.config.vision_config
    answers, pictures = (
        ("A red circle turns.", "Two squares meet and part, and then a third one comes."),
        make_pictures(6),
    )
    examples = [
        files.finetuning.encode_example(tokenizer, pictures[: 2 * frames], "What happens?", answer, spec, vision)
        for frames, answer in zip((2, 3), answers, strict=True)
    ]
    examples[1]["schedule"] = [0, 2, 1]
    model.zero_grad()
    model(**files.finetuning.Collate(tokenizer, spec, vision)(examples)).loss.backward()

    layouts = []
    for example, answer, schedule in zip(examples, answers, (3, [0, 2, 1]), strict=True):
        grid = example["video_grid_thw"].numpy()
        ids = encode_chat(load_tokenizer(None), question="What happens?", answer=answer, video_grid_thw=grid[0])
        special = SpecialTokens.from_tokenizer(load_tokenizer(None))
        layouts.append(build_layout(ids, grid, variant="gdpe", schedule=schedule, special_tokens=special))
    row = concatenate_layouts(layouts)
    kept = np.flatnonzero(row.labels >= 0)
    pixels, grids = (
        jnp.asarray(np.concatenate([example[name].numpy() for example in examples]))[None]
        for name in ("pixel_values_videos", "video_grid_thw")
    )

    def loss_of(model):
        logits = model(
            jnp.asarray(row.token_ids)[None],
            jnp.asarray(row.position_ids)[:, None],
            KeySpans(jnp.asarray(row.spans.start)[None], jnp.asarray(row.spans.stop)[None]),
            pixel_values=pixels,
            video_grid_thw=grids.astype(jnp.int32),
        )[0]
        return -jax.nn.log_softmax(logits)[kept, row.labels[kept]].mean()

    gradients = nnx.clone(random_model)
    nnx.update(gradients, nnx.jit(nnx.grad(loss_of))(random_model))
    save_hf(gradients, tmp_path, dtype=jnp.float32)
    from transformers import Qwen2_5_VLForConditionalGeneration

    ours = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    theirs = dict(model.named_parameters())
    assert all(parameter.grad is not None for parameter in theirs.values())
    for name, gradient in ours.named_parameters():
        scale = float(theirs[name].grad.abs().max())
        torch.testing.assert_close(gradient.detach(), theirs[name].grad, rtol=1e-4, atol=1e-4 * scale, msg=name)
    assert max(float(parameter.grad.abs().max()) for parameter in theirs.values()) > 1e-3


@pytest.fixture
def examples(files):
    """Two videos of two and three frames, and their answers."""
    tokenizer, spec = load_tokenizer(None), files.streaming.Spec(max_pixels=20_000)
    answers = "A red circle turns.", "Two squares meet and part, and then a third one comes."
    return [
        files.finetuning.encode_example(tokenizer, make_pictures(2 * frames), "What happens?", answer, spec, VISION)
        for frames, answer in zip((2, 3), answers, strict=True)
    ]


def batches_of(files, examples, variant):
    """The same batch by the name of the attention that it is for."""
    spec = files.streaming.Spec(variant=variant, max_pixels=20_000)
    for name in ("sdpa", "eager", "flex"):
        yield name, files.finetuning.Collate(load_tokenizer(None), spec, VISION, name)(examples)


@pytest.mark.parametrize("variant", Variant)
def test_masks_of_all_attentions_are_the_spans(files, examples, variant):
    from torch.nn.attention.flex_attention import create_mask

    masks = {name: batch["attention_mask"] for name, batch in batches_of(files, examples, variant)}
    special = SpecialTokens.from_tokenizer(load_tokenizer(None))
    length = masks["sdpa"].shape[-1]
    wanted = np.eye(length, dtype=bool)[None].repeat(2, 0)  # padding sees itself alone
    for row, example in zip(wanted, examples, strict=True):
        grids = example["video_grid_thw"].numpy()
        layout = build_layout(np.array(example["input_ids"]), grids, variant=variant, special_tokens=special)
        row[: len(layout), : len(layout)] = layout.spans.to_mask(len(layout))
    np.testing.assert_array_equal(masks["sdpa"][:, 0], wanted)
    np.testing.assert_array_equal(masks["eager"][:, 0] == 0, wanted)
    np.testing.assert_array_equal(masks["eager"][:, 0] < -1e38, ~wanted)
    blocks = masks["flex"]
    np.testing.assert_array_equal(create_mask(blocks.mask_mod, 2, 1, length, length, device="cpu")[:, 0], wanted)
    assert blocks.seq_lengths == (length, length)


@pytest.mark.parametrize("variant", [Variant.INTERLEAVE, Variant.GDPE])
def test_logits_of_all_attentions_are_the_same(files, loaded, examples, variant, monkeypatch):
    """FlexAttention is not compiled here, which needs a compiler of C++."""
    model, _ = loaded
    config = model.config.get_text_config()
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    found = {}
    for name, batch in batches_of(files, examples, variant):
        monkeypatch.setattr(config, "_attn_implementation", name)
        if name == "flex":
            files.finetuning.use_flex_attention(model)
        with torch.no_grad():
            found[name] = model(**batch).logits[batch["labels"] >= 0]
    assert found["sdpa"].std() > 0.1
    for name in ("eager", "flex"):
        scale = float(found["sdpa"].abs().max())
        torch.testing.assert_close(found[name], found["sdpa"], rtol=1e-4, atol=1e-5 * scale)


TRAIN = """
import json, sys
import numpy as np, torch
from transformers import Trainer, TrainingArguments
import finetuning, streaming
model, processor = streaming.load(dtype=torch.float32)
spec, vision = streaming.Spec.of(model), model.config.vision_config
pictures = list(np.load(sys.argv[1]))
examples = [
    finetuning.encode_example(processor, pictures[: 2 * frames], "What happens?", answer, spec, vision)
    for frames, answer in ((2, "A red circle turns."), (3, "Two squares meet, and then a third one comes."))
]
collate = finetuning.Collate(processor, spec, vision)
with torch.no_grad():
    before = float(model(**collate(examples)).loss)
arguments = TrainingArguments(
    sys.argv[2], remove_unused_columns=False, max_steps=6, per_device_train_batch_size=2, learning_rate=3e-3,
    lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
)
trainer = Trainer(model.train(), arguments, train_dataset=examples, data_collator=collate)
trainer.train()
print(json.dumps([before, *(log["loss"] for log in trainer.state.log_history if "loss" in log)]))
"""


@pytest.mark.parametrize("version", [pytest.param("4", marks=pytest.mark.slow), "5"])
def test_a_trainer_of_transformers_begins_at_the_loss_of_the_layout_and_lowers_it(exported, tmp_path, version, request):
    if version == "5" and importlib.util.find_spec("accelerate") is None:
        pytest.skip("transformers' Trainer needs accelerate")
    python = request.getfixturevalue("transformers_4") if version == "4" else sys.executable
    np.save(tmp_path / "pictures.npy", np.stack(make_pictures(6)))
    ran = subprocess.run(
        [python, "-c", TRAIN, str(tmp_path / "pictures.npy"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        cwd=exported,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert ran.returncode == 0, ran.stderr
    before, *losses = json.loads(ran.stdout.splitlines()[-1])
    assert losses[0] == pytest.approx(before, rel=1e-4)
    assert len(losses) == 6
    assert losses[-1] < 0.8 * before
