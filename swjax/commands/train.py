"""`swjax train`: train a model as a configuration file says."""

import argparse

from swjax.commands.say import any_path, console, known_errors, refuse

NAME = "train"
HELP = "train a model; resumes by itself where a run was stopped"

DESCRIPTION = """\
Train a streaming video-language model as a configuration file says. The run folder (config.run_dir) receives the
configuration, checkpoints, metrics.jsonl and TensorBoard files. Started again with the same command, a run that was
stopped resumes from its latest checkpoint and ends with the same parameters as if it had never stopped.

On TPU pods, GKE, Slurm and Open MPI, start the same command on every host (or for every task): the processes find each
other. Elsewhere give each --coordinator, --processes and --process. They share one run folder.

Exit status: 0 the run is at its end; 75 it was asked to stop (SIGTERM) and saved its state: start it again; 1 too many
steps were not finite; 2 the configuration, a checkpoint or the data cannot be used; 130 interrupted. Where several
processes train as one and one of them dies, JAX ends the others within some two minutes, by abort (134): look into the
log of the one that died, and start all of them again; they resume from the latest checkpoint.

Every key of the configuration can be changed on the command line: --config.KEY=VALUE.
"""
EXAMPLE = """\
examples:
  swjax train --config configs/moving_shapes.py
  swjax train --config configs/moving_shapes.py --config.variant=gipe --config.run_dir=runs/gipe
  swjax train --config configs/moving_shapes.py --show-config
  swjax train --config configs/pe_video_7b.py --coordinator host0:8476 --processes 4 --process 0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb; overrides of the configuration stay over for `run`."""
    from swjax.training.config import base_config, describe_keys

    parser.epilog = (
        f"{EXAMPLE}\nkeys of the configuration, with the values of the paper's recipe; a configuration file changes "
        f"some of them (see --show-config), the command line any:\n{describe_keys(base_config())}"
    ).replace("%", "%%")
    parser.add_argument(
        "--config", type=any_path, required=True, metavar="FILE", help="configuration file, or a name: moving_shapes"
    )
    parser.add_argument("--run-dir", metavar="DIR", help="the same as --config.run_dir=DIR")
    group = parser.add_argument_group("several processes, where no cluster says it")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of the first process")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    parser.add_argument("--show-config", action="store_true", help="print every key with its value, and stop")
    parser.add_argument(
        "--show-parameters", action="store_true", help="print every parameter, with whether it trains, and stop"
    )


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Runs the verb.

    Args:
        args: what `add_arguments` declared.
        extra: overrides, `--config.KEY=VALUE`.

    Returns:
        0, or 75 if preempted (`EXIT_PREEMPTED`), 1 if too many steps were not finite, 2 where the configuration, the
        checkpoint or the data cannot be used, or 130 if stopped by the user. If another process of the run dies, JAX
        aborts this one.
    """
    from swjax.training.config import ConfigError, describe_keys
    from swjax.training.config_file import load_config

    out = console()
    try:
        config = load_config(args.config, [*extra, *([f"--config.run_dir={args.run_dir}"] if args.run_dir else [])])
    except ConfigError as error:
        return refuse(error)
    if args.show_config:
        out.print(describe_keys(config), markup=False, soft_wrap=True)
        return 0

    # Here, because they take seconds to import, which help and a mistyped key need not wait for.
    from swjax.data.rejected import TooManyRejectedError
    from swjax.inference.memory import memory_of
    from swjax.training.loop import TooManyBadStepsError
    from swjax.training.preemption import EXIT_PREEMPTED, PreemptedError
    from swjax.training.processes import start_processes
    from swjax.training.run import show_parameters, train

    try:
        memory_of(config.memory)
    except ValueError as error:
        return refuse(f"config.memory: {error}")
    try:
        if args.show_parameters:
            for line in show_parameters(config):
                out.print(line, markup=False, soft_wrap=True)
            return 0
        start_processes(args.coordinator, args.processes, args.process)
        train(config, console=out)
    except TooManyBadStepsError as error:
        refuse(error)
        return 1
    except PreemptedError as error:
        out.print(str(error))
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        out.print("stopped; the same command resumes from the latest checkpoint")
        return 130
    except Exception as error:
        if isinstance(error, (ConfigError, TooManyRejectedError, *known_errors())):
            return refuse(error)
        raise
    return 0
