"""Twenty steps of the paper's recipe beside PyTorch's: the same model, data, mask, schedule, clip and AdamW."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swjax.hub import load_hf
from swjax.mesh import make_mesh
from swjax.models.parameters import split_parameters
from swjax.streaming import SpecialTokens, build_layout
from swjax.training.optimizer import learning_rate_schedule, make_optimizer, split_frozen
from swjax.training.step import StepOptions, initial_state, make_train_step, put_batch, state_shardings

FOLDER = Path(__file__).parents[1] / "golden" / "tiny_qwen2_5_vl"
GOLDEN = np.load(FOLDER / "golden.npz")
STEPS, RATE, CLIP = 20, 2e-3, 1.0
FROZEN = ("visual/(?!merger)",)


def recorded(case: int, name: str) -> np.ndarray:
    return GOLDEN[f"case{case}/{name}"]


def rows() -> list[dict[str, np.ndarray]]:
    """The two recorded chats, laid out for GDPE, padded to the longer: two rows of unlike length."""
    tokens, patches = (max(recorded(case, name).shape[0] for case in (0, 1)) for name in ("input_ids", "pixel_values"))
    padded = []
    for case in (0, 1):
        grid = recorded(case, "grid_thw").astype(np.int32)
        layout = build_layout(
            recorded(case, "official_ids"), grid[None], variant="gdpe", special_tokens=SpecialTokens.qwen2_5_vl()
        )
        np.testing.assert_array_equal(layout.position_ids, recorded(case, "positions_gdpe")[:, layout.chat_index])
        ids = recorded(case, "input_ids")[layout.chat_index].astype(np.int32)
        # Labels are official ids; in the tiny vocabulary they are the ids of the next tokens of the chat.
        slots = np.flatnonzero(layout.labels >= 0)
        labels = np.full(len(ids), -100, np.int32)
        labels[slots] = recorded(case, "input_ids")[layout.chat_index[slots] + 1]
        more, alone = tokens - len(ids), np.arange(len(ids), tokens, dtype=np.int32)
        pixels = recorded(case, "pixel_values")
        padded.append(
            {
                "token_ids": np.pad(ids, (0, more)),
                "position_ids": np.pad(layout.position_ids, ((0, 0), (0, more))),
                "span_start": np.concatenate([layout.spans.start, alone]),
                "span_stop": np.concatenate([layout.spans.stop, alone + 1]),
                "labels": np.pad(labels, (0, more), constant_values=-100),
                "pixel_values": np.pad(pixels, ((0, patches - len(pixels)), (0, 0))),
                "video_grid_thw": grid[None],
            }
        )
    return padded


def our_losses() -> list[float]:
    """On one device, the two rows as two micro-batches of a step."""
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    structure, parameters = split_parameters(load_hf(FOLDER))
    schedule = learning_rate_schedule(RATE, steps=STEPS, warmup_fraction=0.15)
    optimizer = make_optimizer(schedule, clip_norm=CLIP, weight_decay=0.0, b1=0.9, b2=0.999)
    state = initial_state(*split_frozen(parameters, FROZEN), optimizer)
    options = StepOptions(compute_dtype=jnp.dtype("float32"), max_labels=64)
    step = make_train_step(structure, optimizer, schedule, mesh, state_shardings(mesh, state), options)
    both = rows()
    batch = {name: np.stack([row[name] for row in both]) for name in both[0]}
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, put_batch(batch, mesh, max_labels=64, accumulation=2))
        losses.append(float(metrics["loss"]))
    return losses


def their_losses() -> list[float]:
    """In chat order, with the recorded positions and the mask of the paper's authors, one row after the other."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration, get_cosine_schedule_with_warmup

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "visual." not in name or "visual.merger" in name
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.999), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=3, num_training_steps=STEPS)

    examples = []
    for case in (0, 1):
        ids = recorded(case, "input_ids")
        layout = build_layout(
            recorded(case, "official_ids"),
            recorded(case, "grid_thw")[None],
            variant="gdpe",
            special_tokens=SpecialTokens.qwen2_5_vl(),
        )
        queries = np.sort(layout.chat_index[layout.labels >= 0])
        visible = torch.from_numpy(recorded(case, "group_mask"))
        examples.append(
            (
                {
                    "input_ids": torch.from_numpy(ids)[None],
                    "position_ids": torch.from_numpy(recorded(case, "positions_gdpe"))[:, None],
                    "attention_mask": torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None],
                    "pixel_values_videos": torch.from_numpy(recorded(case, "pixel_values")),
                    "video_grid_thw": torch.from_numpy(recorded(case, "grid_thw"))[None],
                },
                torch.from_numpy(queries),
                torch.from_numpy(ids[queries + 1]),
            )
        )
    total = sum(len(labels) for _, _, labels in examples)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        summed = 0.0
        for inputs, queries, labels in examples:
            logits = model(**inputs).logits[0, queries]
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / total
            loss.backward()
            summed += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        schedule.step()
        losses.append(summed)
    return losses


def test_twenty_steps_are_those_of_pytorch() -> None:
    pytest.importorskip("torch")
    ours, theirs = our_losses(), their_losses()
    assert theirs[-1] < 0.8 * theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
