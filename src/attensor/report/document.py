"""One HTML file with everything in it: it loads nothing, runs offline, and may be mailed.

Names of files, classes and mechanisms come from the user and may hold anything. They reach a page as escaped text
(jinja2) or inside JSON in which no `<` is left, which scripts show as text. A content security policy is the second
line of defence: only the page's own script and style run, known by their hashes, and nothing is requested or sent.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from attensor.errors import MissingExtraError, require
from attensor.files import write_text
from attensor.report.charts import Chart

__all__ = ["announce_report", "json_in_script", "render_document", "write_document"]

STYLES = ("page.css", "parts.css", "print.css")
SCRIPTS = ("draw.js", "chart.js", "table.js", "size.js", "page.js")
_POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; form-action 'none'; base-uri 'none'"
)


def write_document(path: str | os.PathLike[str], template: str, **parts: Any) -> None:
    """Write a page; it appears whole or not at all.

    Args:
        path: the file to write.
        template: `"package:name"`, a file in the package's folder `templates`; it extends `document.html`.
        parts: what the template names. `charts`, a sequence of `Chart`, are drawn where it includes `charts.html`;
            `table` and `sized` are data for the scripts of the same names.
    Raises:
        MissingExtraError: jinja2 is not installed.
        OSError: the file cannot be written.
    Cost: 40 KB and the data of the charts.
    """
    write_text(Path(path), render_document(template, **parts))


def announce_report(console: Console, write: Callable[[Any, Path], None], results: Any, path: Path) -> None:
    """Write a page by `write(results, path)` and say where it is; or what must be installed to have one."""
    try:
        write(results, path)
        console.print(f"Report: {path}", highlight=False, markup=False, soft_wrap=True)
    except MissingExtraError as error:
        console.print(f"No report: {error}", highlight=False, markup=False)


def render_document(template: str, *, charts: Sequence[Chart] = (), **parts: Any) -> str:
    """The page as text; as `write_document`."""
    package, _, name = template.partition(":")
    environment = _environment(require("jinja2", purpose="the HTML report"), package)
    style, script = _joined(STYLES), _joined(SCRIPTS)
    data = {
        "charts": charts,
        "table": parts.get("table"),
        "sized": parts.get("sized"),
        "verdicts": parts.get("verdicts"),
    }
    text: str = environment.get_template(name).render(
        **parts,
        charts=charts,
        data_json=json_in_script(data),
        style=style,
        script=script,
        policy=_POLICY.format(style=_hash(style), script=_hash(script)),
    )
    return text


@functools.cache
def _environment(jinja: Any, package: str) -> Any:
    """Templates of a package and of this one, compiled once."""
    environment = jinja.Environment(
        loader=jinja.ChoiceLoader([jinja.PackageLoader(package), jinja.PackageLoader("attensor.report")]),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["closed"] = _closed
    return environment


def _closed(text: object) -> str:
    """A text with one full stop at its end."""
    return str(text).rstrip(". ") + "."


@functools.cache
def _joined(names: tuple[str, ...]) -> str:
    folder = resources.files("attensor.report") / "templates"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def json_in_script(value: object) -> str:
    """JSON that cannot end or leave the `<script>` around it; what is not finite becomes null."""
    text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _plain(value: Any) -> Any:
    """Dataclasses as mappings, floats with seven digits."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
