"""The launchers: sound shell and YAML, and with DRY_RUN=1 the commands that they would run."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
SHARED = {"RUN_DIR": "/shared/run", "CODE": "/code", "OVERRIDES": "--config.mesh.fsdp=64", "DRY_RUN": "1"}
TRAIN = "swjax train --config configs/pe_video_7b.py --run-dir /shared/run --config.mesh.fsdp=64"


def launch(script, *arguments, **variables):
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        env={"PATH": os.environ["PATH"], **SHARED, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_shell_is_sound():
    shellcheck = shutil.which("shellcheck") or str(Path(sys.executable).with_name("shellcheck"))
    done = subprocess.run(
        [shellcheck, "--external-sources", *map(str, LAUNCH.glob("*.sh"))],
        cwd=LAUNCH.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_tpu_vm():
    done = launch("tpu_vm.sh", NAME="seven", TYPE="v5p-128", ZONE="here", SPOT="1")
    assert done.returncode == 0, done.stderr
    create, copy, install, train = map(shlex.split, done.stdout.splitlines())
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "seven"]
    assert "--spot" in create
    assert create[create.index("--accelerator-type") + 1] == "v5p-128"
    assert "scp" in copy
    assert "swjax[tpu,gcs] @ /code" in install[-1]
    assert train[-1].endswith(TRAIN)
    assert train[train.index("--worker") + 1] == "all"


def test_slurm():
    done = launch("slurm.sh", SLURM_SUBMIT_DIR=str(LAUNCH.parent))
    assert done.returncode == 0, done.stderr
    assert shlex.split(done.stdout) == ["srun", "--kill-on-bad-exit=1", *TRAIN.split()]


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (1, False)])
def test_slurm_requeues_what_was_preempted_and_nothing_else(tmp_path, status, requeued):
    for name, body in {"srun": f"exit {status}", "scontrol": 'echo "scontrol $*"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = launch("slurm.sh", PATH=path, DRY_RUN="0", SLURM_SUBMIT_DIR=str(LAUNCH.parent), SLURM_JOB_ID="7")
    assert done.returncode == (0 if requeued else status)
    assert ("scontrol requeue 7" in done.stdout) is requeued


@pytest.mark.parametrize("claim", ["", "disk"])
def test_gke(claim):
    slice_ = {"TYPE": "tpu-v5p-slice", "TOPOLOGY": "4x4x4", "HOSTS": "16", "CHIPS": "4"}
    done = launch("gke.sh", NAME="seven", IMAGE="image", ACCOUNT="trainer", CLAIM=claim, **slice_)
    assert done.returncode == 0, done.stderr
    jobset = yaml.safe_load(done.stdout)
    assert "${" not in done.stdout
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "seven")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 100
    (job,) = jobset["spec"]["replicatedJobs"]
    hosts = job["template"]["spec"]
    assert (hosts["parallelism"], hosts["completions"], hosts["backoffLimit"]) == (16, 16, 0)
    (container,) = hosts["template"]["spec"]["containers"]
    assert container["command"] == ["bash", "-c", f"exec {TRAIN}"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    assert hosts["template"]["spec"]["serviceAccountName"] == "trainer"
    volumes = hosts["template"]["spec"].get("volumes", [])
    assert [volume["persistentVolumeClaim"]["claimName"] for volume in volumes] == ([claim] if claim else [])
    assert [mount["name"] for mount in container.get("volumeMounts", [])] == [volume["name"] for volume in volumes]


def test_skypilot():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert {"name", "resources", "num_nodes", "envs", "workdir", "file_mounts", "setup", "run"} == set(task)
    for variable in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        assert f"export {variable}=" in task["run"]
    assert task["envs"]["RUN_DIR"].startswith(*task["file_mounts"])


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "slurm.sh"])
def test_what_is_missing_is_named(script):
    done = launch(script, RUN_DIR="", NAME="name", TYPE="type", ZONE="zone")
    assert done.returncode == 2
    assert "set " in done.stderr
