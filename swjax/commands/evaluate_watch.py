"""The videos of `swjax evaluate`, watched by the engine, and the predictions that are kept of them."""

import argparse
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.progress import track

from swjax.commands.memory_arguments import read_drop, read_memory
from swjax.commands.say import UsageError
from swjax.commands.speaking_arguments import read_speaking
from swjax.plain import Json
from swjax.storage import AnyPath
from swjax.streaming.tokens import Tokenizer

if TYPE_CHECKING:  # at run time they are imported where they are used, so that --help is quick
    from swjax.data.example import Rejected, VideoExample
    from swjax.evaluation import Prediction
    from swjax.evaluation.spoken import TimedAnswer
    from swjax.inference import Mode, Weights
    from swjax.runs.streaming_model import StreamingModel

MODES = ("parallel", "sequential", "interleaved", "offline", "recompute")
"""The names in `swjax.inference.Mode`."""


def choose_mode(name: str | None, variant: str) -> "Mode":
    """A mode by its name, or the usual one of a variant.

    Raises:
        UsageError: if the variant does not allow it.
    """
    from swjax.inference import Mode
    from swjax.streaming import Variant

    mode = Mode.usual(Variant(variant)) if name is None else Mode(name)
    try:
        mode.check(Variant(variant))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return mode


@dataclass(frozen=True)
class Watch:
    """What is watched, and how.

    Attributes:
        source: the model.
        weights: its weights, ready to stream.
        tokenizer: its tokenizer.
        examples: the videos.
        args: of the verb.
        folder: of the predictions.
        mode: the engine's.
        seed: of the random schedules; None for wait-k.
    """

    source: "StreamingModel"
    weights: "Weights"
    tokenizer: Tokenizer
    examples: "Sequence[VideoExample]"
    args: argparse.Namespace
    folder: AnyPath
    mode: "Mode"
    seed: int | None

    def watch(
        self, name: str, doing: str, change: "Callable[[Iterable[Any]], Iterable[Any]] | None" = None
    ) -> "tuple[list[Prediction], list[Rejected]]":
        """What the model says about every video, and the videos that were no use.

        Videos whose predictions are on disk are not watched again.

        Args:
            name: of the file of predictions.
            doing: what the progress bar says.
            change: what is done to the frames of a video.
        """
        from swjax.data.chat import EVALUATION_QUESTION
        from swjax.evaluation import Prediction, perturbed_schedule, predict
        from swjax.evaluation.predictions import PredictionFile, open_predictions
        from swjax.inference import Sampling, StreamSettings, read_frames
        from swjax.streaming import Variant

        args, record, geometry = self.args, self.source.record, self.source.model.config.geometry
        file: PredictionFile = open_predictions(self.folder, self._settings, name=name, overwrite=args.overwrite)
        left = [example for example in self.examples if example.key not in file.found]
        read = functools.partial(
            read_frames,
            fps=record.fps,
            min_pixels=record.min_pixels,
            max_pixels=record.max_pixels,
            geometry=geometry,
        )
        outcomes = predict(
            self.weights,
            self.tokenizer,
            left,
            question=EVALUATION_QUESTION,
            settings=StreamSettings(
                variant=Variant(record.variant),
                wait_k=record.wait_k,
                gap=record.gap,
                second_per_grid_t=geometry.frame_seconds(record.fps),
                max_tail=args.max_tail,
                sampling=Sampling(repetition_penalty=args.repetition_penalty),
                memory=read_memory(args, record),
                **({} if self.seed is not None else read_speaking(args, record, self.tokenizer)),
                drop=read_drop(args, record),
            ),
            read=lambda example: (change or iter)(read(example.video)),
            frame_units=max(1, record.max_pixels // geometry.token_size**2),
            mode=self.mode,
            rows=args.rows,
            schedule=None if self.seed is None else perturbed_schedule(record.wait_k, self.seed),
        )
        rejected = []
        for outcome in track(outcomes, doing, total=len(left), transient=True):
            if isinstance(outcome, Prediction):
                file.append(outcome)
            else:
                rejected.append(outcome)
        return [file.found[example.key] for example in self.examples if example.key in file.found], rejected

    def answers(self, predictions: "Sequence[Prediction]") -> "list[TimedAnswer]":
        """What a model that decides has said, and when, where it is known when what is due; none of other models."""
        from swjax.data.decisions import find_decisions
        from swjax.evaluation.spoken import read_answers

        record = self.source.record
        if record.speaking != "decide":
            return []
        return read_answers(
            predictions,
            {example.key: example for example in self.examples},
            find_decisions(self.tokenizer),
            fps=record.fps,
            pictures=self.source.model.config.geometry.temporal_patch_size,
        )

    @functools.cached_property
    def _settings(self) -> Json:
        """All that predictions depend on."""
        from swjax.data.chat import EVALUATION_QUESTION
        from swjax.inference import Mode
        from swjax.inference.memory import KEEP_ALL
        from swjax.models.parameters import fingerprint, split_parameters
        from swjax.streaming import DESIGNS, Variant
        from swjax.training.environment import fingerprint_data

        record = self.source.record
        speaks_while_watching = DESIGNS[Variant(record.variant)].speaks_while_watching
        turns = sum(len(example.later) for example in self.examples)
        questions = sum(len(example.questions) for example in self.examples)
        return {
            **({"later turns": turns} if turns else {}),
            **({"questions in mid-video": questions} if questions else {}),
            **({"speak": self.args.speak} if self.args.speak else {}),
            "weights": fingerprint(split_parameters(self.source.model)[1]),
            "data": str(self.args.data),
            "digest of the data": list(fingerprint_data(str(self.args.data)).values()),
            "question": EVALUATION_QUESTION,
            **{name: value for name, value in asdict(record).items() if name not in ("memory", "drop")},
            "max_tail": self.args.max_tail,
            "repetition_penalty": self.args.repetition_penalty,
            "schedule": self.args.schedule,
            "schedule_seed": self.seed,
            # The words of the other modes are the same.
            "speaks_while_watching": speaks_while_watching and self.mode is not Mode.OFFLINE,
            **({} if (memory := read_memory(self.args, record)) == KEEP_ALL else {"memory": str(memory)}),
            **({} if (drop := read_drop(self.args, record)) is None else {"drop": str(drop)}),
        }
