"""One HTML file with everything in it: it loads nothing, runs offline, and may be mailed.

Names of files, classes and mechanisms come from the user and may hold anything. They reach a page as escaped text
(jinja2) or inside JSON in which no `<` is left, and plotly gets them with its own markup taken away. A content security
policy, in the skeleton `templates/document.html`, forbids every request as a second line of defence.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from attensor.errors import MissingExtraError, require
from attensor.files import write_text
from attensor.report.charts import Chart

__all__ = ["announce_report", "json_in_script", "render_document", "write_document"]


def write_document(path: str | os.PathLike[str], template: str, **parts: Any) -> None:
    """Write a page; it appears whole or not at all.

    Args:
        path: the file to write.
        template: `"package:name"`, a file in the package's folder `templates`; it extends `document.html`.
        parts: what the template names. `charts`, a sequence of `Chart`, are drawn where it includes `charts.html`.
    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
        OSError: the file cannot be written.
    Cost: 5 MB with charts, nearly all of it plotly.js; without a few KB.
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
    jinja = require("jinja2", purpose="the HTML report")
    plotly = require("plotly.offline", purpose="the HTML report")
    package, _, name = template.partition(":")
    environment = jinja.Environment(
        loader=jinja.ChoiceLoader([jinja.PackageLoader(package), jinja.PackageLoader("attensor.report")]),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text: str = environment.get_template(name).render(
        **parts,
        charts=charts,
        charts_json=json_in_script([asdict(chart) for chart in charts]),
        plotly_js=plotly.get_plotlyjs() if charts else "",
    )
    return text


def json_in_script(value: object) -> str:
    """JSON that cannot end or leave the `<script>` around it; what is not finite becomes null."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
