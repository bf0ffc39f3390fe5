"""The generated pages of the site: one for each card, operator and layer, with formulas and arguments in them."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import re
from pathlib import Path
from types import ModuleType

import pytest

from attensor import nn, ops
from attensor.catalogue import cards, mechanisms

DOCS = Path(__file__).parent.parent / "docs"
# pages whose code needs nothing but the library
WITH_CODE = [
    DOCS.parent / "README.md",
    *(DOCS / f"{n}.md" for n in ("language-models", "linear-attention", "image-models")),
]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("attensor_docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generate: ModuleType) -> dict[str, str]:
    return generate.pages()


@pytest.mark.parametrize("path", WITH_CODE, ids=lambda p: p.name)
def test_code_on_a_page_runs_as_it_stands(path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)


@pytest.mark.parametrize("name", mechanisms())
def test_a_card_has_a_page_that_leads_to_its_layer_and_operator(name: str, pages: dict[str, str]) -> None:
    card, page = mechanisms()[name], pages[f"cards/{name}.md"]
    for part in (card.use, card.avoid, card.paper.url, card.example.strip(), "<math>", 'encoding="application/x-tex"'):
        assert part in page
    links = re.findall(r"\]\(\.\./((?:layers|operators)/\w+\.md)\)", page)
    assert len(links) == len(card.operators) + len(card.layers)
    assert set(links) <= set(pages)


def test_every_operator_has_a_page_with_its_arguments_and_definition(pages: dict[str, str]) -> None:
    names = {name.removesuffix("_reference") for name in dir(ops) if name.endswith("_reference")}
    assert len(names) >= 4
    for name in names:
        page = pages[f"operators/{name}.md"]
        for parameter in inspect.signature(getattr(ops, name)).parameters:
            assert f"| `{parameter}` |" in page, f"{name}: {parameter} is not documented"
        for part in ("**Returns**", "**Raises**", f"## `{name}_reference`", "\ndef "):
            assert part in page, name


def test_every_layer_of_a_card_has_a_page(pages: dict[str, str]) -> None:
    for path in (path for card in cards().values() for path in card.layers):
        layer = getattr(nn, path.partition(":")[2])
        page = pages[f"layers/{layer.__name__}.md"]
        for parameter in inspect.signature(layer).parameters:
            assert f"| `{parameter}` |" in page, f"{layer.__name__}: {parameter} is not documented"
        assert "## `forward`" in page


def test_tables_keep_their_columns(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        lines = re.sub(r"```.*?```", "", page, flags=re.DOTALL).splitlines()
        for before, line in itertools.pairwise(lines):
            if before.startswith("|") and line.startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", before)) == len(re.findall(r"(?<!\\)\|", line)), f"{name}: {line}"


def test_written_pages_replace_older_ones(
    generate: ModuleType, pages: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "HERE", tmp_path)
    monkeypatch.setattr(generate, "pages", lambda: pages)
    stale = tmp_path / "cards" / "gone.md"
    stale.parent.mkdir()
    stale.write_text("a card that was removed")
    generate.main()
    assert not stale.exists()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")} == set(pages)


def test_written_by_hand_links_lead_somewhere(pages: dict[str, str]) -> None:
    known = {path.name for path in DOCS.glob("*.md")} | set(pages)
    for path in DOCS.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([\w./-]+\.md)", path.read_text()):
            assert target in known, f"{path.name} links to {target}"
