"""The table of options names every key of the configuration, and no key of a group that the group has not."""

import re
from pathlib import Path

from swjax.training.config import DEFAULTS

DOCUMENT = Path(__file__).parents[2] / "docs" / "options.md"


def test_every_key_stands_in_the_table() -> None:
    rows = [line.split("|")[1:-1] for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    tables = [row for row in rows if row[0].strip() not in ("LLaMA-Factory", "---")]
    assert all(len(row) == 4 for row in tables)
    named = {name.partition("=")[0] for row in tables for name in re.findall(r"`([^`]+)`", row[2])}
    assert set(DEFAULTS) - named == set()
    assert {name for name in named - set(DEFAULTS) if "." in name} == set()
