"""A model that decides when to speak, through the verbs: prepare, train, stream, evaluate, export, serve's offer."""

import json
import re

import pytest

from swjax.commands.main import main
from swjax.data.decisions import find_decisions
from swjax.data.tokenizer import load_tokenizer
from swjax.runs.streaming_model import load_streaming_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("decide")
    counts = ["--train", "8", "--validation", "1", "--test", "2", "--workers", "1"]
    assert main(["prepare", "moving_shapes", "--output", str(root / "data"), *counts]) == 0
    words = ["train", "--config", "configs/moving_shapes.py", "--run-dir", str(root / "run")]
    words += [f"--config.data.train={root}/data/train/timed.jsonl", "--config.data.validation="]
    words += [
        "--config.model.overrides={'text': {'num_layers': 1}, 'vision': {'depth': 1, 'full_attention_blocks': [0]}}"
    ]
    words += ["--config.speaking=decide", "--config.steps=1", "--config.batch_size=8"]
    assert main(words) == 0
    assert main(["export", "--checkpoint", str(root / "run"), "--output", str(root / "export")]) == 0
    return root


def test_the_run_and_its_export_know_that_they_decide(made):
    for folder in (made / "run", made / "export"):
        source = load_streaming_model(folder)
        assert source.record.speaking == "decide"
        decisions = find_decisions(load_tokenizer(source.tokenizer))
        assert max(decisions.skip, decisions.end) < source.model.config.text.vocab_size


@pytest.mark.parametrize("checkpoint", ["run", "export"])
def test_stream_decides(made, capsys, checkpoint):
    video = made / "data" / "test" / "videos" / "test-00000.mp4"
    words = ["stream", "--checkpoint", str(made / checkpoint), "--video", str(video), "--json", "--max-tail", "3"]

    def spoken(*more):
        assert main([*words, "--as-fast-as-possible", *more]) == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [event["after_frame"] for event in events if event["event"] == "TokenSpoken"]

    assert spoken("--speak", "never") == []
    always = spoken("--speak", "always:most=1")
    frames = always[-1] + 1
    assert sorted(set(always)) == list(range(frames))
    assert sorted(set(spoken("--speak", "decide:most=4"))) == list(range(frames)), "each frame has a decision"


def test_the_export_decides_in_pytorch(made, capsys):
    pytest.importorskip("torch")
    words = ["export", "--checkpoint", str(made / "run"), "--output", str(made / "verified"), "--verify"]
    assert main(words) == 0
    (same, count), *_ = re.findall(r"(\d+) of (\d+) words that streaming.py speaks", capsys.readouterr().out)
    assert same == count
    assert int(count) >= 4


def test_evaluate_scores_when_it_spoke(made, capsys):
    words = ["evaluate", "--checkpoint", str(made / "run"), "--data", str(made / "data" / "test" / "timed.jsonl")]
    assert main([*words, "--speak", "decide:most=2", "--max-tail", "3", "--benchmark", "captions"]) == 0
    rows = json.loads((made / "run" / "evaluation" / "scores.json").read_text())
    assert {"f1_0", "exact", "delay_s_1"} & set(rows["model"])
    assert rows["never speaks"]["f1_0"] == 0
    assert rows["speaks after every frame"]["f1_0"] > 0
    assert "F1, same frame" in capsys.readouterr().out


def test_a_model_that_does_not_decide_says_so(made, capsys):
    words = ["train", "--config", "configs/moving_shapes.py", "--run-dir", str(made / "plain")]
    words += [f"--config.data.train={made}/data/train/timed.jsonl", "--config.speaking=decide"]
    assert main([*words, "--config.variant=offline", "--config.data.validation="]) == 2
    assert re.search(r"'decide', and variant offline does not speak while it watches", capsys.readouterr().err)


def test_on_a_mesh_it_says_the_same(made, capsys):
    video = made / "data" / "test" / "videos" / "test-00000.mp4"
    words = ["stream", "--checkpoint", str(made / "run"), "--video", str(video), "--json", "--max-tail", "3"]

    def spoken(*more):
        assert main([*words, "--as-fast-as-possible", *more]) == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [event["token_id"] for event in events if event["event"] == "TokenSpoken"]

    assert spoken("--mesh", "tensor=2") == spoken()
    assert main([*words, "--mesh", "tensor=3"]) == 2
    assert "not divided by tensor=3; choose one of" in capsys.readouterr().err
    assert main([*words, "--mesh", "context=2"]) == 2
    assert "write tensor=4 or data=2,tensor=4" in capsys.readouterr().err


def test_a_mesh_evaluates_as_one_device_does(made):
    said = []
    for name, more in {"one": [], "mesh": ["--mesh", "data=2,tensor=2"]}.items():
        words = ["evaluate", "--checkpoint", str(made / "run"), "--data", str(made / "data" / "test" / "timed.jsonl")]
        words += ["--output", str(made / name), "--rows", "2", "--speak", "decide:most=2", "--max-tail", "3"]
        assert main([*words, *more]) == 0
        lines = (made / name / "predictions.jsonl").read_text().splitlines()
        said.append([json.loads(line)["token_ids"] for line in lines])
    assert said[0] == said[1]
