"""transformers' common model and generation tests, for every family, as a new model's test file there runs them.

What does not apply (attention maps, hardware, other libraries) a test skips by itself; none is switched off here.
"""

from __future__ import annotations

import unittest
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from tests.models import families, transformers_tests

if not transformers_tests.is_fetched():
    pytest.skip(transformers_tests.NOT_FETCHED, allow_module_level=True)
pytest.importorskip("parameterized", reason="transformers' own tests need parameterized: pip install parameterized")

common: Any = transformers_tests.load("test_modeling_common")
configurations: Any = transformers_tests.load("test_configuration_common")

# what stands where one of their decorators was applied to nothing
pytestmark = pytest.mark.filterwarnings("ignore:It is deprecated to return a value:DeprecationWarning")


class Classes(NamedTuple):
    """What a family would register in transformers' own tables."""

    config: Any
    model: Any
    causal_lm: Any
    classifier: Any

    @classmethod
    def of(cls, family: str) -> Classes:
        config, causal_lm, _ = families.FAMILIES[family]
        (classifier,) = (kind for kind in families.CLASSIFIERS if kind.config_class is config)
        return cls(config, causal_lm.body, causal_lm, classifier)

    def names(self) -> list[tuple[dict[str, str], str]]:
        return [
            (common.MODEL_MAPPING_NAMES, self.model.__name__),
            (common.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, self.causal_lm.__name__),
            (common.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, self.classifier.__name__),
        ]


class ModelTester:
    """Sizes and inputs; some rows are padded."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = 5, 7, 32, 2, 2
    is_training = True

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def get_config(self) -> Any:
        sizes = {name: getattr(self, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
        more = {"vocab_size": 99, "intermediate_size": 40, "pad_token_id": 0, "num_labels": 3}
        return self.kind(**{**self.kind.tiny, **sizes, **more})

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        input_ids = common.ids_tensor([self.batch_size, self.seq_length], 99)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids).tril()}


class CommonTests(common.ModelTesterMixin, common.GenerationTesterMixin):
    classes: Classes
    has_attentions = False
    test_can_init_all_missing_weights_before_2023 = True  # there is no year of ours to read

    def setUp(self) -> None:
        kind = self.classes.config
        self.model_tester = ModelTester(kind)
        self.config_tester = configurations.ConfigTester(
            self, config_class=kind, common_properties=["hidden_size", "num_hidden_layers", "num_attention_heads"]
        )
        for table, name in self.classes.names():
            patch = mock.patch.dict(table, {kind.model_type: name})
            patch.start()
            self.addCleanup(patch.stop)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def _check_past_key_values_for_generate(
        self, batch_size: int, past_key_values: Any, seq_length: int, config: Any
    ) -> None:
        held = [layer.held for layer in past_key_values.layers]
        assert [(cache.batch_size, cache.length) for cache in held] == [(batch_size, seq_length)] * len(held)
        assert len(held) == config.num_hidden_layers

    def _check_caches_are_equal(self, cache1: Any, cache2: Any) -> None:
        for one, other in zip(cache1.layers, cache2.layers, strict=True):
            torch.testing.assert_close(one.held.state_dict(), other.held.state_dict())


if not transformers_tests.has_generation():

    @pytest.mark.skip(reason=transformers_tests.NO_GENERATION)
    def test_generation() -> None: ...


for _family in families.FAMILIES:
    _classes = Classes.of(_family)
    _attributes = {"classes": _classes, "all_model_classes": _classes[1:]}
    globals()[f"Test{_family.title()}"] = type(f"{_family}ModelTest", (CommonTests, unittest.TestCase), _attributes)
