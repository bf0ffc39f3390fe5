"""Write the reference pages of the site from docstrings and cards: `python docs/generate.py`, then `zensical build`.

One page a card, a public operator and a public layer, and the table of "Choosing an attention". None is committed.
"""

from __future__ import annotations

import html
import inspect
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import sympy
import yaml
from latex2mathml.converter import convert

from attensor import nn, ops
from attensor.catalogue import Card, Domain, Mechanism, build_mixer, cards, load, mechanisms
from attensor.listing import argument_docs, domain_names, possessions
from attensor.report.numbers import size

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from pictures import reach  # noqa: E402

CONFIG = "mkdocs.generated.yml"
BEGIN = "<!-- systems: written by docs/generate.py -->"
END = "<!-- end of systems -->"
REFERENCE = {"Mechanisms": "cards", "Operators": "operators", "Layers": "layers"}
FOLDERS = (".generated", "cards", "layers", "operators")
STATE_OF = 1024, 16, (4096, 65536)  # channels, heads, tokens
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Cost", "Source")


def main() -> None:
    """Replace everything generated earlier."""
    for folder in FOLDERS:
        shutil.rmtree(HERE / folder, ignore_errors=True)
    written = pages()
    for name, text in written.items():
        path = HERE / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    readme = HERE.parent / "README.md"
    readme.write_text(with_systems(readme.read_text("utf-8")), "utf-8")
    config = yaml.safe_load((HERE.parent / "mkdocs.yml").read_text("utf-8"))
    (HERE.parent / CONFIG).write_text(
        yaml.safe_dump(config | {"nav": navigation(config["nav"], list(written))}), "utf-8"
    )


def pages() -> dict[str, str]:
    """Path below `docs/` -> Markdown."""
    found = {".generated/choosing.md": choosing_table()}
    found[".generated/state.md"] = state_table()
    found["cards/index.md"] = "# Catalogue\n\n" + choosing_table("")
    found |= {f"cards/{card.name}.md": card_page(card) for card in cards().values()}
    for folder, title, members in (("operators", "Operators", operators()), ("layers", "Layers", layers())):
        rows = "\n".join(f"| [`{name}`]({name}.md) | {summary(item)} |" for name, item in members.items())
        found[f"{folder}/index.md"] = f"# {title}\n\n| name | what it does |\n| --- | --- |\n{rows}\n"
        found |= {f"{folder}/{name}.md": object_page(name, item) for name, item in members.items()}
    return found


def navigation(by_hand: list[dict[str, Any]], generated: list[str]) -> list[dict[str, Any]]:
    """The order of the pages: that of mkdocs.yml, then the folders of generated ones."""
    folders = {title: sorted(n for n in generated if n.startswith(f"{f}/")) for title, f in REFERENCE.items()}
    return [*by_hand, *({title: sorted(names, key=_index_first)} for title, names in folders.items())]


def _index_first(name: str) -> tuple[bool, str]:
    return not name.endswith("index.md"), name.lower()


def operators() -> dict[str, Callable[..., Any]]:
    """Public operators; their references are shown on the same page."""
    return {name: item for name, item in public(ops).items() if inspect.isfunction(item) and "_reference" not in name}


def layers() -> dict[str, Any]:
    """Public layers, caches and the functions they share."""
    return {name: item for name, item in public(nn).items() if inspect.isclass(item) or inspect.isfunction(item)}


def public(package: ModuleType) -> dict[str, Any]:
    """Public members whose home is a module of the package itself, dispatch left out."""
    members = {name: getattr(package, name) for name in dir(package) if not name.startswith("_")}
    home = re.compile(rf"{package.__name__}\.(?!_)")
    return {name: item for name, item in members.items() if home.match(str(getattr(item, "__module__", "")))}


def systems_table() -> str:
    """The systems of the catalogue with their papers, for README."""
    rows = ["| name | system | mixes | paper |", "| --- " * 4 + "|"]
    for one in cards().values():
        mixes = ", ".join(domain_names(one.domain)) if isinstance(one, Mechanism) else "-"
        rows.append(
            f"| `{one.name}` | {one.title} | {mixes} | [{one.paper.title}]({one.paper.url}), {one.paper.year} |"
        )
    return "\n".join(rows)


def with_systems(readme: str) -> str:
    """README with the table of today between its marks."""
    return re.sub(f"(?s)({BEGIN}\n).*?({END})", rf"\1{systems_table()}\n\2", readme)


