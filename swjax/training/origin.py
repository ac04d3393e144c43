"""What a run may start from: a Hugging Face folder or Hub id, or a checkpoint of an earlier run."""

from swjax.data.json_lines import readable_lines
from swjax.runs.folder import METRICS, MODEL, find_step, list_steps
from swjax.runs.streaming_model import StoredModel, open_streaming_model
from swjax.storage import AnyPath, as_path
from swjax.training.config import ConfigError

BEST_BY = "validation_loss"
"""The metric, smaller is better, by which a run's checkpoints are told apart."""


def open_origin(init_from: str, chosen: str) -> StoredModel | None:
    """Opens what a run starts from; no weights are read.

    A run's model is the one that is evaluated and exported: averaged where the run averages, adapters merged.

    Args:
        init_from: `config.init_from`.
        chosen: `config.init_checkpoint`.

    Returns:
        None where `init_from` is '', which is scratch.

    Raises:
        CheckpointError: it cannot be used.
        ConfigError: `config.init_checkpoint` names none of its checkpoints.
    """
    if not init_from:
        return None
    if not (as_path(init_from) / MODEL).exists():
        if chosen != "latest":
            raise ConfigError(
                f"config.init_checkpoint={chosen!r} chooses a checkpoint of a run, and config.init_from="
                f"{init_from!r} is no run folder; set it to 'latest'"
            )
        return open_streaming_model(init_from)
    if chosen == "latest":
        step = find_step(init_from)
    else:
        step = best_step(init_from) if chosen == "best" else find_step(init_from, int(chosen))
    return open_streaming_model(init_from, step=step)


def best_step(run_dir: str | AnyPath) -> int:
    """The step of the checkpoint that was validated with the lowest loss, the earliest of several.

    Raises:
        ConfigError: no checkpoint that is there was validated.
    """
    kept = set(list_steps(run_dir))
    lines = readable_lines(as_path(run_dir) / METRICS, ["step", BEST_BY])
    losses = {line["step"]: line[BEST_BY] for line in lines if line["step"] in kept and line[BEST_BY] is not None}
    if not losses:
        raise ConfigError(
            f"config.init_checkpoint='best' needs a checkpoint of {run_dir} that was validated, and there is none; "
            "give 'latest' or a step"
        )
    return min(losses, key=lambda step: (losses[step], step))
