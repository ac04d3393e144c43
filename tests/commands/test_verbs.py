"""The verbs on a small run that they make themselves: export, stream and evaluate, through the console script."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from swjax.commands.evaluate_watch import MODES
from swjax.commands.main import VERBS, main
from swjax.data.tokenizer import load_tokenizer
from swjax.evaluation import read_events
from swjax.evaluation.benchmarks import Benchmark, Metric, register_benchmark
from swjax.evaluation.bootstrap import mean_score
from swjax.evaluation.predictions import read_predictions
from swjax.inference import Mode, read_frames
from swjax.inference.memory import Window

TINY = [
    "--config.model.overrides={'text': {'num_layers': 1}, 'vision': {'depth': 1, 'full_attention_blocks': [0]}}",
    "--config.steps=2",
    "--config.batch_size=8",
    "--config.eval_every=2",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set and a run of two steps on it."""
    root = tmp_path_factory.mktemp("verbs")
    data, run = root / "data", root / "run"
    counts = ["--train", "8", "--validation", "8", "--test", "3", "--workers", "1"]
    assert main(["prepare", "moving_shapes", "--output", str(data), *counts]) == 0
    manifests = [f"--config.data.{split}={data}/{split}/manifest.jsonl" for split in ("train", "validation")]
    assert main(["train", "--config", "configs/moving_shapes.py", "--run-dir", str(run), *manifests, *TINY]) == 0
    assert main(["export", "--checkpoint", str(run), "--output", str(root / "export")]) == 0
    return root


def test_export_loads_in_transformers_with_the_same_logits(made):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, GenerationConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    from swjax.data.tokenizer import load_tokenizer
    from swjax.hub import load_hf
    from swjax.runs.folder import load_run
    from swjax.streaming import KeySpans

    folder = made / "export"
    theirs, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = np.arange(1, 20, dtype=np.int32)[None]
    span = np.arange(19, dtype=np.int32)[None]
    arguments = ids, np.tile(span, (3, 1, 1)), KeySpans(np.zeros_like(span), span + 1)
    ours = load_run(made / "run").model(*arguments)
    np.testing.assert_array_equal(load_hf(folder)(*arguments), ours)
    with torch.no_grad():
        logits = theirs(input_ids=torch.from_numpy(ids).long()).logits
    np.testing.assert_allclose(logits.numpy(), ours, atol=1e-5)

    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("The video shows") == load_tokenizer(None).encode("The video shows")
    assert AutoConfig.from_pretrained(folder).streaming["variant"] == "gdpe"
    assert GenerationConfig.from_pretrained(folder).eos_token_id[0] == tokenizer.eos_token_id
    assert Qwen2VLImageProcessorPil.from_pretrained(folder).size["longest_edge"] == 56 * 56


