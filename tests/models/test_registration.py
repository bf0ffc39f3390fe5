"""`import attensor.models` makes the language families known to transformers' Auto classes, in either order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.families import FAMILIES, build

ORDERS = {
    "before": "import attensor.models\nassert 'transformers' not in sys.modules\n"
    "from transformers import AutoModelForCausalLM",
    "after": "from transformers import AutoModelForCausalLM\nimport attensor.models",
    "after a model": "import attensor.models\nfrom transformers import BertModel, AutoModelForCausalLM",
    "beside a pipeline": "import attensor.models\nfrom transformers import pipeline, AutoModelForCausalLM",
    "beside a trainer": "import transformers, attensor.models\nfrom transformers import Trainer, AutoModelForCausalLM",
}


@pytest.mark.parametrize(
    "order", ["before", *(pytest.param(order, marks=pytest.mark.slow) for order in list(ORDERS)[1:])]
)
def test_saved_models_load_after_import_attensor_models(order: str, tmp_path: Path) -> None:
    for name in FAMILIES:
        build(name).save_pretrained(tmp_path / name)
    program = (
        f"import sys, warnings\nwarnings.simplefilter('error')\n{ORDERS[order]}\n"
        f"for name in {list(FAMILIES)}:\n"
        f"    print(type(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r} + '/' + name)).__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [kind.__module__ for _, kind, _ in FAMILIES.values()]


def test_a_transformers_that_is_too_old_is_still_imported(tmp_path: Path) -> None:
    """Its models load as before; ours are left out with a warning."""
    package = tmp_path / "transformers" / "models" / "auto"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "modeling_auto.py").write_text("AutoModelForCausalLM = 'theirs'\n")
    program = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport attensor.models\n"
        "from transformers.models.auto.modeling_auto import AutoModelForCausalLM\nprint(AutoModelForCausalLM)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "theirs\n", done.stderr
    assert "attensor's language models are not known to transformers" in done.stderr
