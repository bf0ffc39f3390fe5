"""The generated pages of the site: one for each card, operator and layer, with formulas and arguments in them."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from attensor import nn, ops
from attensor.catalogue import Domain, cards, mechanisms
from attensor.files import write_json
from tests.report.sample_results import sample_results

DOCS = Path(__file__).parent.parent / "docs"
WITH_CODE = [
    DOCS.parent / "README.md",
    *(page for page in sorted(DOCS.glob("*.md")) if "```python" in page.read_text("utf-8")),
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
def test_code_on_a_page_runs_as_it_stands(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder where `attensor compare` has run."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "2026-01-31_12-00-00"
    run.mkdir(parents=True)
    write_json(run / "results.json", sample_results())
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
    assert card.equation.replace("&", "&amp;").replace("<", "&lt;") in page
    assert '<figure class="reach">' in page
    links = re.findall(r"\]\(\.\./((?:layers|operators)/\w+\.md)\)", page)
    assert len(links) == len(card.operators) + len(card.layers)
    assert set(links) <= set(pages)


def test_every_causal_card_is_in_the_table_of_states(generate: ModuleType, pages: dict[str, str]) -> None:
    table = pages[".generated/state.md"]
    causal = [name for name, card in mechanisms().items() if card.is_causal and Domain.SEQUENCE in card.domain]
    assert re.findall(r"^\| \[([\w-]+)\]", table, re.MULTILINE) == causal
    row = next(line for line in table.splitlines() if line.startswith("| [softmax]"))
    assert row.endswith("| 8 KiB | 32 MiB | 512 MiB |")  # 2 x 1024 numbers of 4 bytes a token
    assert '--8<-- "state.md"' in (DOCS / "language-models.md").read_text("utf-8")


def test_a_picture_shows_what_a_layer_sees(generate: ModuleType) -> None:
    """Causal ones nothing of what comes later, windows nothing beyond, axial layers one line."""
    from pictures import _layers, _ringed, influence

    seen = influence(_layers(mechanisms()["sliding-window"])[0], is_row=True) > 1e-9
    width = seen[-1].sum()
    assert 1 < width < len(seen)
    assert torch.equal(seen, torch.ones_like(seen).tril().triu(1 - int(width)))
    rows, columns = (influence(layer, is_row=False) > 1e-9 for layer in _layers(mechanisms()["axial"]))
    row, column = divmod(_ringed(), rows.shape[1])
    assert rows.sum() == columns.sum() == len(rows)
    assert rows[row].all()
    assert columns[:, column].all()


def test_readme_lists_the_systems_of_today(generate: ModuleType) -> None:
    """`python docs/generate.py` writes the table anew."""
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    assert generate.with_systems(readme) == readme
    assert all(f"[{card.paper.title}]({card.paper.url})" in readme for card in cards().values())


def test_every_page_is_in_the_navigation(generate: ModuleType, pages: dict[str, str]) -> None:
    by_hand = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text("utf-8"))["nav"]
    listed = re.findall(r"[\w./-]+\.md", str(generate.navigation(by_hand, list(pages))))
    assert sorted(listed) == sorted({p.name for p in DOCS.glob("*.md")} | {p for p in pages if not p.startswith(".")})


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
    for name in ("mkdocs.yml", "README.md"):
        shutil.copy(DOCS.parent / name, tmp_path.parent)
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
