"""The counts at the top of docs/robustness.md are those of its rows."""

import re
from collections import Counter
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "robustness.md"
OUTCOME = re.compile(r"\s*(?:the example is )?(taken|skipped|refused)\b")


def test_counts():
    summary, *sections = DOCUMENT.read_text().split("\n## ")
    assert len(sections) == 3
    for section in sections:
        title, counts = section.splitlines()[0], Counter()
        for line in section.splitlines():
            cells = re.split(r"(?<!\\)\|", line)[2:-1] if line.startswith("| ") else []
            found = [match[1] for cell in cells if (match := OUTCOME.match(cell))]
            counts.update(found[:1])
        numbers = counts["taken"], counts["skipped"], counts["refused"]
        assert f"| {title} | {sum(numbers)} | {' | '.join(map(str, numbers))} |" in summary
