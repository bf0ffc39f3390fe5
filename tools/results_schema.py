"""Write docs/results-schema.md anew from the schema of results.json and the columns of results.csv."""

from __future__ import annotations

from pathlib import Path

from attensor.compare.schema import columns_table, schema_tables

PAGE = Path(__file__).parents[1] / "docs" / "results-schema.md"

BEGINNING = """# The files `results.json` and `results.csv`

`attensor compare` writes `runs/<time>/results.json`; the report renders nothing that is not in it. Beside it lies
`results.csv`, a row a mechanism. The number `schema` rises when a field changes its meaning or goes away; new fields
may come without that. The tables below are made from the JSON Schema that the package carries:
`attensor.compare.schema.schema()` gives it, and `jsonschema.validate(results, schema())` checks a file.

What is not known is null, or an empty list, with the reason in `missing` of the mechanism. Results of several runs,
merged by `attensor merge`, have `merged`, and each mechanism the `machine` that its costs are from: times of different
machines are never in one column.

## Reading it

```python
from pathlib import Path

from attensor.compare import Result

latest = max(Path("runs").glob("*/results.json"))
result = Result.load(latest)
print("\\n".join(result.answer))
for row in result.rows:
    if row["status"] == "ok":
        print(row["name"], row["score"]["mean"], row["score"]["spread"])
```

`result.to_frame()` is the table below as a data frame, where pandas is installed. From the file itself, with types that
know missing values: `pandas.read_csv("runs/<time>/results.csv", dtype_backend="numpy_nullable")`.

## `results.csv`

"""


def page() -> str:
    """The whole page."""
    return f"{BEGINNING}{columns_table()}\n## `results.json`\n\n{schema_tables()}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
