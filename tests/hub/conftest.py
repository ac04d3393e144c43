"""An exported folder, its two modules for PyTorch, and the model that they load."""

import importlib
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from pytorch_files import SPEC


@pytest.fixture(scope="session")
def exported(random_model, tmp_path_factory):
    from swjax.commands.main import main
    from swjax.data.tokenizer import SHIPPED_TOKENIZER
    from swjax.hub import save_hf
    from swjax.hub.tokenizer_files import copy_tokenizer

    root = tmp_path_factory.mktemp("exported")
    save_hf(random_model, root / "base", more_config={"streaming": asdict(SPEC)})
    copy_tokenizer(SHIPPED_TOKENIZER, root / "base")
    assert main(["export", "--checkpoint", str(root / "base"), "--output", str(root / "out")]) == 0
    return root / "out"


@pytest.fixture(scope="session")
def files(exported):
    """The two modules of the exported folder."""
    pytest.importorskip("torch")
    names = "streaming", "finetuning"
    # Other folders have modules of these names, too.
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(exported))
    try:
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(exported))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(others)


@pytest.fixture(scope="session")
def loaded(files):
    import torch

    return files.streaming.load(dtype=torch.float32)
