#!/usr/bin/env bash
# Train on a slice of TPU VMs: asks for the slice (a queued resource), installs swjax on all hosts, and trains. Run it
# again to go on after a preemption; with spot capacity, --watch does that by itself.
#
#   NAME=swjax-7b TYPE=v5p-128 ZONE=us-east5-a RUN_DIR=gs://bucket/runs/7b CODE=git+https://example.com/you/swjax.git \
#     launch/tpu_vm.sh [--watch]
#
# Beside the variables of launch/common.sh:
#   NAME, TYPE, ZONE   of the slice       VERSION   of its system image (v2-alpha-tpuv5)
#   SPOT               1 takes spot capacity        PROJECT   of the cloud account (its default)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
need NAME TYPE ZONE RUN_DIR CODE

VERSION=${VERSION:-v2-alpha-tpuv5}
where=(--zone "$ZONE")
if [ -n "${PROJECT:-}" ]; then where+=(--project "$PROJECT"); fi
spot=()
if [ "${SPOT:-0}" = 1 ]; then spot=(--spot); fi

# shellcheck disable=SC2153  # `need` has looked
create() {
  run gcloud compute tpus queued-resources create "$NAME" --node-id "$NAME" "${where[@]}" \
    --accelerator-type "$TYPE" --runtime-version "$VERSION" "${spot[@]}"
}

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format 'value(state.state)' 2>/dev/null || true
}

wait_for_slice() {
  [ "$DRY_RUN" = 1 ] && return
  until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in
      FAILED | SUSPENDED) return 1 ;; # the capacity was taken away
      *) sleep 30 ;;
    esac
  done
}

on_all_hosts() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker all --command "$1"
}

train_once() {
  wait_for_slice || return "$PREEMPTED"
  run gcloud compute tpus tpu-vm scp --recurse configs "$NAME:" "${where[@]}" --worker all
  on_all_hosts "python3 -m venv ~/swjax-venv && ~/swjax-venv/bin/pip install --quiet 'swjax[tpu,gcs] @ $CODE'"
  on_all_hosts "PATH=~/swjax-venv/bin:\$PATH $(train_command)"
}

if [ "$DRY_RUN" = 1 ] || [ -z "$(state)" ]; then create; fi
if [ "${1:-}" != --watch ]; then
  train_once
  exit
fi
for _ in $(seq "$RESTARTS"); do
  if train_once; then exit 0; fi
  [ "$DRY_RUN" = 1 ] && exit 0
  if [ "$(state)" != ACTIVE ]; then # the slice is gone, not the program: ask for another
    run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
    create
  fi
done
echo "$0: $NAME was stopped $RESTARTS times; giving up" >&2
exit 1
