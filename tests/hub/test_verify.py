"""The comparison with transformers: it passes what is right, and finds what is not."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from swjax.commands.main import main
from swjax.hub import CheckpointError, load_hf, save_hf, verify
from swjax.hub.position_ids import chat_position_ids
from swjax.hub.reader import read_config
from swjax.hub.verify import compare_logits, make_probes
from swjax.models.parameters import merge_parameters, split_parameters

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_qwen2_5_vl"


def test_the_video_has_more_than_one_window_and_as_many_tokens_as_features():
    config = read_config(GOLDEN)
    video = make_probes(config, np.random.default_rng(0))[-1]
    frames, rows, columns = video.grid_thw
    assert columns * config.vision.patch_size > config.vision.window_size
    assert (video.token_ids == config.video_token_id).sum() == frames * rows * columns // 4
    assert len(video.pixel_values) == frames * rows * columns
    assert video.position_ids.shape == (3, len(video.token_ids))


def test_export_compares_itself_with_transformers(tmp_path, capsys):
    pytest.importorskip("torch")
    words = ["export", "--checkpoint", str(GOLDEN), "--output", str(tmp_path / "out"), "--max-shard-size", "200KB"]
    assert main([*words, "--verify"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("largest difference to transformers") == 3
    assert "the checkpoint has no tokenizer, so there are no words to compare" in shown
    assert main([*words, "--verify", "--tolerance", "1e-12"]) == 1
    assert f"do not use {tmp_path}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("path", ["decoder/layers/k_weight_dkh", "visual/blocks/up_bias_f"])
def test_one_wrong_layer_is_found(tmp_path, monkeypatch, path):
    pytest.importorskip("torch")

    def load_wrongly(folder, dtype):
        structure, parameters = split_parameters(load_hf(folder, dtype=dtype))
        parameters[path] = parameters[path].at[0].add(0.05)
        return merge_parameters(structure, parameters)

    save_hf(load_hf(GOLDEN), tmp_path)
    assert max(compare_logits(tmp_path).values()) < 1e-5
    monkeypatch.setattr(verify, "load_hf", load_wrongly)
    assert max(compare_logits(tmp_path).values()) > 1e-3


def test_without_torch_it_says_so_before_anything_is_written(tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    words = ["export", "--checkpoint", str(GOLDEN), "--output", str(tmp_path / "out"), "--verify"]
    assert main(words) == 2
    assert "needs PyTorch, which is not installed: pip install torch" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="needs PyTorch"):
        compare_logits(GOLDEN)


def test_sizes_that_are_none_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", "--checkpoint", str(GOLDEN), "--output", str(tmp_path), "--max-shard-size", "5 gigs"])
    assert "'5 gigs' is no size; give a number and KB, MB, GB or TB" in capsys.readouterr().err


def test_a_chat_with_more_images_than_grids_is_named():
    with pytest.raises(ValueError, match="token 2 is of an image or video, and no grid is left"):
        chat_position_ids([1, 9, 9], [(1, 2, 2)], pads=[9])
