"""transformers' own tests: the marks that they wear, and one line for all that they skip by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

_KINDS = ["generate", "accelerate_tests", "torch_compile_test", "flash_attn_test"]
_KINDS += [f"flash_attn_{version}_test" for version in (3, 4)]


def pytest_configure(config: pytest.Config) -> None:
    for name in _KINDS:
        config.addinivalue_line("markers", f"{name}: transformers' own")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    is_theirs = report.skipped and isinstance(report.longrepr, tuple) and "tests_of_transformers" in report.longrepr[0]
    if is_theirs and item.config.get_verbosity() < 1:
        reason = "attention maps, hardware, libraries: not for such a model or this machine (-v shows each reason)"
        report.longrepr = (str(item.path), 1, reason)
    return report
