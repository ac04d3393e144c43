"""When a model that decides speaks, of one kind of event that it is asked about: the tables of docs/results.

    python benchmarks/when_to_speak.py --checkpoint runs/asked --data data/moving_shapes --predictions evaluation

What was said is read from the predictions of `swjax evaluate`. Beside it stand speakers that see nothing, the model
shown blank frames, and thresholds on the probability of silence; the last two are teacher forced: after each frame the
model is asked whether it would speak, given what was to be said before.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from swjax.data.batching import Row, pad_rows
from swjax.data.decisions import find_decisions
from swjax.data.encoding import encode_example, frame_arrivals
from swjax.data.example import VideoExample
from swjax.data.manifest import read_manifest
from swjax.data.pipeline_config import PipelineConfig
from swjax.data.tokenizer import load_tokenizer
from swjax.evaluation import Score
from swjax.evaluation.predictions import read_predictions
from swjax.evaluation.spoken import answer_scores, read_answers
from swjax.evaluation.timing import Episode, score_constants, threshold_curve, timing_scores
from swjax.models.parameters import merge_parameters, split_parameters
from swjax.runs.streaming_model import load_streaming_model
from swjax.streaming import DecisionTokens, KeySpans, SpecialTokens

ROWS, TOKENS, PATCHES = 16, 128, 192
THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
COLUMNS = ("f1_0", "precision_0", "recall_0", "exact", "f1_1", "false_alarms_per_minute_0")
HEADINGS = ("F1, same frame", "precision", "recall", "all at its frame", "F1, within a frame", "false alarms a minute")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Tables of when a model speaks.")
    parser.add_argument("--checkpoint", required=True, help="folder of the run")
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the last)")
    parser.add_argument("--data", type=Path, required=True, help="Moving Shapes, as `swjax prepare` makes it")
    parser.add_argument("--predictions", type=Path, required=True, help="folder of `swjax evaluate`")
    args = parser.parse_args()
    source = load_streaming_model(args.checkpoint, step=args.step)
    tokenizer = load_tokenizer(source.tokenizer, source.model.config.chat)
    decisions, record = find_decisions(tokenizer), source.record
    test, train = (read_manifest(args.data / split / "asked.jsonl").examples for split in ("test", "train"))
    pictures = source.model.config.geometry.temporal_patch_size
    answers = read_answers(
        read_predictions(args.predictions / "predictions.jsonl"),
        {example.key: example for example in test},
        decisions,
        fps=record.fps,
        pictures=pictures,
    )
    due = [_episode(example, record.fps, pictures) for example in test]
    decided = list(_decide(source, tokenizer, decisions, test, blank=False))
    blank = list(_decide(source, tokenizer, decisions, test, blank=True))
    rows = {"the model": timing_scores([answer.episode for answer in answers])}
    rows["the model, blank frames (teacher forced)"] = threshold_curve(due, blank, [0.0])[0.0]
    training = [_episode(example, record.fps, pictures) for example in train]
    rows |= score_constants(due, training=training)
    _show("speaker", rows, intervals=1)
    words = answer_scores(answers)
    print(f"\nright words {words['right_words'].value:.3f}, at their frame {words['right_words_in_time'].value:.3f}\n")
    _show("question", {kind: _of_kind(answers, kind) for kind in sorted({one.kind for one in answers})})
    print()
    curve = threshold_curve(due, decided, THRESHOLDS)
    silent = [scores["silent"].value for scores in curve.values()]
    assert silent == sorted(silent, reverse=True), "a higher threshold is never more silent"
    _show("threshold (teacher forced)", {f"{one:g}": scores for one, scores in curve.items()}, more=("silent",))


def _of_kind(answers: Sequence[Any], kind: str) -> dict[str, Score]:
    return timing_scores([answer.episode for answer in answers if answer.kind == kind])


def _episode(example: VideoExample, fps: float, pictures: int) -> Episode:
    frames = int((example.duration_s or 0.0) * fps / pictures)
    arrival_s = frame_arrivals(frames, fps=fps, pictures=pictures)
    due = np.searchsorted(arrival_s, np.minimum([one.time_s for one in example.sentences], arrival_s[-1]))
    return Episode((), tuple(due.tolist()), num_frames=frames, frame_s=pictures / fps, kind=example.question or "")


def _decide(
    source: Any, tokenizer: Any, decisions: DecisionTokens, examples: Sequence[VideoExample], *, blank: bool
) -> Iterator[list[tuple[float, bool]]]:
    """Of each example, after each frame: the probability of silence, and whether it is the likeliest."""
    model = source.model
    config = PipelineConfig(
        batch_size=1,
        max_tokens=TOKENS,
        max_patches=PATCHES,
        geometry=model.config.geometry,
        chat=model.config.chat,
        **asdict(source.record),
    )
    special = SpecialTokens.from_tokenizer(tokenizer, config.chat)
    structure, parameters = split_parameters(model)

    @jax.jit
    def scores(parameters: Any, batch: Any) -> Any:
        held = merge_parameters(structure, parameters)
        hidden = held.hidden(
            batch["token_ids"],
            batch["position_ids"].swapaxes(0, 1),
            KeySpans(start=batch["span_start"], stop=batch["span_stop"]),
            pixel_values=batch["pixel_values"],
            video_grid_thw=batch["video_grid_thw"],
        )
        probabilities = jax.nn.softmax(hidden @ held.head().T, axis=-1)
        return probabilities[..., decisions.skip], probabilities.argmax(-1) == decisions.skip

    for first in range(0, len(examples), ROWS):
        rows = [
            encode_example(example, config, tokenizer, special, question=example.question or "")
            for example in examples[first : first + ROWS]
        ]
        if blank:
            rows = [row | {"pixel_values": np.full_like(row["pixel_values"], 128)} for row in rows]
        batch = pad_rows([*rows, *rows[:1] * (ROWS - len(rows))], tokens=TOKENS, patches=PATCHES, videos=1)
        skip, likeliest = jax.device_get(scores(parameters, batch))
        for number, row in enumerate(rows):
            slots = _decision_slots(row, decisions)
            yield list(zip(skip[number, slots].tolist(), likeliest[number, slots].tolist(), strict=True))


def _decision_slots(row: Row, decisions: DecisionTokens) -> np.ndarray:
    """Slots that predict the first token after each frame, in order."""
    slots = np.flatnonzero(row["labels"] >= 0)
    # By the chat alone, queries of video would come first, and where nothing is grouped they speak, too.
    slots = slots[np.lexsort((row["chat_index"][slots], row["step"][slots]))]
    labels = row["labels"][slots]
    pauses = np.isin(labels, (decisions.skip, decisions.end))
    first = np.concatenate([[True], pauses[:-1]])
    return slots[first & (np.cumsum(pauses) - pauses < pauses.sum())]


def _show(name: str, rows: dict[str, dict[str, Score]], *, more: tuple[str, ...] = (), intervals: int = 0) -> None:
    print("| " + " | ".join([name, *HEADINGS, *more]) + " |\n|" + " --- |" * (1 + len(HEADINGS) + len(more)))
    for number, (label, scores) in enumerate(rows.items()):
        cells = [scores[column] for column in (*COLUMNS, *more)]
        texts = [
            f"{cell.value:.3f}" + (f" ({cell.low:.3f} to {cell.high:.3f})" if number < intervals else "")
            for cell in cells
        ]
        print("| " + " | ".join([label, *texts]) + " |")


if __name__ == "__main__":
    main()
