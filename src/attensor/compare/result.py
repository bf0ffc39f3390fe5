"""What a comparison found, as an object: rows, verdict, answer, a table for pandas, a notebook and a spreadsheet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attensor.compare.columns import COLUMNS, flat_rows, write_csv
from attensor.errors import require
from attensor.files import DamagedFileError, read_json, user_path

if TYPE_CHECKING:
    import pandas

__all__ = ["PROTOCOL", "RESULTS_FILE", "SCHEMA", "Result"]

SCHEMA = 2
PROTOCOL = {"name": "attensor-compare", "version": 3}
RESULTS_FILE = "results.json"
# of pandas, such that a missing value keeps the others what they are
_TYPES = {"text": "string", "integer": "Int64", "number": "Float64", "boolean": "boolean"}


class Result:
    """The results of a comparison.

    Args:
        results: what results.json holds.
        path: folder of the run.
    """

    def __init__(self, results: dict[str, Any], path: Path) -> None:
        self.results = results
        self.path = path

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Result:
        """The results in the folder of a run, or in a file `results.json`.

        Raises:
            ValueError: there are none, they are damaged, or of another schema or protocol than this attensor reads.
        """
        given = user_path(os.fspath(source), "source")
        path = given / RESULTS_FILE if given.is_dir() else given
        found = read_json(path)
        if found is None:
            raise ValueError(f"{given}: there are no results; a run that has begun has a {RESULTS_FILE}.")
        return cls(checked(found, path), path.parent)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The mechanisms, as `docs/results-schema.md` describes them, in the order in which they were asked for."""
        return list(self.results["mechanisms"])

    @property
    def verdict(self) -> list[dict[str, Any]]:
        """What to use in which case, at which price and how sure that is: `case`, `use`, `confidence`, `sentence`..."""
        return list(self.results.get("verdict") or [])

    @property
    def answer(self) -> list[str]:
        """What was found, in sentences."""
        return list(self.results.get("answer") or [])

    def to_frame(self) -> pandas.DataFrame:
        """The table of results.csv, one row a mechanism, with types that know missing values.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = require("pandas", purpose="Result.to_frame")
        frame = pandas.DataFrame(flat_rows(self.results), columns=[column.name for column in COLUMNS])
        return frame.astype({column.name: _TYPES[column.kind] for column in COLUMNS})

    def save_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the table of results.csv to another place, and return its path.

        Raises:
            ValueError: the path is none.
            OSError: it cannot be written.
        """
        target = user_path(os.fspath(path), "path")
        write_csv(target, self.results)
        return target

    def __repr__(self) -> str:
        quality = next((case for case in self.verdict if case.get("case") == "quality"), {})
        use = f"use {quality['use']} ({quality.get('confidence')})" if quality.get("use") else "not decided"
        return f"Result({str(self.path)!r}: {len(self.results['mechanisms'])} mechanisms, {use})"

    def __str__(self) -> str:
        return "\n".join(self.answer)

    def _repr_html_(self) -> str:
        """For notebooks: verdict and table."""
        from attensor.compare.result_html import result_html

        return result_html(self)


def checked(results: Any, path: Path) -> dict[str, Any]:
    """The results, if this attensor can read them.

    Raises:
        ValueError: they are something else, or of another schema or protocol.
    """
    if not isinstance(results, dict) or not isinstance(results.get("mechanisms"), list):
        raise DamagedFileError(path, "it is no comparison", "Give the folder of a run of `attensor compare`.")
    schema, protocol = results.get("schema"), results.get("protocol")
    if schema != SCHEMA:
        raise ValueError(f"{path}: is of schema {schema!r}, and this attensor reads {SCHEMA}. Repeat the comparison.")
    if protocol != PROTOCOL:
        raise ValueError(
            f"{path}: was made by protocol {protocol}, and this attensor reads {PROTOCOL}: scores of another protocol "
            "mean something else. Repeat the comparison."
        )
    return results
