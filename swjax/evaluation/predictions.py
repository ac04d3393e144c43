"""Predictions on disk: a JSON line a video, written as it goes, so that an evaluation resumes where it stopped."""

import json
from collections.abc import Iterable
from dataclasses import asdict, fields

from swjax.atomic import write_json
from swjax.data.json_lines import JsonLineError, cut_half_line, parse_line, read_lines
from swjax.evaluation.errors import EvaluationError
from swjax.evaluation.predict import LaterAnswer, Prediction
from swjax.plain import Json, JsonView
from swjax.storage import AnyPath, append_line, forget_log, make_folder

PREDICTIONS = "predictions.jsonl"
RESULTS = "results.jsonl"

_FUNQA_TASKS = ("H2", "H3", "C2", "C3", "M2", "M3")


class PredictionFile:
    """The predictions of one evaluation; `open_predictions` makes it.

    Attributes:
        path: the JSON lines file.
        found: predictions that are there, by key.
    """

    def __init__(self, path: AnyPath, found: dict[str, Prediction]):
        self.path, self.found = path, found

    def append(self, prediction: Prediction) -> None:
        """Write one more, to the disk at once, to a bucket within seconds."""
        append_line(self.path, json.dumps(asdict(prediction)))
        self.found[prediction.key] = prediction


def open_predictions(
    folder: AnyPath, settings: JsonView, *, name: str = PREDICTIONS, overwrite: bool = False
) -> PredictionFile:
    """Open the predictions of a folder, to go on where an evaluation with the same settings stopped.

    Half a line, which a killed process leaves, is cut off. The settings are kept beside the predictions, in a file of
    the same name.

    Args:
        folder: made if it is not there.
        settings: all that predictions depend on (weights, data, schedule, ...), in plain JSON values.
        name: of the file in the folder.
        overwrite: begin anew.

    Raises:
        EvaluationError: if predictions are there that were made with other settings, or a line cannot be read.
    """
    make_folder(folder)
    path = folder / name
    record = path.with_suffix(".settings.json")
    settings = json.loads(json.dumps(settings))
    if overwrite:
        path.unlink(missing_ok=True)
    if path.exists():
        _check_settings(path, record, settings)
    else:
        write_json(record, settings)
        path.touch()
    cut_half_line(path)
    forget_log(path)
    return PredictionFile(path, {p.key: p for p in read_predictions(path)})


def read_predictions(path: AnyPath) -> list[Prediction]:
    """Read the predictions of a file, in its order.

    Raises:
        EvaluationError: if it is missing or a line cannot be read.
    """
    if not path.is_file():
        raise EvaluationError(f"there are no predictions {path}; make them with `swjax evaluate`")
    found = []
    for number, line in read_lines(path):
        try:
            record = parse_line(line)
            values: Json = {field.name: record[field.name] for field in fields(Prediction)[:-1]}
            later = [LaterAnswer(**_as_tuples(answer)) for answer in record.get("later", ())]
        except (JsonLineError, KeyError, TypeError) as error:
            raise EvaluationError(f"{path}:{number} cannot be read: {error!r}; begin anew with --overwrite") from error
        found.append(Prediction(**_as_tuples(values), later=tuple(later)))
    return found


def _as_tuples(values: JsonView) -> Json:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def write_authors_results(path: AnyPath, predictions: Iterable[Prediction], *, task: str | None = None) -> None:
    """Write predictions as the paper's authors keep theirs: JSON lines of video_id, annotation, task and result.

    Args:
        path: the file.
        predictions: what to write.
        task: of all of them; by default FunQA's by the key (`H_A_1/H2`), and `description` for the rest.
    """
    with path.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            video, _, suffix = prediction.key.rpartition("/")
            of_funqa = suffix in _FUNQA_TASKS and video != ""
            record = {
                "video_id": video if of_funqa else prediction.key,
                "annotation": prediction.reference,
                "task": task or (suffix if of_funqa else "description"),
                "result": prediction.text,
            }
            file.write(json.dumps(record) + "\n")


def _check_settings(path: AnyPath, record: AnyPath, settings: JsonView) -> None:
    try:
        before = json.loads(record.read_text())
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{path} holds predictions of which nobody knows how they were made ({error}); "
            "begin anew with --overwrite, or choose another --output"
        ) from error
    changed = [
        f"{key} was {before.get(key)!r}, is {settings.get(key)!r}"
        for key in dict.fromkeys([*settings, *before])
        if before.get(key) != settings.get(key)
    ]
    if changed:
        listed = "\n  ".join(changed)
        raise EvaluationError(
            f"{path} holds predictions that were made otherwise:\n  {listed}\n"
            "begin anew with --overwrite, or choose another --output"
        )
