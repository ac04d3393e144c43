#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster: fills launch/gke_jobset.yaml in and applies it. JobSet starts all hosts of a
# slice together and starts them again when they were preempted.
#
#   NAME=swjax-7b IMAGE=registry/you/swjax TYPE=tpu-v5p-slice TOPOLOGY=4x4x4 HOSTS=16 CHIPS=4 RUN_DIR=gs://bucket/run \
#     launch/gke.sh
#
# Beside the variables of launch/common.sh:
#   IMAGE    a container image with swjax[tpu,gcs] and configs/ in its working directory
#   TYPE     the node selector cloud.google.com/gke-tpu-accelerator     TOPOLOGY   of one slice
#   HOSTS    of one slice      CHIPS   of one host      SLICES   (1)
#   ACCOUNT  the Kubernetes service account that may use the bucket    (default)
#   CLAIM    a persistent volume claim to be mounted at /shared, for a run folder that is not in a bucket
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
need NAME IMAGE TYPE TOPOLOGY HOSTS CHIPS RUN_DIR
SLICES=${SLICES:-1}
CLAIM=${CLAIM:-}
ACCOUNT=${ACCOUNT:-default}
# shellcheck disable=SC2034  # read below by its name
COMMAND=$(train_command)

manifest=$(<launch/gke_jobset.yaml)
if [ -z "$CLAIM" ]; then manifest=$(sed '/# with CLAIM$/d' <<<"$manifest"); fi

for name in NAME IMAGE TYPE TOPOLOGY HOSTS CHIPS SLICES ACCOUNT CLAIM RESTARTS PREEMPTED COMMAND; do
  manifest=${manifest//"\${$name}"/${!name}}
done
if [ "$DRY_RUN" = 1 ]; then
  echo "$manifest"
else
  echo "$manifest" | kubectl apply -f -
fi
