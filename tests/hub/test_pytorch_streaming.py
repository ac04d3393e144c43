"""PyTorch's streaming.py and finetuning.py of an exported folder beside swjax: the same words, layouts, gradients."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from swjax.commands.main import main
from swjax.data.chat import encode_chat
from swjax.data.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from swjax.hub import save_hf
from swjax.hub.tokenizer_files import copy_tokenizer
from swjax.streaming import Geometry, KeySpans, SpecialTokens, StreamSpec, Variant, build_layout

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("cheap_compilations")

OTHER_TRANSFORMERS = "SWJAX_TRANSFORMERS_4_PYTHON"
"""A Python with transformers 4.57, PyTorch and Pillow, in an environment of its own."""

SPEC = StreamSpec(variant="group", max_pixels=20_000, max_tail=6)  # by an alias
VISION = SimpleNamespace(spatial_merge_size=2, temporal_patch_size=2, tokens_per_second=2, patch_size=14)
CASES = {
    "offline": (3, 2, 1.0),
    "offline_gdpe": (2, (1, 2), 1.15),
    "interleave": (4, 1, 1.15),
    "ospe": (5, (0, 2, 0, 3, 1), 1.0),
    "gdpe": (5, 3, 1.15),
    "gipe": (4, (2, 0, 1), 1.15),
}
"""By design: frames, words after each, repetition penalty."""


@pytest.fixture(scope="module")
def exported(random_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    save_hf(random_model, root / "base", more_config={"streaming": asdict(SPEC)})
    copy_tokenizer(SHIPPED_TOKENIZER, root / "base")
    assert main(["export", "--checkpoint", str(root / "base"), "--output", str(root / "out")]) == 0
    return root / "out"


@pytest.fixture(scope="module")
def files(exported):
    """The two modules of the exported folder."""
    sys.path.insert(0, str(exported))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in ("streaming", "finetuning")})
    finally:
        sys.path.remove(str(exported))
        for name in ("streaming", "finetuning"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def loaded(files):
    return files.streaming.load(dtype=torch.float32)


@pytest.fixture(scope="module")
def weights(random_model):
    from swjax.inference import Weights

    return Weights(random_model)


def make_pictures(count: int, *, uneven: bool = False) -> list[np.ndarray]:
    """Noise; uneven, every second frame is taller."""
    rng = np.random.default_rng(count)
    return [
        rng.integers(0, 256, (84 if uneven and number // 2 % 2 else 56, 84, 3), np.uint8) for number in range(count)
    ]


def test_the_folder_says_what_the_model_was_trained_to_do(files, loaded):
    spec = files.streaming.Spec.of(loaded[0])
    assert asdict(spec) == asdict(SPEC) | {"variant": "gdpe"}
    assert tuple(files.streaming.DESIGNS) == tuple(Variant)
    assert asdict(files.streaming.Spec()) == asdict(StreamSpec())


@pytest.mark.parametrize("variant", CASES)
def test_words_are_those_of_a_session_token_by_token(files, loaded, weights, variant):
    from swjax.inference import Sampling, StreamSession, StreamSettings
    from swjax.inference.frames import make_frame

    frames, schedule, penalty = CASES[variant]
    pictures = make_pictures(2 * frames + 1, uneven=variant in ("ospe", "gdpe"))  # the last one makes no frame
    given = {"wait_k": schedule} if isinstance(schedule, int) else {"counts": schedule}
    settings = StreamSettings(
        variant=Variant(variant), max_tail=6, sampling=Sampling(repetition_penalty=penalty), **given
    )
    session = StreamSession(weights, load_tokenizer(None), question="What happens?", settings=settings)
    list(
        session.run(
            make_frame(pictures[2 * number : 2 * number + 2], video_s=number + 0.5, min_pixels=3136, max_pixels=20_000)
            for number in range(frames)
        )
    )
    found = list(
        files.streaming.stream(
            *loaded,
            pictures,
            "What happens?",
            spec=files.streaming.Spec(variant=variant, max_pixels=20_000, max_tail=6),
            schedule=schedule,
            repetition_penalty=penalty,
        )
    )
    assert [word.token_id for word in found] == session.answer
    assert "".join(word.text for word in found) == session.text()
    assert len(set(session.answer)) > 2


@pytest.mark.parametrize("variant", CASES)
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
    number = sum(int((layout.labels >= 0).sum()) for layout in layouts)

    def loss_of(model):
        total = 0.0
        for layout, example in zip(layouts, examples, strict=True):
            logits = model(
                jnp.asarray(layout.token_ids)[None],
                jnp.asarray(layout.position_ids)[:, None],
                KeySpans(jnp.asarray(layout.spans.start)[None], jnp.asarray(layout.spans.stop)[None]),
                pixel_values=jnp.asarray(example["pixel_values_videos"].numpy())[None],
                video_grid_thw=jnp.asarray(example["video_grid_thw"].numpy(), jnp.int32)[None],
            )[0]
            kept = np.flatnonzero(layout.labels >= 0)
            total -= jax.nn.log_softmax(logits)[kept, layout.labels[kept]].sum()
        return total / number

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


def test_it_is_a_program(files, loaded, exported, tmp_path):
    """On a real video, from another folder: it shows the words, each line with the frame that had arrived."""
    import av

    video = tmp_path / "video.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for shade in range(16):
            picture = np.full((64, 96, 3), 15 * shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    pictures = list(files.streaming.read_pictures(video, 2))
    assert [round(float(picture.mean()) / 30) for picture in pictures] == list(range(8))
    words = list(files.streaming.stream(*loaded, pictures, "What happens?"))
    lines = [""] * 4
    for word in words:
        lines[word.frame] += word.text
    program = [sys.executable, str(exported / "streaming.py"), str(video), "--question", "What happens?"]
    ran = subprocess.run(program, capture_output=True, text=True, check=True, cwd=tmp_path)
    shown = "\n".join(f"{number + 0.5:7.1f} s  frame {number:3}  {line}" for number, line in enumerate(lines))
    assert ran.stdout == f"\n{shown}\n"
    refused = subprocess.run([*program[:2], str(tmp_path / "none.mp4")], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "none.mp4" in refused.stderr
    assert "Traceback" not in refused.stderr


SPEAK = """
import json, sys
import numpy as np, torch, transformers
import finetuning, streaming
assert transformers.__version__.startswith("4.57") == (len(sys.argv) == 2), transformers.__version__
model, processor = streaming.load(dtype=torch.float32)
pictures = list(np.load(sys.argv[1]))
found = {}
for variant in streaming.DESIGNS:
    spec = streaming.Spec(variant=variant, max_tail=6)
    for name, schedule in (("k", 2), ("counts", [0, 3, 1])):
        words = streaming.stream(model, processor, pictures, spec=spec, schedule=schedule, repetition_penalty=1.15)
        found[f"{variant} {name}"] = [word.token_id for word in words]
