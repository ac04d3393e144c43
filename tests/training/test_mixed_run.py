"""A run on films, images, several films, later turns and text alone, packed, on eight devices."""

import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console

from swjax.models.parameters import split_parameters
from swjax.runs.folder import load_run
from swjax.training.run import train

CAPTION = "The video shows a red square. It moves to the left and then it leaves the picture at the top left corner."


@pytest.fixture
def mixed(moving_shapes: Path, tmp_path: Path) -> Path:
    """A manifest of chats of six kinds, four of each."""
    shutil.copytree(moving_shapes / "train" / "videos", tmp_path / "videos")
    films = sorted(f"videos/{path.name}" for path in (tmp_path / "videos").iterdir())
    for number in range(4):
        Image.new("RGB", (56, 56), (60 * number, 80, 120)).save(tmp_path / f"{number}.png")
    lines = []
    for number in range(4):
        image, one = f"{number}.png", {"video_path": films[number], "human_caption": CAPTION}
        turns = [("<image>What is it?", "A square."), ("And <image>?<video>", CAPTION), ("Why?", "It is red.")]
        lines += [
            one,
            one | {"question": "What happens?", "system": "Be short."},
            {"images": [image], "question": "<image>Which one?", "human_caption": "A blue square."},
            {"videos": films[4:6], "question": "Which?<video><video>", "human_caption": f"{CAPTION} {CAPTION}"},
            {"video_path": None, "question": "Who leaves?", "human_caption": f"The square number {number}."},
            {"images": [image] * 2, "videos": [films[7]]}
            | {"turns": [{"question": question, "answer": answer} for question, answer in turns]},
        ]
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def parameters_of(run_dir: Path) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in split_parameters(load_run(run_dir).model)[1].items()}


def test_a_mixed_run_compiles_once_and_resumes_with_the_same_bits(make_config, mixed: Path, tmp_path: Path) -> None:
    config: ConfigDict = make_config(tmp_path / "run")
    config.data.train, config.data.validation, config.eval_every = str(mixed), "", 100
    config.data.batching, config.data.max_videos, config.data.window = "pack", 6, 24
    config.epochs = 4.0  # of 24 examples, which fill some 8 rows
    config.data.max_tokens, config.data.max_patches, config.data.max_labels = 320, 448, 128
    console = Console(record=True, width=200, quiet=False, file=io.StringIO())
    train(config, console=console)
    assert "24 examples, 4 epochs of packed rows, 4 steps of 8 rows" in console.export_text()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(jax.devices()) == 8
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert {line["compilations"] for line in lines if "loss" in line} == {1}, "whatever is in a batch"
    assert not (tmp_path / "run" / "rejected" / "train.jsonl").exists(), "every kind is trained on"
    straight = parameters_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    train(config, console=Console(quiet=True))
    resumed = parameters_of(tmp_path / "run")
    for name, array in straight.items():
        np.testing.assert_array_equal(resumed[name].view(np.uint32), array.view(np.uint32), err_msg=name)