@pytest.mark.parametrize("checkpoint", ["run", "export"])
def test_stream_prints_the_words_beside_the_clock(made, capsys, checkpoint):
    video = made / "data" / "test" / "videos" / "test-00000.mp4"
    arguments = ["stream", "--checkpoint", str(made / checkpoint), "--video", str(video), "--max-tail", "5"]
    assert main([*arguments, "--as-fast-as-possible"]) == 0
    shown = capsys.readouterr().out
    assert "0:00.5" in shown
    assert "0:03.5" in shown
    assert "frames encoded once each" in shown
    assert main([*arguments, "--json", "--as-fast-as-possible"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events[:2]] == ["FrameSeen", "TokenSpoken"]
    assert events[-1]["event"] == "StreamEnded"


def test_stream_speaks_by_a_schedule_and_stops_at_a_token(made, capsys, tmp_path):
    video = made / "data" / "test" / "videos" / "test-00000.mp4"
    arguments = ["stream", "--checkpoint", str(made / "run"), "--video", str(video), "--json", "--as-fast-as-possible"]

    def words(*more):
        assert main([*arguments, "--max-tail", "4", *more]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    frames = len([event for event in words() if event["event"] == "FrameSeen"])
    counts = [2, 0, 3, *[1] * (frames - 4)]
    file = tmp_path / "counts.txt"
    file.write_text("2, 0\n3 " + " ".join("1" * (frames - 4)))
    for schedule in (",".join(map(str, counts)), str(file)):
        events = words("--schedule", schedule)
        spoken = [event["after_frame"] for event in events if event["event"] == "TokenSpoken"]
        assert spoken == np.repeat(range(frames), [*counts, 4]).tolist()
        assert events[-1]["reason"] == "token_limit"

    first = next(event["token_id"] for event in words() if event["event"] == "TokenSpoken")
    stop = load_tokenizer(None).convert_ids_to_tokens(first)
    events = words("--stop-token", "<|im_start|>", "--stop-token", stop)
    assert [event["event"] for event in events] == ["FrameSeen", "StreamEnded"]
    assert events[-1]["reason"] == "end_token"


def test_stream_watches_standard_input(made, capsys, monkeypatch):
    video = made / "data" / "test" / "videos" / "test-00000.mp4"

    def words(source):
        arguments = ["stream", "--checkpoint", str(made / "run"), "--video", source, "--json", "--max-tail", "3"]
        assert main([*arguments, "--as-fast-as-possible"]) == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [{name: value for name, value in event.items() if name != "wall_s"} for event in events]

    with video.open("rb") as file:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
        assert words("-") == words(str(video))


def test_stream_forgets_what_a_memory_drops(made, capsys, monkeypatch):
    video = made / "data" / "test" / "videos" / "test-00000.mp4"
    arguments = ["stream", "--checkpoint", str(made / "run"), "--video", str(video), "--json", "--as-fast-as-possible"]
    asked = []
    keep = Window.keep
    monkeypatch.setattr(Window, "keep", lambda self, *given: asked.append(self) or keep(self, *given))
    spoken = {}
    for memory in ("keep_all", "window:frames=500,words=500", "window:frames=1,words=2,first_words=1"):
        assert main([*arguments, "--max-tail", "4", "--memory", memory]) == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        spoken[memory] = [event["token_id"] for event in events if event["event"] == "TokenSpoken"]
    # The same by arguments of their own; and what is dropped of frames makes a difference, too.
    numbers = ["--memory", "window", "--memory.frames=1", "--memory.words", "2", "--memory.first_words", "1"]
    for drop in ([], ["--drop", "uniform", "--drop.share", "0.1"]):
        assert main([*arguments, "--max-tail", "4", *numbers, *drop]) == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        words = [event["token_id"] for event in events if event["event"] == "TokenSpoken"]
        assert (words == spoken["window:frames=1,words=2,first_words=1"]) == (not drop)
    whole, wide, narrow = spoken.values()
    assert whole == wide
    assert len(narrow) > 4
    assert set(asked) == {Window(frames=1, words=2, first_words=1)}


def test_stream_draws_a_picture(made, tmp_path):
    video, picture = made / "data" / "test" / "videos" / "test-00000.mp4", tmp_path / "pictures" / "stream.png"
    arguments = ["stream", "--checkpoint", str(made / "run"), "--video", str(video), "--max-tail", "9"]
    assert main([*arguments, "--as-fast-as-possible", "--picture", str(picture)]) == 0
    drawn = np.asarray(Image.open(picture).convert("RGB"))
    frames = next(read_frames(video, fps=2, min_pixels=3136, max_pixels=3136))
    assert drawn.shape[1] > 5 * 150
    # The top left pixel of the first frame's later picture, enlarged.
    first_patch = frames.patches[0].reshape(3, 2, 14, 14)[:, 1, 0, 0]
    np.testing.assert_array_equal(drawn[36, 13], first_patch)


def test_evaluate_writes_scores_of_the_model_and_the_baselines(made, capsys):
    manifest = made / "data" / "test" / "manifest.jsonl"
    arguments = ["evaluate", "--checkpoint", str(made / "run"), "--data", str(manifest), "--max-tail", "5"]
    assert main([*arguments, "--baselines"]) == 0
    folder = made / "run" / "evaluation"
    scores = json.loads((folder / "scores.json").read_text())
    assert set(scores) == {"model", "best constant answer", "model, blank frames"}
    model = scores["model"]
    assert 3 < model["loss"] < 7, "two steps from scratch leave about the log of the vocabulary"
    assert model["perplexity"] == pytest.approx(np.exp(model["loss"]))
    assert model["mode"] == "parallel"
    assert {name: model["wall"][name] for name in ("mode", "rows", "videos")} == {
        "mode": "parallel",
        "rows": 8,
        "videos": 3,
    }
    assert model["wall"]["first_word_wall_s"] > 0
    assert 0 < model["lag_s"] < model["word_s"]
    assert {"cider", "bleu1", "bleu4", "rouge_l", "repetition", "fragments", "event_accuracy"} <= set(model)
    assert all(low <= model[name] <= high for name, (low, high) in model["intervals"].items())
    assert scores["best constant answer"]["grammatical"] == 1
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert line["after_frame"][:4] == [0, 0, 0, 1]
        assert line["video_s"][:4] == [0.5, 0.5, 0.5, 1.5]
        assert len(line["token_ids"]) == len(line["words"]) == len(line["wall_s"]) == 3 * (line["frames"] - 1) + 5
        assert "".join(line["words"]) == line["text"]
    assert "event accuracy" in capsys.readouterr().out


def test_evaluate_scores_by_a_benchmark_from_outside(made, capsys):
    """It has a file of its own beside the manifest, and a constant answer."""

    def longest(answers, videos):
        return {"long": mean_score([len(text) >= videos[key] for key, text in answers.items()])}

    def best(candidates, videos):
        return max(candidates, key=len), 1.0

    def read(file):
        return json.loads(file.read_text())

    lengths = made / "data" / "test" / "lengths.json"
    lengths.write_text(json.dumps(dict.fromkeys(read_events(lengths.with_name("events.jsonl")), 30)))
    metric = Metric("long", "{:.1%}", "long enough")
    register_benchmark("long", Benchmark(longest, {"long": metric}, read=read, file=lengths.name, constant=best))
    words = ["evaluate", "--checkpoint", str(made / "run"), "--data", str(lengths.with_name("manifest.jsonl"))]
    assert main([*words, "--max-tail", "5", "--baselines", "--benchmark", "long"]) == 0
    scores = json.loads((made / "run" / "evaluation" / "scores.json").read_text())
    assert {"long", "loss", "repetition"} <= set(scores["model"])
    assert not {"event_accuracy", "cider"} & set(scores["model"])
    assert scores["best constant answer"]["long"] == 1
    assert "long enough" in capsys.readouterr().out


def test_evaluate_goes_on_where_it_stopped_and_refuses_to_mix(made, tmp_path, capsys, monkeypatch):
    manifest, output = made / "data" / "test" / "manifest.jsonl", tmp_path / "out"
    places = ["--checkpoint", str(made / "run"), "--data", str(manifest), "--output", str(output)]
    arguments = ["evaluate", *places, "--max-tail", "5", "--schedule", "random"]
    assert main([*arguments, "--schedule-seed", "1", "--results-format", "authors"]) == 0
    file = output / "predictions.jsonl"
    whole = sorted(file.read_text().splitlines(), key=lambda line: json.loads(line)["key"])
    scores = json.loads((output / "scores.json").read_text())
    counts = [np.bincount(json.loads(line)["after_frame"])[:-1] for line in whole]
    assert max(map(max, counts)) <= 6
    assert len({tuple(count) for count in counts}) > 1

    said = "a line of the first, which is not made again"
    first = json.dumps({**json.loads(whole[0]), "text": said})
    file.write_text(f"{first}\n{whole[1][:40]}")  # as a killed process leaves it
    assert main([*arguments, "--schedule-seed", "1", "--results-format", "authors"]) == 0
    again = sorted(map(json.loads, file.read_text().splitlines()), key=lambda line: line["key"])
    assert again[0]["text"] == said
    assert [line["token_ids"] for line in again] == [json.loads(line)["token_ids"] for line in whole]
    results = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert results[0] == {
        "video_id": "test-00000",
        "annotation": again[0]["reference"],
        "task": "description",
        "result": said,
    }

    monkeypatch.setattr("swjax.evaluation.judge.Judge._ask", lambda judge, body: 3 if said in str(body) else 5)
    judged = ["--schedule-seed", "1", "--judge-url", "http://localhost/v1", "--judge-model", "m"]
    assert main([*arguments, *judged]) == 0
    assert json.loads((output / "scores.json").read_text())["model"]["fluency"] == pytest.approx(13 / 3)
    assert "grade the fluency" in json.loads((output / "judge.json").read_text())["prompt"]

    capsys.readouterr()
    assert main([*arguments, "--schedule-seed", "2"]) == 2
    assert "schedule_seed was 1, is 2" in capsys.readouterr().err
    assert main([*arguments, "--schedule-seed", "1", "--mode", "offline"]) == 2
    assert "speaks_while_watching was True, is False" in capsys.readouterr().err
    assert main([*arguments, "--schedule-seed", "1", "--overwrite", "--mode", "sequential", "--rows", "2"]) == 0
    again = json.loads((output / "scores.json").read_text())
    wall, before = again["model"].pop("wall"), scores["model"].pop("wall")
    assert (wall["mode"], wall["rows"], wall["videos"]) == ("sequential", 2, 3)
    assert (before["mode"], before["rows"]) == ("parallel", 8)
    assert again["model"].pop("mode") == "sequential"
    del scores["model"]["mode"]
    assert again == scores, "neither mode nor rows change what is said"

    seeds = ["--schedule-seed", "1", "2", "--overwrite"]
    assert main([*arguments, *seeds]) == 0
    one, two = (
        json.loads((output / f"evaluation_random_{seed}" / "scores.json").read_text())["model"] for seed in (1, 2)
    )
    assert one["intervals"] == scores["model"]["intervals"]
    assert two["words"] != one["words"]


def test_evaluate_lists_videos_that_it_cannot_use(made, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(made / "data" / "test", folder)
    (folder / "videos" / "test-00001.mp4").write_bytes(b"not a video")
    (folder / "events.jsonl").unlink()  # which knows nothing of the lines that are added
    video = {"video_path": "videos/test-00002.mp4"}
    turns = [{"question": "What?", "answer": "The video shows a circle. " * 9}, {"question": "And?", "answer": "No."}]
    lines = ["not JSON", json.dumps(video | {"turns": turns}), json.dumps(video | {"human_caption": "It."})]
    with (folder / "manifest.jsonl").open("a") as manifest:
        manifest.write("\n".join(lines) + "\n")
    arguments = ["evaluate", "--checkpoint", str(made / "run"), "--data", str(folder / "manifest.jsonl")]
    assert main([*arguments, "--max-tail", "3", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "2 examples could not be used" in shown
    assert "manifest.jsonl:4: not JSON" in shown
    assert "test-00001.mp4 cannot be decoded" in shown
    assert "loss and perplexity are of 3 videos, and 4 were watched:" in shown
    assert "manifest.jsonl:6: the caption has" in shown
    assert "later turns" in shown
    *_, (asked,) = (one.later for one in read_predictions(tmp_path / "out" / "predictions.jsonl") if one.later)
    assert (asked.question, asked.reference, len(asked.words)) == ("And?", "No.", 3)
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 4
    rows = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (rows["later turns"]["videos"], rows["later turns"]["words"]) == (1, 3.0)
    model = rows["model"]
    assert (model["videos"], model["loss_videos"]) == (4, 3)
    with (folder / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps(video | {"human_caption": "Another."}) + "\n")
    assert main([*arguments, "--max-tail", "3", "--output", str(tmp_path / "out")]) == 2
    assert "digest of the data was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stream", "--checkpoint", "{run}", "--video", "nowhere.mp4"], "there is no video file nowhere.mp4"),
        (["stream", "--checkpoint", "{run}", "--video", "{video}", "--top-p", "2"], "sampling needs temperature >= 0"),
        (["stream", "--checkpoint", "nowhere", "--video", "{video}"], "nowhere: no such checkpoint folder"),
        (["stream", "--checkpoint", "{run}", "--step", "7", "--video", "{video}"], "no checkpoint of step 7"),
        (["stream", "--checkpoint", "{run}", "--video", "{video}", "--variant", "gddpe"], "unknown variant 'gddpe'"),
        (["stream", "--checkpoint", "{run}", "--video", "{video}", "--wait-k", "0"], "wait_k and max_tail"),
        (["stream", "--checkpoint", "{run}", "--video", "{video}", "--schedule", "3,x"], "'x' is no count of tokens"),
        (["stream", "--checkpoint", "{run}", "--video", "{video}", "--schedule", ","], "there are no counts in it"),
        (["stream", "--checkpoint", "{run}", "--video", "{video}", "--schedule", "3"], "has counts for 1 frames"),
        (
            ["stream", "--checkpoint", "{run}", "--video", "{video}", "--schedule", "3", "--wait-k", "3"],
            "give one of them",
        ),
        (["stream", "--checkpoint", "{run}", "--video", "{video}", "--memory", "no"], "choose one of keep_all, window"),
        (
            ["stream", "--checkpoint", "{run}", "--video", "{video}", "--stop-token", "a b"],
            "name one that",
        ),
        *(
            (["stream", "--checkpoint", "{run}", "--video", "{video}", *flags], message)
            for flags, message in (
                (("--temperature", "nan"), "temperature must be a finite number"),
                (("--temperature", "inf"), "temperature must be a finite number"),
                (("--temperature", "1e400"), "temperature must be a finite number"),
                (("--repetition-penalty", "nan"), "repetition_penalty must be a finite number"),
                (("--repetition-penalty", "1e-300"), "repetition_penalty must be a finite number"),
                (("--top-p", "nan"), "top_p must be a finite number"),
                (("--top-k", "99999999999"), "top_k must be a whole number"),
                (("--seed", "-1"), "the seed must be a whole number"),
                (("--gap", "99999999999"), "gap must be a whole number"),
                (("--max-tail", "99999999999"), "max_tail must be a whole number"),
                (("--schedule", "9" * 400), "no count of tokens"),
                (("--schedule", "9999999999"), "must be a whole number"),
                (("--schedule", "{video}"), "it is no text"),
                (("--question", "\udcff"), "the question has half a character"),
                (("--stop-token", "\udcff"), "--stop-token has half a character"),
                (("--picture", "{run}"), "must name a PNG file"),
                (("--picture", "{run}/config.json/x.png"), "cannot be written"),
            )
        ),
        (["stream", "--checkpoint", "{run}", "--video", "{video}", "--wat"], "does not know --wat"),
        (["stream", "--checkpoint", "{run}", "--video", "{run}/config.json"], "cannot be decoded"),
        (["export", "--checkpoint", "{export}", "--step", "1", "--output", "x"], "is no run folder"),
        (["export", "--checkpoint", "{run}", "--output", "{data}"], "is not an exported checkpoint"),
        (["evaluate", "--checkpoint", "a/b", "--data", "{data}"], "a/b is no folder here to write the scores to"),
        (["evaluate", "--checkpoint", "{run}", "--data", "nowhere.jsonl"], "there is no manifest nowhere.jsonl"),
        (["evaluate", "--checkpoint", "{run}", "--data", "x", "--repetition-penalty", "0"], "it must be above 0"),
        (["evaluate", "--checkpoint", "{run}", "--data", "x", "--limit", "0"], "--limit 0 leaves no videos"),
        (["evaluate", "--checkpoint", "{run}", "--data", "x", "--rows", "0"], "--rows 0 leaves no row"),
        (["evaluate", "--checkpoint", "{run}", "--data", "x", "--schedule-seed", "1", "1"], "1 1 names a seed twice"),
        (
            ["evaluate", "--checkpoint", "{run}", "--data", "{data}/test/manifest.jsonl", "--mode", "interleaved"],
            "variant gdpe cannot be streamed in mode interleaved; its modes are parallel, sequential, offline",
        ),
        (["evaluate", "--checkpoint", "{run}", "--data", "x", "--benchmark", "none"], "unknown benchmark 'none'"),
        (
            ["evaluate", "--checkpoint", "{run}", "--data", "x", "--benchmark", "captions", "--baselines"],
            "--baselines needs a benchmark that has them: moving_shapes",
        ),
        (["evaluate", "--checkpoint", "{run}", "--data", "x", "--metric", "bleurt"], "of the form NAME=FILE.py:FUNC"),
    ],
)
def test_errors_name_what_is_wrong(made, capsys, words, message):
    places = {name: made / name for name in ("run", "export", "data")}
    places["video"] = made / "data" / "test" / "videos" / "test-00000.mp4"
    assert main([word.format(**places) for word in words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_export_of_a_damaged_checkpoint_names_the_folder(made, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    for file in (run / "checkpoints").rglob("*"):
        if file.is_file() and "parameters" in str(file) and file.stat().st_size > 10_000:
            file.write_bytes(file.read_bytes()[:100])
    assert main(["export", "--checkpoint", str(run), "--output", str(tmp_path / "export")]) == 2
    assert str(run) in "".join(capsys.readouterr().err.split("\n"))
    assert not (tmp_path / "export").exists()


def test_evaluate_offers_all_modes():
    assert tuple(Mode) == MODES


@pytest.mark.parametrize("verb", [verb.NAME for verb in VERBS])
def test_help_teaches(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert len(capsys.readouterr().out) > 400


def test_readme_names_every_verb():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for verb in VERBS:
        assert f"swjax {verb.NAME}" in readme or f"make {verb.NAME}" in readme
