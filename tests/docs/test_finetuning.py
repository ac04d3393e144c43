"""The page on fine-tuning, from a folder of films to PyTorch: its commands run as they stand, on films made here."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from swjax.commands.main import main
from swjax.data.tokenizer import SHIPPED_TOKENIZER
from swjax.hub import save_hf

ROOT = Path(__file__).parents[2]
SRT = "1\n00:00:00,500 --> 00:00:01,000\nA square.\n\n2\n00:00:01,000 --> 00:00:01,900\nIt turns.\n"


def film(path: Path, shade: int) -> None:
    """Two seconds of a square, with two subtitles."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 56
        for number in range(8):
            picture = np.full((56, 56, 3), shade, np.uint8)
            picture[10:40, 5 * number : 5 * number + 15] = 255 - shade
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    path.with_suffix(".srt").write_text(SRT)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_model) -> Path:
    """A folder with films, held-out films, weights and the configurations."""
    for number in range(4):
        film(tmp_path / "films" / f"000{number}.mp4", 40 * number)
    film(tmp_path / "held_out" / "1001.mp4", 200)
    save_hf(random_model, tmp_path / "weights" / "3b")
    shutil.copytree(SHIPPED_TOKENIZER, tmp_path / "weights" / "3b", dirs_exist_ok=True)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_page_leads_from_films_to_pytorch(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    commands = re.findall(r"^ +\$ (.*)$", (ROOT / "docs" / "finetuning.md").read_text(), re.MULTILINE)
    assert [command.split()[1] for command in commands] == [
        *("import", "data", "train", "train", "stream", "export", "export", "stream", "exports/finetune/streaming.py")
    ]
    fitting: list[str] = []
    said: list[str] = []
    for command in commands[1:]:  # the weights are there
        program, *words = shlex.split(command)
        if "held_out/1001.mp4" in words:
            words += ["--max-tail", "8"]  # it has not learned to end
        if program == "python":
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            said.append(done.stdout)
            continue
        if words[0] == "data":
            words += ["--min-pixels", "3136", "--max-pixels", "3136"]  # films of a few pixels, for minutes
        if words[0] == "train":
            words += [*fitting, "--config.accumulation=8"]
            words += ["--config.dtype=float32", "--config.remat=nothing"]
        assert main(words) == 0, command
        said.append(capsys.readouterr().out)
        if words[0] == "data":
            fitting = re.findall(r"--config\.data\.\w+=\S+", said[0].partition("what fits them")[2].splitlines()[1])
            assert {word.split("=")[0].rpartition(".")[2] for word in fitting} >= {"max_tokens", "max_patches"}
    inspected, trained, resumed, streamed, _, _, adapted, in_pytorch = said
    assert "format subtitles" in inspected
    assert "4 examples, 4 epochs, 2 steps of 8 rows (8 x 1 accumulated)" in " ".join(trained.split())
    assert re.search(r"step 2/2: loss \d+\.\d{4}, lr \S+, [\d,]+ tokens/s, \S+ s/step, 0:00:00 left", trained)
    assert "resuming from step 2 of 3" in resumed
    lines = [json.loads(line) for line in Path("runs/finetune/metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 3
    assert lines[1]["learning_rate"] == pytest.approx(1e-4)

    def words_of(text: str) -> list[str]:
        parts = re.split(r"\n +(?:\d+:\d\d\.\d|\d+\.\d s) +frame +\d+  ", text)[1:]
        return [words for part in parts if (words := part.split("\n\n")[0].rstrip("\n"))]

    assert len("".join(words_of(streamed))) > 5
    assert words_of(adapted) == words_of(streamed)
    assert words_of(in_pytorch) == words_of(streamed)
