"""PyTorch's streaming.py of an exported folder beside swjax: the same words, patches and choices."""

import json
import os
import runpy
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from pytorch_files import SPEC, make_pictures

from swjax.data.tokenizer import load_tokenizer
from swjax.streaming import Geometry, StreamSpec, Variant

torch = pytest.importorskip("torch")

VISION = SimpleNamespace(spatial_merge_size=2, temporal_patch_size=2, patch_size=14)
CASES = {
    "offline": (3, 2, 1.0),
    "offline_gdpe": (2, (1, 2), 1.15),
    "interleave": (4, 1, 1.15),
    "ospe": (5, (0, 2, 0, 3, 1), 1.0),
    "gdpe": (5, 3, 1.15),
    "gipe": (4, (2, 0, 1), 1.15),
}
"""By design: frames, words after each, repetition penalty."""


def test_the_folder_says_what_the_model_was_trained_to_do(files, loaded):
    spec = files.streaming.Spec.of(loaded[0])
    assert asdict(spec) == asdict(SPEC) | {"variant": "gdpe"}
    assert tuple(files.streaming.DESIGNS) == tuple(Variant)
    assert asdict(files.streaming.Spec()) == asdict(StreamSpec())
    with pytest.warns(UserWarning, match="trained on frames without what uniform drops; it sees whole ones here"):
        files.streaming.Spec(drop="uniform")


def pictures_of(variant: str) -> list[np.ndarray]:
    """The last one makes no frame."""
    return make_pictures(2 * CASES[variant][0] + 1, uneven=variant in ("ospe", "gdpe"))


@pytest.fixture(scope="module")
def streams(random_model):
    """What swjax says of each case: streams of one engine, so that little is compiled."""
    from swjax.inference import BatchEngine, Request, Sampling, StreamSettings, run_streams
    from swjax.inference.frames import make_frame

    requests = []
    for variant, (frames, schedule, penalty) in CASES.items():
        given = {"wait_k": schedule} if isinstance(schedule, int) else {"counts": schedule}
        sampling, pictures = Sampling(repetition_penalty=penalty), pictures_of(variant)
        seen = [
            make_frame(pictures[2 * number : 2 * number + 2], video_s=number + 0.5, min_pixels=3136, max_pixels=20_000)
            for number in range(frames)
        ]
        settings = StreamSettings(variant=Variant(variant), max_tail=6, sampling=sampling, **given)
        requests.append(Request("What happens?", seen, settings))
    engine = BatchEngine(random_model, rows=len(CASES), frame_units=9)
    found = {number: stream for number, stream, _ in run_streams(engine, load_tokenizer(None), requests)}
    return dict(zip(CASES, (found[number] for number in range(len(CASES))), strict=True))


