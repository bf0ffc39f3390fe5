"""The claims table of the documentation, made from the verdicts of full runs that are kept in the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attensor.files import read_json, write_text
from attensor.recipes._outcome import RULE, count_marks

__all__ = ["CLAIMS_FOLDER", "claims_page", "write_claims"]

CLAIMS_FOLDER = Path("benchmarks/results/claims")

_INTRODUCTION = f"""# Claims, measured again

Each recipe re-measures a claim of a paper at a size that a laptop trains in minutes, and compares it with a mark that
was set beforehand. What does not come out is said so. A small model on two cores neither confirms nor refutes a figure
of a large one: these recipes test whether the *order* or the *scaling* that the paper reports is there.

{RULE}

Where a mark can be read in two ways, both readings are marks. The second readings of LA-1's growth (with the backward
pass) and of L2ViT's Jacobian (16 x 16 cells) were added after the first had failed; they turn no verdict.

`attensor reproduce NAME` runs one in minutes on two cores and writes a report with charts; `--quick` takes
fewer steps and seeds. `attensor reproduce NAME --save` also renews this page, which is made from
`benchmarks/results/claims/`. Intervals are 95 % by Student's t over the seeds.
"""


def claims_page(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """The page as Markdown: an overview, then the pass marks and figures of each recipe.

    Args:
        verdicts: contents of verdict.json files, in the order of the page.
    """
    rows = ["| recipe | the paper's claim, as tested | verdict | marks | date |", "| --- " * 5 + "|"]
    for found in verdicts:
        cells = (
            f"[{found['recipe']}](#{found['recipe']})",
            found["claim"],
            f"**{found['outcome']}**",
            _counted(found),
            found["created"][:10],
        )
        rows.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    table = "\n".join(rows) if verdicts else "No recipe has been run in full yet."
    return "\n".join([_INTRODUCTION, table, "", *map(_section, verdicts)])


def write_claims(folder: Path = CLAIMS_FOLDER, page: Path | None = None) -> Path:
    """Write the page from all verdicts in `folder`.

    Args:
        folder: holds `<recipe>.json` files.
        page: the file to write; `docs/claims.md` of the same repository if None.
    Returns:
        The file written.
    """
    page = folder.parents[2] / "docs" / "claims.md" if page is None else page
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, claims_page([read_json(path) for path in sorted(folder.glob("*.json"))]))
    return page


def _section(found: Mapping[str, Any]) -> str:
    marks = ["| pass mark and measurement | verdict |", "| --- | --- |"]
    marks += [f"| {_cell(check['text'])} | {_mark(check)} |" for check in found["checks"]]
    figures = ["| measured | |", "| --- | --- |"]
    figures += [f"| {_cell(label)} | {_cell(value)} |" for label, value in found["figures"].items()]
    machine, claim = found["machine"], f"{found['claim'][:1].upper()}{found['claim'][1:]}"
    return "\n".join(
        [
            f"## {found['recipe']}\n",
            f"{found['paper']}. {claim}: **{found['outcome']}** ({_counted(found)}).\n",
            *marks,
            "",
            *(figures if found["figures"] else ()),
            f"\n`{found['command']}`, {found['created'][:10]}, {found['seconds'] / 60:.1f} minutes on "
            f"{machine['processor']} ({machine['cores']} cores), torch {found['torch']}.\n",
        ]
    )


def _counted(found: Mapping[str, Any]) -> str:
    return count_marks([check["mark"] for check in found["checks"]])


def _mark(check: Mapping[str, Any]) -> str:
    return str(check["mark"]) if check["mark"] == "reached" else f"**{check['mark']}**"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
