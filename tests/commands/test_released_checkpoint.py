"""The README's commands on a folder as the hub has it: import, train, stream, evaluate, export, and transformers."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_folder import VIDEO_TEMPLATE, make_hub_folder
from safetensors import safe_open

from swjax import hub
from swjax.commands.export_words import compare_words, load_exported
from swjax.commands.import_ import EXAMPLE
from swjax.commands.main import main
from swjax.data.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from swjax.hub import load_hf
from swjax.hub.reader import read_config
from swjax.hub.tokenizer_files import TOKENIZER_FILES, copy_tokenizer
from swjax.hub.verify import compare_models
from swjax.inference import Sampling, StreamSession, StreamSettings, read_frames
from swjax.runs.export import PYTORCH_FILES
from swjax.runs.streaming_model import load_adapted_base, load_streaming_model
from swjax.training.config_file import load_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of the hub, imported; a run of its decoder and one of adapters, of one step each; their exports.

    The adapters' step is so large that what they add shows in words and logits.
    """
    root = tmp_path_factory.mktemp("released")
    make_hub_folder(root / "hub")
    counts = ["--train", "8", "--validation", "1", "--test", "1", "--workers", "1"]
    assert main(["prepare", "moving_shapes", "--output", str(root / "data"), *counts]) == 0
    assert main(["import", str(root / "hub"), "--out", str(root / "weights")]) == 0
    adapters = ["--config.lora.rank=2", "--config.optimizer.learning_rate=0.5", "--config.optimizer.warmup_fraction=0"]
    for name, keys in (("full", ["--config.lora.rank=0"]), ("lora", adapters)):
        words = ["train", "--config", "configs/moving_shapes.py", "--run-dir", str(root / name), *keys]
        words += [f"--config.data.train={root}/data/train/manifest.jsonl", "--config.data.validation="]
        words += [f"--config.init_from={root}/weights", "--config.model.preset=", "--config.data.cache_mb=0"]
        words += ["--config.frozen=('visual/(?!merger)',)", "--config.attention=reference"]
        assert main([*words, "--config.steps=1", "--config.batch_size=8"]) == 0
        assert main(["export", "--checkpoint", str(root / name), "--output", str(root / f"{name}_export")]) == 0
    words = ["export", "--checkpoint", str(root / "lora"), "--output", str(root / "adapter"), "--format", "lora"]
    assert main(words) == 0
    return root


def test_import_says_that_the_template_was_tried(made, capsys):
    assert main(["import", str(made / "weights")]) == 0
    shown = capsys.readouterr().out
    assert "in bfloat16, all there" in shown
    assert "tied embeddings" in shown
    assert "its chat template was tried on a video" in shown


