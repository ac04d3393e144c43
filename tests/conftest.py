"""Runs the suite on the CPU, as eight devices, so that sharded code is tested on any machine."""

import asyncio
import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import types

import checked
import pytest
import stores

os.environ["JAX_PLATFORMS"] = "cpu"
# Most programs here run once or twice, which is not worth compiling well; `compiled_well` is for the others.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
# What one process has compiled, the others load: workers of the suite, and runs that are stopped and started again.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="swjax_compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads wait for one another longer than tiny models take

checked.install()


@pytest.fixture(scope="session")
def random_model():
    """A tiny model that knows the words of the project's own tokenizer and has learned nothing.

    Its weights are large, so that its answer changes with what it sees all the same.
    """
    # Here, as they import jax, which reads the variables above once.
    from flax import nnx

    from swjax.data.tokenizer import load_tokenizer
    from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
    from swjax.streaming import SpecialTokens

    tokenizer = load_tokenizer(None)
    special = SpecialTokens.from_tokenizer(tokenizer)
    config = Qwen2_5_VLConfig.preset(
        "tiny",
        text={"vocab_size": len(tokenizer), "initializer_range": 0.25, "num_layers": 2},
        vision={"initializer_range": 0.15},
        video_token_id=special.video_pad,
        image_token_id=special.image_pad,
    )
    with _optimized():  # the same weights to the last bit, whoever draws them
        return Qwen2_5_VL(config, rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def compiled_well():
    """For modules that look at what the compiler makes, or compute much."""
    with _optimized():
        yield


@contextlib.contextmanager
def _optimized():
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def transformers_4(request, tmp_path_factory):
    """A Python with transformers 4.57, PyTorch, accelerate and Pillow, in an environment of its own.

    SWJAX_TRANSFORMERS_4_PYTHON names one; where slow tests are asked for (`-m slow`), else one is made.
    """
    if named := os.environ.get("SWJAX_TRANSFORMERS_4_PYTHON"):
        return named
    if "slow" not in request.config.getoption("markexpr"):
        pytest.skip("SWJAX_TRANSFORMERS_4_PYTHON names no Python, and -m slow, which makes one, was not given")
    folder = tmp_path_factory.mktemp("transformers_4")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    packages = "transformers==4.57.*", "torch==2.13.0", "accelerate>=1.1", "pillow>=11", "numpy>=2.1"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


GCS_ENVIRONMENT = {
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google what kind of bucket it is
    "NO_GCE_CHECK": "true",
}
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session")
def _environment(tmp_path_factory):
    """What programs of these tests find in their environment: no credentials, and a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
        for name, value in (GCS_ENVIRONMENT | S3_ENVIRONMENT).items():
            patch.setenv(name, value)
        # Before they try again, clients wait for seconds, which stores on loopback do not need.
        patch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 20)))
        patch.setattr("swjax.storage.files.time", types.SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 20)))
        yield patch


@pytest.fixture(scope="session")
def gcs(_environment):
    """A proxy before an emulator of Google Cloud Storage that holds gs://bucket."""
    yield from _serving(stores.start_gcs, _environment, ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"))


@pytest.fixture(scope="session")
def s3(_environment):
    """A proxy before an emulator of S3 that holds s3://bucket."""
    yield from _serving(stores.start_s3, _environment, ("AWS_ENDPOINT_URL",))


@pytest.fixture(scope="session")
def azure(_environment):
    """A proxy before an emulator of Azure Blob Storage that holds az://bucket."""
    if not stores.find_azurite():
        say = pytest.fail if os.environ.get("SWJAX_REQUIRE_AZURITE") == "1" else pytest.skip
        say("there is no azurite-blob on the path, and SWJAX_AZURITE names none (npm install azurite)")
    # Azure's client waits for fifteen seconds and more before it tries again.
    _environment.setattr("azure.storage.blob._shared.policies_async.ExponentialRetry.get_backoff_time", lambda *_: 0.05)
    yield from _serving(stores.start_azure, _environment, ("AZURE_STORAGE_CONNECTION_STRING",), stores.azure_account)


def _serving(start, environment, variables, value=lambda proxy: proxy.url):
    proxy = stores.Proxy()
    server: subprocess.Popen = start(proxy)
    for name in variables:
        environment.setenv(name, value(proxy))
    assert os.environ[variables[0]] == value(proxy)
    yield proxy
    server.kill()
    server.wait()
    proxy.close()


@pytest.fixture(params=["gs", "s3", "az"])
def store(request):
    """A folder of each store, and the proxy before it."""
    proxy = request.getfixturevalue({"gs": "gcs", "s3": "s3", "az": "azure"}[request.param])
    return f"{request.param}://bucket/{request.node.name.partition('[')[0]}", proxy