def choosing_table(to_cards: str = "cards/") -> str:
    """All cards side by side: what they are for, then what the mechanisms among them cost."""
    purposes = ["| name | mixes | for | not for |", "| --- " * 4 + "|"]
    costs = ["| mechanism | forward FLOPs of the operator | decode state of a layer, bytes |", "| --- " * 3 + "|"]
    symbols: dict[str, str] = {}  # meaning -> symbol: two cards may use one letter differently
    for card in cards().values():
        link = f"[{card.name}]({to_cards}{card.name}.md)"
        mixes = "-"
        if isinstance(card, Mechanism):
            mixes = ", ".join(domain_names(card.domain))
            state = typeset(card, "state_bytes") if card.is_causal else "does not decode"
            costs.append(f"| {link} | {typeset(card, 'flops')} | {state} |")
            symbols |= {meaning: symbol for symbol, meaning in card.used_symbols.items()}
        purposes.append(f"| {link} | {mixes} | {cell(card.use)} | {cell(card.avoid)} |")
    legend = ", ".join(f"*{symbol}* {meaning}" for meaning, symbol in symbols.items())
    return "\n".join([*purposes, "", *costs, "", f"Here {legend}.", ""])


def state_table() -> str:
    """What one layer of every causal mechanism keeps of a sequence, as formulas and for a layer of one width."""
    hidden_size, num_heads, lengths = STATE_OF
    ends = " | ".join(f"at {length:,} tokens" for length in lengths)
    rows = [
        f"| mechanism | bytes a token | fixed bytes | a token, here | {ends} |",
        "| --- " * (4 + len(lengths)) + "|",
    ]
    for card in mechanisms().values():
        if not card.is_causal or Domain.SEQUENCE not in card.domain:
            continue
        options = {**card.mixer_options(Domain.SEQUENCE), "device": "meta"}
        layer = build_mixer(load(card.layer), hidden_size, num_heads, layer_index=0, num_layers=1, **options)
        held = [card.cost("state_bytes", B=1, **layer.cost_sizes((length,))) for length in lengths]
        by_token = (held[1] - held[0]) // (lengths[1] - lengths[0])
        formulas = " | ".join("-" if part == 0 else mathml(part) for part in card.state_parts)
        cells = " | ".join(size(number) for number in held)
        rows.append(f"| [{card.name}](cards/{card.name}.md) | {formulas} | {size(by_token)} | {cells} |")
    here = f"Here: a layer of width {hidden_size} with {num_heads} heads, in float32."
    return "\n".join([*rows, "", f"{here} The pages of the mechanisms say what the letters mean.", ""])


def card_page(card: Card) -> str:
    """A card in full: what it is for, what it costs if it mixes, how to use it, and where its parts are."""
    head = f"# {card.title}\n\n`{card.name}`"
    definition = cost = ""
    if isinstance(card, Mechanism):
        head += f", mixes {' or '.join(domain_names(card.domain))}{', causal' if card.is_causal else ''}"
        state = f"{typeset(card, 'state_bytes')} bytes a layer" if card.is_causal else "none, it does not decode"
        symbols = "\n".join(f"- *{symbol}*: {meaning}" for symbol, meaning in card.used_symbols.items())
        flops = typeset(card, "flops")
        definition = f"## Definition\n\n{equation(card)}\n\n{reach(card)}\n\n"
        cost = f"## Cost\n\nForward FLOPs of the operator: {flops}\n\nDecode state: {state}\n\n{symbols}\n\n"
    return (
        f"{head}. [{card.paper.title}]({card.paper.url}), {card.paper.year}.\n\n"
        f"**For** {card.use}.\n\n**Not for** {card.avoid}.\n\n{definition}{cost}"
        f"## Use\n\n```python\n{card.example.strip()}\n```\n\n" + parts(card)
    )


def parts(card: Card) -> str:
    """A list of what the card has; operators and layers lead to their pages."""
    pages = {path.replace(":", "."): f"operators/{path.partition(':')[2]}" for path in card.operators}
    pages |= {path.replace(":", "."): f"layers/{path.partition(':')[2]}" for path in card.layers}

    def shown(part: str) -> str:
        # a part of another distribution has no page here
        has_page = part in pages and part.startswith("attensor.")
        return f"[`{part.rpartition('.')[2]}`](../{pages[part]}.md)" if has_page else part

    rows = [f"- {label}: {', '.join(map(shown, text.split(', ')))}" for label, text in possessions(card)]
    return "\n".join(rows) + "\n"