@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_files_of_the_tokenizer_are_carried_over_as_they_are(made, name):
    for folder in (made / "weights", made / name / "tokenizer", made / f"{name}_export"):
        for file in TOKENIZER_FILES:
            assert (folder / file).exists() == (made / "hub" / file).exists(), file
            if (folder, file) == (made / f"{name}_export", "preprocessor_config.json"):
                continue  # it has the sizes of the training's pictures
            assert not (folder / file).exists() or (folder / file).read_bytes() == (made / "hub" / file).read_bytes()
        assert load_tokenizer(folder).chat_template == VIDEO_TEMPLATE
    config = json.loads((made / f"{name}_export" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "Qwen2Tokenizer"
    assert not isinstance(config.get("extra_special_tokens", {}), list)  # which transformers 4 does not load


@pytest.mark.parametrize("name", ["lora", "weights"])
def test_a_run_and_a_folder_of_the_hub_stream(made, capsys, name):
    video = made / "data" / "test" / "videos" / "test-00000.mp4"
    words = ["stream", "--checkpoint", str(made / name), "--video", str(video), "--max-tail", "3"]
    words += ["--question", "What happens?"]  # as other tests ask, so that nothing need be compiled anew
    assert main([*words, "--as-fast-as-possible"]) == 0
    assert "frames encoded once each" in capsys.readouterr().out


def test_an_exported_folder_is_evaluated(made):
    data = made / "data" / "test" / "manifest.jsonl"
    words = ["evaluate", "--checkpoint", str(made / "full_export"), "--data", str(data), "--max-tail", "3"]
    assert main([*words, "--output", str(made / "scores")]) == 0
    scores = json.loads((made / "scores" / "scores.json").read_text())
    assert scores["model"]["videos"] == 1


def test_training_starts_from_the_weights_of_the_hub(made):
    """One step at the warm-up's rate moves little; adapters begin at nothing."""
    start = load_hf(made / "weights", dtype="float32").decoder.embedding_vd[...]
    for name in ("full", "lora"):
        end = load_streaming_model(made / name).model.decoder.embedding_vd[...]
        assert np.abs(end - start).max() < 1e-2 * np.abs(start).max()


def test_exports_load_in_transformers_with_the_same_logits(made, capsys):
    pytest.importorskip("torch")
    for name, output, more in (
        ("full", "full_export", []),
        ("lora", "lora_export", []),
        ("lora", "rounded", ["--format", "lora", "--dtype", "bfloat16"]),
    ):
        words = ["export", "--checkpoint", str(made / name), "--output", str(made / output), "--verify", *more]
        assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.count("largest difference to transformers") == 9
    counts = re.findall(r"(\d+) of (\d+) words that streaming.py speaks in PyTorch are those spoken here", shown)
    assert len(counts) == 3
    assert all(same == all_ and int(all_) > 6 for same, all_ in counts)


def test_words_of_another_rule_are_found(made):
    pytest.importorskip("torch")
    shutil.copytree(made / "full_export", made / "edited")
    file = made / "edited" / "streaming.py"
    file.write_text(file.read_text().replace("scores.argmax()", "scores.argmin()"))
    theirs, ours = compare_words(made / "edited", lambda: load_streaming_model(made / "edited", dtype="float32"))
    assert len(ours) > 6
    assert theirs[0] != ours[0]
    with safe_open(made / "full_export" / "model.safetensors", framework="numpy") as opened:
        assert "lm_head.weight" not in opened.keys()  # noqa: SIM118 (not a dict)


def test_an_adapter_of_another_scale_is_found(made):
    pytest.importorskip("torch")
    scaled = shutil.copytree(made / "adapter", made / "scaled")
    config = json.loads((scaled / "adapter_config.json").read_text())
    (scaled / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))

    def difference(folder):
        theirs, ours = (
            lambda: load_exported(folder)[0],
            lambda: load_adapted_base(made / "lora", made / "weights").model,
        )
        return max(compare_models(read_config(made / "weights"), theirs, ours).values())

    assert difference(made / "adapter") < 1e-4
    assert difference(scaled) > 1e-2


def test_exports_carry_what_speaks_in_pytorch_and_the_base_s_generation_config(made):
    source = Path(hub.__file__).parent / "pytorch"
    for name in ("full_export", "lora_export", "adapter"):
        for file in PYTORCH_FILES:
            assert (made / name / file).read_bytes() == (source / file).read_bytes()
        found = (made / name / "generation_config.json").read_bytes()
        assert found == (made / "hub" / "generation_config.json").read_bytes()
        preprocessor = json.loads((made / name / "preprocessor_config.json").read_text())
        assert (preprocessor["min_pixels"], preprocessor["max_pixels"]) == (56 * 56, 56 * 56)
    assert json.loads((made / "adapter" / "streaming.json").read_text())["variant"] == "gdpe"


def test_the_words_in_pytorch_are_those_of_swjax(made, monkeypatch):
    """Of the merged weights, and of the adapter on the base that it names."""
    torch = pytest.importorskip("torch")
    video = made / "data" / "test" / "videos" / "test-00000.mp4"
    answers = []
    for name, folders in (("full", ["full_export"]), ("lora", ["lora_export", "adapter"])):
        loaded = load_streaming_model(made / name, dtype="float32")
        settings = StreamSettings(max_tail=5, sampling=Sampling())
        session = StreamSession(
            loaded.model, load_tokenizer(loaded.tokenizer), question="What happens?", settings=settings
        )
        record = loaded.record
        list(
            session.run(
                read_frames(str(video), fps=record.fps, min_pixels=record.min_pixels, max_pixels=record.max_pixels)
            )
        )
        for folder in folders:
            monkeypatch.syspath_prepend(str(made / folder))
            monkeypatch.delitem(sys.modules, "streaming", raising=False)
            streaming = importlib.import_module("streaming")
            monkeypatch.delitem(sys.modules, "streaming")
            model, tokenizer = streaming.load(dtype=torch.float32)
            pictures = streaming.read_pictures(video, streaming.Spec.of(model).fps)
            words = list(streaming.stream(model, tokenizer, pictures, "What happens?", max_tail=5))
            assert [word.token_id for word in words] == session.answer
            assert len(words) > 5
        answers.append(session.answer)
    assert answers[0] != answers[1]  # of which the second has the adapter


def test_the_readme_says_what_was_trained(made):
    for name in ("full_export", "lora_export", "adapter"):
        text = (made / name / "README.md").read_text()
        assert f"| base model | `{made}/weights` |" in text
        assert "| position design | `gdpe` |\n| words (tokens) after each frame | 3 |" in text
        assert "| licence of the base | not stated" in text
        assert "python streaming.py VIDEO" in text
        assert text.startswith(f"---\nlibrary_name: {'peft' if name == 'adapter' else 'transformers'}\n")


def test_the_example_of_import_starts_training_at_the_paper_s_rate():
    (words,) = [line.split() for line in EXAMPLE.splitlines() if line.startswith("  swjax train")]
    config = load_config(words[words.index("--config") + 1], words[words.index("--config") + 2 :])
    assert config.init_from == "weights/7b"
    assert config.model.preset == "7b"
    assert config.optimizer.learning_rate <= 2e-5


LOADING = """
import sys
import torch
import transformers
from transformers import AutoImageProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
assert transformers.__version__.startswith("4.57"), transformers.__version__
for folder in sys.argv[1:]:
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(tokenizer).__name__ in Qwen2_5_VLProcessor.tokenizer_class
    AutoImageProcessor.from_pretrained(folder, use_fast=False)
    template = Qwen2_5_VLProcessor.get_processor_dict(folder)[0]["chat_template"]
    content = [{"type": "text", "text": "Why?"}, {"type": "video"}]
    messages = [{"role": "system", "content": "Look."}, {"role": "user", "content": content}]
    options = {"tokenize": False, "add_generation_prompt": True, "chat_template": template}
    text = tokenizer.apply_chat_template(messages, **options)
    print(type(tokenizer).__name__, tokenizer(text).input_ids)
"""


@pytest.mark.slow
def test_exports_load_in_transformers_4(made, tmp_path, transformers_4):
    own = shutil.copytree(made / "full_export", tmp_path / "own")
    copy_tokenizer(SHIPPED_TOKENIZER, own)
    shutil.copy(made / "full_export" / "preprocessor_config.json", own)  # which an export writes behind the copy
    folders = [str(made / "full_export"), str(made / "lora_export"), str(own)]
    told = subprocess.run(
        [transformers_4, "-c", LOADING, *folders],
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert told.returncode == 0, told.stderr
    messages = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}, {"type": "video"}]},
    ]
    ours = load_tokenizer(made / "hub").apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert told.stdout.splitlines() == [f"Qwen2TokenizerFast {ours}"] * 3
