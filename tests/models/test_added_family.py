"""A family that somebody else has added: read from disk, laid out, streamed and trained, beside a plain model of it."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from safetensors.numpy import load_file
from toy_family import NORM_EPS, SMALL, TOY, ToyModel

from swjax.commands.evaluate_loss import caption_losses
from swjax.data.chat import EVALUATION_QUESTION, encode_chat
from swjax.data.manifest import read_manifest
from swjax.data.moving_shapes.prepare import prepare
from swjax.data.tokenizer import SHIPPED_TOKENIZER, TokenizerError, load_tokenizer
from swjax.hub import CheckpointError, load_hf, save_hf
from swjax.hub.verify import compare_logits
from swjax.inference import (
    Frame,
    Request,
    StreamEnded,
    StreamSession,
    StreamSettings,
    read_frames,
    run_streams,
)
from swjax.inference.frames import make_frame
from swjax.models import family, register_family
from swjax.models.parameters import split_parameters
from swjax.models.qwen2_5_vl import QWEN2_5_VL
from swjax.runs.export import export_streaming_model
from swjax.runs.folder import load_run
from swjax.runs.streaming_model import StreamingModel, open_streaming_model
from swjax.serving import EngineSize, Limits, build_engine
from swjax.streaming import KeySpans, SpecialTokens, StreamSpec, Variant, build_layout
from swjax.training.config import ConfigError, base_config
from swjax.training.run import train

QUESTION = "What happens?"
CHAT, GEOMETRY = SMALL.chat, SMALL.geometry
BUDGET = {"min_pixels": 48 * 48, "max_pixels": 48 * 72}

TEMPLATE = """\
{%- for message in messages -%}
  {{- '<turn>' ~ message.role ~ '\\n' -}}
  {%- if message.content is string -%}{{- message.content -}}{%- else -%}
    {%- for part in message.content -%}
      {{- '<see><video></see>' if part.type == 'video' else part.text -}}
    {%- endfor -%}
  {%- endif -%}
  {{- '</turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<turn>assistant\\n' -}}{%- endif -%}
