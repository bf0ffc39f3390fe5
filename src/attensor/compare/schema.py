"""The schema of results.json: a JSON Schema (draft 2020-12) in the package, and the same as tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from attensor.compare.columns import COLUMNS

__all__ = ["columns_table", "schema", "schema_tables"]

Node = Mapping[str, Any]


def schema() -> dict[str, Any]:
    """The JSON Schema of the results that this attensor writes."""
    text = resources.files("attensor.compare").joinpath("results.schema.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def schema_tables() -> str:
    """Markdown: a heading and a table of fields for each object of the schema, as deep as they go."""
    whole = schema()
    parts = []
    for path, node in _objects(whole):
        required = node.get("required", ())
        rows = []
        for name, field in node["properties"].items():
            rest = "" if name in required else " (may be left out)"
            rows.append(f"| `{name}` | {_type(field, whole)} | {_sentence(field)}{rest} |")
        title = f"### `{path}`" if path else "### Top level"
        said = f"{node['description']}\n\n" if path and node.get("description") else ""
        parts.append(f"{title}\n\n{said}| field | type | meaning |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def columns_table() -> str:
    """Markdown: the columns of results.csv."""
    rows = [f"| `{column.name}` | {column.kind} | {column.meaning} |" for column in COLUMNS]
    return "| column | type | meaning |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"


def _objects(whole: Node) -> Iterator[tuple[str, Node]]:
    """All objects with named fields, as (path, object), each before what is in it; what comes twice only once."""
    seen: set[int] = set()
    waiting: list[tuple[str, Node]] = [("", whole)]
    while waiting:
        path, node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield path, node
        inside = []
        for name, field in node["properties"].items():
            inner, target = _resolved(field, whole), f"{path}.{name}" if path else name
            while "items" in inner:
                inner, target = _resolved(inner["items"], whole), f"{target}[]"
            if "properties" in inner:
                inside.append((target, inner))
        waiting = inside + waiting


def _resolved(node: Node, whole: Node) -> Node:
    reference = node.get("$ref")
    found: Node = whole["$defs"][reference.rpartition("/")[2]] if reference else node
    return found


def _type(field: Node, whole: Node) -> str:
    node = _resolved(field, whole)
    if "enum" in node or "const" in node:
        return " or ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    kinds = node.get("type", "any")
    text = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    return text.replace("array", f"list of {_type(node['items'], whole)}") if "items" in node else text


def _sentence(field: Node) -> str:
    return str(field.get("description", "")).rstrip(".").replace("|", "\\|")