@pytest.mark.parametrize(
    ("variant", "attention"), [*((variant, "sdpa") for variant in CASES), ("interleave", "eager"), ("gdpe", "eager")]
)
def test_words_are_those_of_a_stream_token_by_token(files, loaded, streams, variant, attention, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setattr(model.config.get_text_config(), "_attn_implementation", attention)
    _, schedule, penalty = CASES[variant]
    found = list(
        files.streaming.stream(
            model,
            tokenizer,
            pictures_of(variant),
            "What happens?",
            spec=files.streaming.Spec(variant=variant, max_pixels=20_000, max_tail=6),
            schedule=schedule,
            repetition_penalty=penalty,
        )
    )
    assert [word.token_id for word in found] == streams[variant].answer
    assert "".join(word.text for word in found) == streams[variant].text
    assert len({word.token_id for word in found}) > 2


SAMPLINGS = [
    {"temperature": 0.7, "top_k": 5, "top_p": 0.8, "repetition_penalty": 1.15},
    {"temperature": 1.0, "top_p": 0.3},
    {"temperature": 1.5, "top_p": 0.95, "repetition_penalty": 3.0},
    {"temperature": 2.0, "top_k": 1, "repetition_penalty": 0.8},
    {"temperature": 0.0, "repetition_penalty": 1.5},
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_word_is_drawn_with_our_probabilities(files, sampling, monkeypatch):
    """The probabilities that are handed to the draw, token by token; what is certain is chosen without one."""
    import jax
    import jax.numpy as jnp

    from swjax.inference.sampler import SamplingRows, keep_likely, penalize
    from swjax.inference.settings import Sampling

    scores = np.random.default_rng(0).normal(size=40).astype(np.float32) * 2
    said = [3, 7, int(scores.argmax()), 3]
    rows = SamplingRows.of([Sampling(**sampling)], [len(said)])
    ours = penalize(jnp.asarray(scores)[None], jnp.zeros((1, 40), bool).at[0, jnp.array(said)].set(True), rows[3])
    wanted = np.eye(40)[int(ours.argmax())]
    if sampling["temperature"]:
        wanted = jax.nn.softmax(keep_likely(ours / rows.temperature, rows.top_k, rows.top_p))[0]

    drawn, draw = [], torch.multinomial

    def watched(chances, count, *, generator):
        drawn.append(chances / chances.sum())
        return draw(torch.eye(40)[rank], count, generator=generator)

    monkeypatch.setattr(torch, "multinomial", watched)
    options = sampling.get("top_k", 0), sampling.get("top_p", 1.0), sampling.get("repetition_penalty", 1.0)
    found = np.zeros(40)
    for rank in range(40):
        token = files.streaming.choose(torch.tensor(scores), said, sampling["temperature"], *options, torch.Generator())
        found[token] += drawn.pop()[rank] if drawn else 1 / 40
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_words_are_drawn_as_often_as_they_are_likely_and_a_seed_repeats_them(files):
    scores, count = torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0]), 2000
    generator = torch.Generator().manual_seed(1)
    drawn = [files.streaming.choose(scores.clone(), [], 1.0, 0, 1.0, 1.0, generator) for _ in range(count)]
    chances = scores.softmax(0).numpy()
    errors = 5 * np.sqrt(chances * (1 - chances) / count)
    assert (np.abs(np.bincount(drawn, minlength=5) / count - chances) <= errors).all()
    generator.manual_seed(1)
    again = [files.streaming.choose(scores.clone(), [], 1.0, 0, 1.0, 1.0, generator) for _ in range(50)]
    assert again == drawn[:50]


def test_it_is_a_program(files, loaded, exported, tmp_path, monkeypatch, capsys):
    """On a real video: it shows the words, each line with the frame that had arrived."""
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
    program = str(exported / "streaming.py")
    monkeypatch.setattr(sys, "argv", [program, str(video), "--question", "What happens?"])
    runpy.run_path(program, run_name="__main__")
    shown = "\n".join(f"{number + 0.5:7.1f} s  frame {number:3}  {line}" for number, line in enumerate(lines))
    assert capsys.readouterr().out == f"\n{shown}\n"
    monkeypatch.setattr(sys, "argv", [program, str(tmp_path / "none.mp4")])
    with pytest.raises(SystemExit, match=r"^streaming.py: .*none.mp4"):
        runpy.run_path(program, run_name="__main__")


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
def test_words_and_gradients_in_transformers_4_are_those_in_5(exported, tmp_path, transformers_4):
    """The tests above hold those of 5 to swjax."""
    np.save(tmp_path / "pictures.npy", np.stack(make_pictures(8)))
    found = []
    for python, more in ((transformers_4, []), (sys.executable, ["any"])):
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


def test_bad_input_is_refused(files, loaded, exported):
    streaming = files.streaming
    with pytest.raises(ValueError, match="unknown variant 'up'"):
        streaming.Spec(variant="up")
    with pytest.raises(ValueError, match="shorter than a frame"):
        list(streaming.stream(*loaded, make_pictures(1)))
    with pytest.raises(ValueError, match="shorter than a frame"):
        files.finetuning.encode_example(loaded[1], make_pictures(1), "What?", "It moves.", SPEC, VISION)
    with pytest.raises(ValueError, match="is no adapter, so it takes no base"):
        streaming.load(exported, base=str(exported))
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
