"""CONTRIBUTING shows how a mechanism is added with files that exist: what it prints is what they hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", ["nn/retention.py", "cards/retnet.py", "recipes/retnet.py"])
def test_the_guide_shows_the_files_as_they_are(path: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert (ROOT / "src" / "attensor" / path).read_text(encoding="utf-8") in blocks
