"""Types of what JSON holds and is made of: names, and values of any kind."""

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
JsonView = Mapping[str, Any]
"""One that is read alone."""