spec, vision = streaming.Spec.of(model), model.config.vision_config
answer = "A circle turns and stops, and turns again."
example = finetuning.encode_example(processor, pictures, "What happens?", answer, spec, vision)
loss = model(**finetuning.Collate(processor, spec, vision)([example])).loss
loss.backward()
found["gradients"] = [float(loss.detach()), *(float(p.grad.norm()) for p in model.parameters())]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(OTHER_TRANSFORMERS not in os.environ, reason=f"{OTHER_TRANSFORMERS} names no Python")
def test_words_and_gradients_in_transformers_4_are_those_in_5(exported, tmp_path):
    """The tests above hold those of 5 to swjax."""
    np.save(tmp_path / "pictures.npy", np.stack(make_pictures(8)))
    found = []
    for python, more in ((os.environ[OTHER_TRANSFORMERS], []), (sys.executable, ["any"])):
        ran = subprocess.run(
            [python, "-c", SPEAK, str(tmp_path / "pictures.npy"), *more],
            capture_output=True,
            text=True,
            check=False,
            cwd=exported,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )
        assert ran.returncode == 0, ran.stderr
        found.append(json.loads(ran.stdout))
    four, five = (one.pop("gradients") for one in found)
    assert found[0] == found[1]
    assert len(found[0]) == 12
    np.testing.assert_allclose(four, five, rtol=1e-4)


def test_bad_input_is_refused(files, loaded):
    streaming = files.streaming
    with pytest.raises(ValueError, match="unknown variant 'up'"):
        streaming.Spec(variant="up")
    with pytest.raises(ValueError, match="shorter than a frame"):
        list(streaming.stream(*loaded, make_pictures(1)))
    with pytest.raises(ValueError, match="counts for 1 frames, but frame 1 is not the last"):
        list(streaming.stream(*loaded, make_pictures(6), schedule=[1]))
    with pytest.raises(ValueError, match="special token"):
        list(streaming.stream(*loaded, make_pictures(2), "<|im_end|>"))


@pytest.mark.parametrize("size", [(480, 640), (30, 900), (57, 83), (1080, 1920)])
def test_patches_are_those_of_training(files, size):
    from swjax.inference.frames import make_frame

    pictures = [np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8) for number in range(2)]
    ours = make_frame(pictures, video_s=0.0, min_pixels=3136, max_pixels=50_000)
    patches, grid = files.streaming.make_patches(pictures, files.streaming.Spec(max_pixels=50_000), VISION)
    assert grid == ours.grid_hw
    mean, std = (np.array(value, np.float32)[:, None] for value in (Geometry.pixel_mean, Geometry.pixel_std))
    wanted = (ours.patches.reshape(len(patches), 3, -1).astype(np.float32) / 255 - mean) / std
    np.testing.assert_allclose(patches.reshape(wanted.shape), wanted, atol=1e-6)
