"""The picture of docs/architecture.md is what its script makes of the code."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_picture_is_that_of_the_code() -> None:
    made = runpy.run_path(str(DOCS / "architecture.py"))
    assert made["PICTURE"].read_text() == made["draw"](), "run python docs/architecture.py"


def test_a_configuration_never_climbs_back_up() -> None:
    made = runpy.run_path(str(DOCS / "architecture.py"))
    imports = made["rooms"]()
    calls = list(made["walk"](*made["TRAIN"], 2))
    assert {"make_program", "make_state", "run_steps", "put_batch"} <= {call.function for call in calls}
    most = made["level"]("training", imports)
    assert all(made["level"](call.module.split(".")[1], imports) <= most for call in calls)
