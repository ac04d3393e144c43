# shellcheck shell=bash disable=SC2034  # used by what sources this
# What all launchers share: source it, set what differs from one run to the next in the environment.
#
#   CONFIG       configuration file                          (configs/pe_video_7b.py)
#   RUN_DIR      run folder, the same for all hosts          (gs://BUCKET/runs/7b, or a folder mounted on all of them)
#   OVERRIDES    more arguments of `swjax train`             (--config.mesh.fsdp=64 --config.batch_size=64)
#   CODE         where pip finds swjax on the hosts          (git+https://example.com/you/swjax.git or a path)
#   RESTARTS     how often a run that was preempted is started again (100)
#   DRY_RUN      1 prints the commands instead of running them

CONFIG=${CONFIG:-configs/pe_video_7b.py}
OVERRIDES=${OVERRIDES:-}
RESTARTS=${RESTARTS:-100}
DRY_RUN=${DRY_RUN:-0}

# The exit status of `swjax train` after it was told to stop and has saved (EX_TEMPFAIL): start it again.
PREEMPTED=75

need() { # need NAME...: stop if a variable is not set
  local name
  for name in "$@"; do
    if [ -z "${!name:-}" ]; then
      echo "$0: set $name; see the comments at its beginning" >&2
      exit 2
    fi
  done
}

run() { # run COMMAND...: run it, or with DRY_RUN=1 print it
  if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

train_command() { # the command that every host runs
  echo "swjax train --config $CONFIG --run-dir $RUN_DIR $OVERRIDES"
}
