"""The language families become known to transformers' Auto classes when these are imported, and no sooner.

transformers takes seconds to import, and most of attensor needs none of it. So `import attensor.models` registers at
once where the Auto classes are there already, and otherwise waits for whoever imports them.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["register_when_imported"]

AUTO = "transformers.models.auto.modeling_auto"
_LAYERS = "transformers.modeling_layers"  # which the families need, and which imports the Auto classes before its own


def register_when_imported() -> None:
    """Register the families now or as soon as `AutoModelForCausalLM` exists; again is harmless."""
    if AUTO in sys.modules:
        _register()
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


class _Waiting(MetaPathFinder):
    """Finds the modules as Python would, and registers when those that were begun have run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec; None for all others."""
        if fullname not in (AUTO, _LAYERS):
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                self._register_after(fullname)

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec

    def _register_after(self, done: str) -> None:
        other = _LAYERS if done == AUTO else AUTO
        if AUTO in sys.modules and not _is_under_way(other) and self in sys.meta_path:
            sys.meta_path.remove(self)
            _register()


def _register() -> None:
    if _is_under_way("attensor.models.language._transformers"):  # ours asked for the Auto classes, and calls again
        return
    from attensor.models.language.generate import import_families

    try:
        import_families()
    except Exception as error:  # a transformers that is too old must not break for those who need it for other models
        warnings.warn(f"attensor's language models are not known to transformers: {error}", stacklevel=2)


def _is_under_way(name: str) -> bool:
    """Whether the import of a module has begun and not ended."""
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))
