#!/usr/bin/env bash
# Train on GPUs of a Slurm cluster, one task a GPU. The job is put back into the queue when its time runs out or it is
# preempted: `swjax train` saves at SIGTERM, which Slurm sends five minutes before the end.
#
#   RUN_DIR=/shared/run sbatch --nodes 4 launch/slurm.sh
#
# Variables: see launch/common.sh; VENV is the environment with swjax[cuda] on the shared disk (.venv).
#SBATCH --job-name=swjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
# shellcheck source=launch/common.sh
source launch/common.sh
need RUN_DIR
export PATH="$PWD/${VENV:-.venv}/bin:$PATH"

read -r -a command <<<"$(train_command)"
status=0
run srun --kill-on-bad-exit=1 "${command[@]}" || status=$?
if [ "$status" = "$PREEMPTED" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$RESTARTS" ]; then
  run scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