"""


@pytest.fixture(scope="module", autouse=True)
def added():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "_FAMILIES", dict(family._FAMILIES))
        register_family(TOY)
        yield


@pytest.fixture(scope="module")
def folder(added, tmp_path_factory) -> Path:
    """A checkpoint as its authors would publish it: weights, config.json, and a tokenizer with marks of its own."""
    folder = tmp_path_factory.mktemp("toy")
    names = [field.name for field in dataclasses.fields(CHAT)][:6]
    marks = {getattr(QWEN2_5_VL.config.chat, name): getattr(CHAT, name) for name in names}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (SHIPPED_TOKENIZER / name).read_text(encoding="utf-8")
        for old, new in marks.items():
            text = text.replace(json.dumps(old), json.dumps(new))
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    tokenizer = load_tokenizer(folder, CHAT)
    special = SpecialTokens.from_tokenizer(tokenizer, CHAT)
    config = dataclasses.replace(
        SMALL, video_token_id=special.video_pad, image_token_id=special.image_pad, eos_token_id=special.im_end
    )
    model = ToyModel(config, rngs=nnx.Rngs(1))
    rng = np.random.default_rng(0)
    for path in ("q_norm_h", "k_norm_h", "attention_norm_d"):  # norms as after training
        scale = getattr(model.decoder.layers, path)
        scale[...] = jnp.asarray(rng.uniform(0.5, 1.5, scale.shape), jnp.float32)
    save_hf(model, folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_hf(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder, CHAT)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("moving_shapes")
    prepare(folder, train=2, validation=1, test=1, seed=0, workers=1, console=Console(quiet=True))
    return folder


def plain_logits(weights, ids, positions, mask, patches, is_video):
    """The model in numpy, a layer and a head at a time, from the tensors of the checkpoint.

    Args:
        weights: by name.
        ids, positions, mask: [L], [3, L], [L, L] (query, key).
        patches: uint8 [P, C], all of the video's.
        is_video: [L], which tokens stand for them.
    """

    def norm(x, name, eps=SMALL.text.rms_norm_eps):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weights[f"{name}.weight"]

    def linear(x, name):
        matrix = weights[f"{name}.weight"]
        return x @ matrix.reshape(len(matrix), -1).T

    def silu(x):
        return x / (1 + np.exp(-x))

    colors = np.array([[0.5, 0.4, 0.3], [0.5, 0.6, 0.7]]).repeat(patches.shape[1] // 3, axis=1)
    x = linear((patches / 255 - colors[0]) / colors[1], "visual.patch_embed")
    for block in ("visual.blocks.0", "visual.blocks.1"):
        x = x + linear(silu(linear(norm(x, f"{block}.norm", NORM_EPS), f"{block}.up")), f"{block}.down")
    video = linear(x.reshape(len(x) // 9, -1), "visual.merger")

    half, turns = 8, np.array([0, 1, 2, 0, 1, 2, 0, 0])  # which id turns each of the frequencies: t h w t h w t t
    angles = positions[turns].T * 1e6 ** (-np.arange(half) / half)

    def turned(x):
        first, second = x[:, :half], x[:, half:]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)

    x = weights["model.embed_tokens.weight"][ids].astype(np.float64)
    x[is_video] = video
    for layer in ("model.layers.0", "model.layers.1"):
        normed = norm(x, f"{layer}.input_layernorm")
        queries, keys, values = (linear(normed, f"{layer}.self_attn.{part}_proj") for part in "qkv")
        keys = turned(norm(keys, f"{layer}.self_attn.k_norm"))  # one head, which all queries share
        heads = []
        for query in np.split(queries, 3, axis=1):
            scores = turned(norm(query, f"{layer}.self_attn.q_norm")) @ keys.T / np.sqrt(2 * half)
            scores = np.where(mask, scores, -np.inf)
            scores = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(scores / scores.sum(1, keepdims=True) @ values)
        x = x + linear(np.concatenate(heads, axis=1), f"{layer}.self_attn.o_proj")
        normed = norm(x, f"{layer}.post_attention_layernorm")
        gate, up = (linear(normed, f"{layer}.mlp.{part}_proj") for part in ("gate", "up"))
        x = x + linear(silu(gate) * up, f"{layer}.mlp.down_proj")
    return linear(norm(x, "model.norm"), "lm_head")


def lay_out(tokenizer, patches, grid, answer, *, variant="gdpe", wait_k=2, question=QUESTION):
    """The layout of an answer, whole if it is text and open if it is ids, and what `plain_logits` takes of it."""
    special = SpecialTokens.from_tokenizer(tokenizer, CHAT)
    ids = encode_chat(
        tokenizer,
        question=question,
        answer=answer if isinstance(answer, str) else None,
        video_grid_thw=grid,
        merge_size=GEOMETRY.merge_size,
        chat=CHAT,
    )
    if not isinstance(answer, str):
        ids = np.concatenate([ids, np.array(answer, np.int32)])
    layout = build_layout(
        ids,
        np.array([grid]),
        variant=variant,
        schedule=wait_k,
        second_per_grid_t=GEOMETRY.frame_seconds(2.0),
        tokens_per_second=GEOMETRY.tokens_per_second,
        merge_size=GEOMETRY.merge_size,
        special_tokens=special,
    )
    is_video = layout.token_ids == special.video_pad
    return layout, (layout.token_ids, layout.position_ids, layout.spans.to_mask(len(ids)), patches, is_video)


def some_patches(frames: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (frames * rows * columns, GEOMETRY.patch_dim), np.uint8)


def test_its_checkpoint_has_the_names_of_its_table(folder, model):
    names = set(load_file(folder / "model.safetensors"))
    layer = {name.removeprefix("model.layers.0.") for name in names if name.startswith("model.layers.0.")}
    assert {"self_attn.q_norm.weight", "self_attn.k_norm.weight"} < layer
    assert not [name for name in names if name.endswith("bias")]
    assert model.decoder.layers.q_weight_dnh.shape == (2, 24, 3, 16)
    assert model.config == ToyModel(model.config, rngs=nnx.Rngs(0)).config
    assert type(model) is ToyModel


@pytest.mark.parametrize("variant", Variant)
def test_logits_are_those_of_the_plain_model(folder, model, tokenizer, variant):
    grid = (3, 6, 9)
    patches = some_patches(*grid)
    layout, plain = lay_out(tokenizer, patches, grid, "A red circle moves right and stops.", variant=variant)
    assert np.unique(np.diff(np.unique(layout.position_ids[0, plain[-1]]))).size, "the frames stand at one time"
    logits = model(
        layout.token_ids[None],
        layout.position_ids[:, None],
        type(layout.spans)(*(edge[None] for edge in layout.spans)),
        pixel_values=patches[None],
        video_grid_thw=np.array([[grid]], np.int32),
    )
    expected = plain_logits(load_file(folder / "model.safetensors"), *plain)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_its_decoder_is_that_of_qwen3_vl(folder, model):
    torch = pytest.importorskip("torch")
    from transformers.models.qwen3_vl import Qwen3VLTextConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

    text = SMALL.text
    theirs = Qwen3VLTextModel(
        Qwen3VLTextConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_layers,
            num_attention_heads=text.num_heads,
            num_key_value_heads=text.num_kv_heads,
            head_dim=text.head_dim,
            rms_norm_eps=text.rms_norm_eps,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": text.rope_theta,
                "mrope_section": list(text.mrope_section),
            },
        )
    ).float()
    tensors = load_file(folder / "model.safetensors")
    of_decoder = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    theirs.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in of_decoder.items()})
    rng = np.random.default_rng(3)
    ids, positions = rng.integers(0, 400, (1, 12)), rng.integers(0, 50, (3, 1, 12))
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(ids), position_ids=torch.from_numpy(positions)).last_hidden_state
    stop = np.arange(1, 13, dtype=np.int32)[None]
    hidden = model.hidden(jnp.asarray(ids), jnp.asarray(positions), KeySpans(np.zeros_like(stop), stop))
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-4)


def test_a_caption_loses_what_the_plain_model_loses(folder, model, tokenizer, clips):
    spec = StreamSpec(wait_k=1, **BUDGET)
    examples = read_manifest(clips / "test" / "manifest.jsonl").examples[:1]
    frames = list(read_frames(examples[0].video, fps=2, geometry=GEOMETRY, **BUDGET))
    patches, grid = np.concatenate([frame.patches for frame in frames]), (len(frames), *frames[0].grid_hw)
    question = examples[0].question or EVALUATION_QUESTION
    layout, plain = lay_out(tokenizer, patches, grid, examples[0].caption, wait_k=1, question=question)
    scores = plain_logits(load_file(folder / "model.safetensors"), *plain)
    (queries,) = np.nonzero(layout.labels >= 0)
    losses = np.log(np.exp(scores[queries]).sum(1)) - scores[queries, layout.labels[queries]]

    found = caption_losses(StreamingModel(model, folder, spec), tokenizer, examples)
    assert found.scores["loss"].value == pytest.approx(losses.mean(), rel=1e-5)


def test_an_export_holds_what_is_known_of_the_family(folder, tmp_path):
    export_streaming_model(open_streaming_model(folder), tmp_path / "out")
    assert load_hf(tmp_path / "out").config == load_hf(folder).config
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (processor["patch_size"], processor["merge_size"], processor["image_mean"]) == (8, 3, [0.5, 0.4, 0.3])
    assert not list((tmp_path / "out").glob("*.py")), "PyTorch's files know nothing of this family"
    assert "PyTorch" not in (tmp_path / "out" / "README.md").read_text()
    pytest.importorskip("torch")
    with pytest.raises(CheckpointError, match="transformers has no class for a Toy to compare with"):
        compare_logits(tmp_path / "out")


def test_a_clip_is_streamed_as_the_plain_model_would_speak(folder, model, tokenizer, clips):
    settings = StreamSettings(wait_k=2, max_tail=8, second_per_grid_t=GEOMETRY.frame_seconds(2))
    clip = next((clips / "test").rglob("*.mp4"))
    frames = list(read_frames(str(clip), fps=2, geometry=GEOMETRY, **BUDGET))[:5]
    session = StreamSession(model, tokenizer, question=QUESTION, settings=settings)
    list(session.run(frames))
    assert len(set(session.answer)) > 3, "the answer is one word again and again, so this test shows little"

    grid = (len(frames), *frames[0].grid_hw)
    patches = np.concatenate([frame.patches for frame in frames])
    layout, plain = lay_out(tokenizer, patches, grid, session.answer)
    scores = plain_logits(load_file(folder / "model.safetensors"), *plain)
    first = len(layout) - len(session.answer)
    slot_of = np.argsort(layout.chat_index)
    spoken = scores[slot_of[first - 1 : len(layout) - 1]].argmax(-1)
    assert spoken.tolist() == session.answer

    record, limits = StreamSpec(wait_k=2, **BUDGET), Limits(max_video_s=2.0, max_tail=8)
    size = EngineSize.of(record, limits, rows=2, pictures=[(56, 56)], geometry=GEOMETRY)
    assert size.frame_units * GEOMETRY.token_patches in size.frame_sizes
    engine = build_engine(model, size, tokenizer)
    requests = [Request(QUESTION, frames, settings), Request(QUESTION, frames[1:], settings)]
    ends = {
        number: stream.answer
        for number, stream, event in run_streams(engine, tokenizer, requests)
        if isinstance(event, StreamEnded)
    }
    assert ends[0] == session.answer


def test_a_frame_of_another_geometry_is_refused(model, tokenizer):
    session = StreamSession(model, tokenizer, question=QUESTION)
    pictures = [np.zeros((48, 72, 3), np.uint8)] * 2
    for frame in (make_frame(pictures, video_s=0.5, **BUDGET), Frame(some_patches(1, 6, 9), (6, 9), 0.5)):
        with pytest.raises(ValueError, match=r"patch_size=14, .*which is not the model's geometry"):
            session.see(frame)


def test_a_tokenizer_that_chats_otherwise_is_refused(folder):
    with pytest.raises(TokenizerError, match="lacks Toy's special tokens <turn>, </turn>, "):
        load_tokenizer(None, CHAT)
    with pytest.raises(TokenizerError, match=r"lacks Qwen2\.5-VL's special tokens <\|im_start\|>, "):
        load_tokenizer(folder)


def make_config(run_dir: Path, clips: Path):
    config = base_config()
    config.run_dir, config.dtype, config.frozen = str(run_dir), "float32", ()
    config.data.train = str(clips / "train" / "manifest.jsonl")
    config.data.min_pixels, config.data.max_pixels = BUDGET.values()
    config.data.max_tokens, config.data.max_patches, config.data.max_labels = 256, 900, 96
    config.steps, config.batch_size, config.accumulation, config.wait_k = 1, 8, 1, 1
    return config


def test_it_trains_a_step_from_its_checkpoint(folder, model, clips, tmp_path):
    config = make_config(tmp_path / "run", clips)
    config.init_from = str(folder)
    train(config, console=Console(quiet=True))
    trained = load_run(tmp_path / "run")
    before, after = (split_parameters(one)[1] for one in (model, trained.model))
    assert before.keys() == after.keys()
    for path, leaf in after.items():
        assert np.isfinite(leaf).all(), path
        assert not np.array_equal(leaf, before[path]), f"{path} has not been trained"
    save_hf(trained.model, tmp_path / "out")
    assert split_parameters(load_hf(tmp_path / "out"))[1].keys() == before.keys()


def test_its_sizes_are_presets_and_its_geometry_that_of_the_data(clips, tmp_path, folder):
    config = make_config(tmp_path / "run", clips)
    config.model.preset, config.tokenizer = "small_toy", str(folder)
    config.data.max_patches = 64
    with pytest.raises(
        ConfigError, match=r"config\.data\.max_patches is 64; it must be a multiple of 9, .* such as 72"
    ):
        train(config, console=Console(quiet=True))


def test_a_second_family_of_its_name_is_refused():
    with pytest.raises(ValueError, match="toy_vl"):
        register_family(dataclasses.replace(TOY, name="Other"))


def test_a_checkpoint_without_a_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nobody_vl"}')
    with pytest.raises(CheckpointError, match="model_type is 'nobody_vl', expected 'qwen2_5_vl' or 'toy_vl'"):
        load_hf(tmp_path)
