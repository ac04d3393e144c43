"""Fluency by a language model, as arguments of `swjax evaluate`."""

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.progress import track

from swjax.commands.say import UsageError, any_path
from swjax.storage import AnyPath

if TYPE_CHECKING:
    from swjax.evaluation import Prediction, Score


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the judge."""
    judge = parser.add_argument_group("fluency, 1 to 5, by a language model")
    judge.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible endpoint, such as http://localhost/v1")
    judge.add_argument("--judge-model", metavar="NAME", help="the model's name there")
    judge.add_argument(
        "--judge-key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable that holds the key, if one is needed (default: %(default)s)",
    )
    judge.add_argument("--judge-max-requests", type=int, default=1000, metavar="N", help="(default: %(default)s)")
    judge.add_argument("--judge-max-tokens", type=int, default=1_000_000, metavar="N", help="(default: %(default)s)")
    judge.add_argument(
        "--judge-options",
        type=json.loads,
        default={"temperature": 0, "max_tokens": 64},
        metavar="JSON",
        help="further fields of a request (default: %(default)s)",
    )
    judge.add_argument(
        "--judge-cache",
        type=any_path,
        metavar="FILE",
        help="known grades (default: judge_cache.jsonl in --output)",
    )


def check_judge_arguments(args: argparse.Namespace) -> None:
    """Refuse half a judge, before anything is watched."""
    if bool(args.judge_url) != bool(args.judge_model):
        raise UsageError("a judge needs both --judge-url and --judge-model")


def judge_fluency(args: argparse.Namespace, folder: AnyPath, predictions: "Sequence[Prediction]") -> "Score":
    """Grades of a language model; judge.json records how they were asked for.

    Args:
        args: of the verb, with those of `add_judge_arguments`.
        folder: where judge.json goes, and known grades without `--judge-cache`.
        predictions: their texts are graded.

    Returns:
        The mean grade, from 1 to 5.

    Raises:
        JudgeError: if the judge gives no grade, or would cost more than is allowed.
    """
    from swjax.evaluation.bootstrap import mean_score
    from swjax.evaluation.judge import Judge

    judge = Judge(
        args.judge_url,
        args.judge_model,
        args.judge_cache or folder / "judge_cache.jsonl",
        options=args.judge_options,
        key=os.environ.get(args.judge_key_variable),
        max_requests=args.judge_max_requests,
        max_tokens=args.judge_max_tokens,
    )
    grades = judge.fluency([prediction.text for prediction in predictions])
    score = mean_score(list(track(grades, "judging", total=len(predictions), transient=True)))
    (folder / "judge.json").write_text(json.dumps(judge.describe(), indent=2) + "\n")
    return score