def equation(card: Mechanism) -> str:
    """What a token receives, as MathML with its LaTeX source inside."""
    terms = "".join(f"- {convert(term)}: {meaning}\n" for term, meaning in card.terms.items())
    inside = re.sub(r"^<math[^>]*>|</math>$", "", convert(card.equation, display="block"))
    source = f'<annotation encoding="application/x-tex">{html.escape(card.equation)}</annotation>'
    return f'<math display="block"><semantics>{inside}{source}</semantics></math>\n\n{terms}'.rstrip()


def typeset(card: Mechanism, which: str) -> str:
    """The formula as MathML, which browsers draw without a script; its LaTeX source is inside, for copying."""
    return mathml(card.formula(which))


def mathml(formula: sympy.Expr) -> str:
    """A formula for a page."""
    drawn = sympy.mathml(formula, printer="presentation")
    source = f'<annotation encoding="application/x-tex">{sympy.latex(formula)}</annotation>'
    return f"<math><semantics>{drawn}{source}</semantics></math>"


def object_page(name: str, item: Any) -> str:
    """A function or class: signature, docstring, and for operators the definition at the head of their file."""
    text = f"# `{name}`\n\n{describe(item)}"
    if inspect.isclass(item):
        for method, function in inspect.getmembers(item, inspect.isfunction):
            if function.__module__.startswith("attensor.") and not method.startswith("_") and function.__doc__:
                text += f"\n## `{method}`\n\n{describe(function)}"
    if name not in operators():
        return text
    definition = inspect.getdoc(inspect.getmodule(item)) or ""
    text += f"\n## Definition\n\n```text\n{definition}\n```\n"
    reference = getattr(ops, f"{name}_reference", None)
    if reference is not None:
        operator = ops.OPERATORS.get(name)
        source = inspect.getsource(reference if operator is None else operator.implementations["reference"].run)
        text += f"\n## `{name}_reference`\n\n{summary(reference)}\n\n```python\n{source}```\n"
    return text


def describe(item: Any) -> str:
    """Signature and docstring with its sections as tables and lists."""
    body = dict.fromkeys(("", *SECTIONS), "")
    section = ""
    for line in (inspect.getdoc(item) or "").splitlines():
        heading = re.match(r"([A-Z][a-z]+):(?: (.*))?$", line)
        if heading and heading[1] in SECTIONS:
            section, line = heading[1], heading[2] or ""
        body[section] += line + "\n"
    text = f"```python\n{signature(item)}\n```\n\n{body['']}\n"
    arguments = argument_docs(item)
    if arguments:
        rows = "\n".join(f"| `{name}` | {cell(meaning)} |" for name, meaning in arguments.items())
        text += f"| argument | meaning |\n| --- | --- |\n{rows}\n\n"
    for title in ("Returns", "Yields", "Raises", "Cost", "Source"):
        if body[title].strip():
            text += (
                f"**{title}**{listed(body[title]) if title == 'Raises' else ': ' + inspect.cleandoc(body[title])}\n\n"
            )
    return text


def listed(section: str) -> str:
    """The entries of a docstring's section as a list."""
    return "\n\n" + re.sub(r"^ {4}(?=\S)", "- ", section.strip("\n"), flags=re.MULTILINE)


def signature(item: Any) -> str:
    """The call, one argument a line when it is long."""
    shown = inspect.signature(item)
    arguments, starred = [], False
    for parameter in shown.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            arguments, starred = [*arguments, "*"], True
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        arguments.append(f"{stars}{parameter.name}{annotation(': ', parameter.annotation)}{default}")
    returned = annotation(" -> ", shown.return_annotation)
    on_one_line = f"{item.__name__}({', '.join(arguments)}){returned}"
    if len(on_one_line) <= 88:
        return on_one_line
    return f"{item.__name__}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){returned}"


def annotation(prefix: str, kind: Any) -> str:
    """A type as it stands in the source, nothing where there is none."""
    if kind is inspect.Signature.empty:
        return ""
    return prefix + (kind if isinstance(kind, str) else inspect.formatannotation(kind))


def summary(item: Any) -> str:
    """The first sentence of the docstring, in a table cell."""
    return cell((inspect.getdoc(item) or "").partition("\n\n")[0])


def cell(text: str) -> str:
    """Text that does not break a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
