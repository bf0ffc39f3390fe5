"""Configurations of all models and trainings, and what is built of them: legal numbers, and their rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.fuzz.calls import need
from tests.fuzz.rows import Row, row

__all__ = ["SIZES"]

Arguments = dict[str, Any]
Field = tuple[str, ...]
SIZE, RATE = ("int:1", "1", "8"), ("float:share", "0.0", "0.2")
SHARES = {"drop_path_rate": RATE}
IMAGES = {"image_size": ("sizes:1 2", "(32, 48)"), "in_channels": ("int:1", "1", "3")}
CLASSES = {"num_classes": ("int:0", "0", "10")}
STAGES: Field = ("sizes:1", "(12, 24)")
BLOCKS: Field = ("sizes:1", "(2, 1)")
HEADS: Field = ("sizes:1", "(3, 6)")


def equally_long(*names: str) -> Callable[[Arguments], str | None]:
    """The rule that these have one entry for each stage; a default has as many as the four of the others."""

    def rule(a: Arguments) -> None:
        lengths = {len(a[name]) if name in a else 4 for name in names if a.get(name, ()) is not None}
        need(len(lengths) <= 1, ", ".join(names) + ": lengths")

    return rule


def _maxvit(a: Arguments) -> None:
    equally_long("hidden_sizes", "depths")(a)
    width = a.get("head_dim", 32)
    need(all(size % width == 0 for size in a.get("hidden_sizes", (64, 128, 256, 512))), "hidden_sizes, head_dim")


def _halonet(a: Arguments) -> str | None:
    equally_long("inner_sizes", "hidden_sizes", "num_heads", "blocks")(a)
    return None


def _dit(a: Arguments) -> None:
    heads = len(a.get("num_heads", (6,) * 12))
    for name in ("num_shared", "num_active"):
        need(a.get(name) is None or len(a[name]) == heads, f"{name}, num_heads: lengths")


def _axial(a: Arguments) -> None:
    need(a.get("num_outer_layers", 8) % 2 == 0, "num_outer_layers: odd")
    channels = a.get("in_channels", 3)
    exterior = a.get("num_exterior_layers", 8)
    need(exterior % 2 == 0 and (channels > 1 or not exterior), "num_exterior_layers, in_channels: odd, or one channel")


def _oat(a: Arguments) -> str | None:
    width, heads = a.get("hidden_size", 512), a.get("num_heads", 4)
    look = a.get("look_size")
    need(width % heads == 0, "hidden_size, num_heads: no multiple")
    need(look is None or look < width, "look_size, hidden_size: all channels")
    most = -(-(width - (width // 2 if look is None else look)) // 3)
    need(a.get("max_places", 14) <= most, "max_places, hidden_size, look_size: more than the channels")
    need(len(a.get("look", (1, 2))) <= 2, "look: numbers")
    need(a.get("pooling_levels", 0) <= 4, "pooling_levels: more than 4")
    return None


def _scorer(a: Arguments) -> None:
    need(not (a.get("nonnegative") and a.get("inverse", True)), "nonnegative, inverse: both")


def _brain(a: Arguments) -> None:
    unary = a.get("unary", {})
    need(isinstance(unary, dict) and all(isinstance(name, str) for name in unary), "unary: no mapping")
    for size in unary.values():
        need(isinstance(size, int) and not isinstance(size, bool) and size >= 1, "unary: no sizes")


def _pointer(a: Arguments) -> str | None:
    return "hidden_size, input_size: large" if max(a.get("hidden_size", 1), a.get("input_size", 1)) > 10**4 else None


def _evaluations(a: Arguments) -> None:
    evaluations = a.get("evaluations", 10)
    several = evaluations if isinstance(evaluations, (tuple, list)) else [evaluations]
    need(all(n >= 0 for n in several), "evaluations: below 0")


def _large(a: Arguments) -> str | None:
    large = [name for name, x in a.items() if isinstance(x, int) and x > 10**4]
    return f"{', '.join(large)}: large" if large else None


def _states(a: Arguments) -> str | None:
    sizes = a["sizes"]
    need(isinstance(sizes, dict) and sizes and all(isinstance(name, str) for name in sizes), "sizes: no mapping")
    for size in sizes.values():
        need(isinstance(size, (tuple, list)) and all(isinstance(n, int) for n in size), "sizes: no sizes")
    return "batch_size: many" if a["batch_size"] > 10**6 else None


def _codes(a: Arguments) -> str | None:
    width = a.get("width", 86)
    need(a["n"] <= width, "n, width: more places than numbers")
    return "sigma, width: extreme" if width > 500 or not 1e-3 < a.get("sigma", 2) < 1e3 else None


CAUSAL: dict[str, Field] = {
    "vocab_size": ("int:1", "13"), "hidden_size": ("int:1", "12"), "intermediate_size": ("int:1", "20"),
    "num_hidden_layers": ("int:1", "2"), "num_attention_heads": ("int:1", "3"), "use_cache": ("bool", "False"),
    "norm_eps": ("float:above 0", "1e-6"), "initializer_range": ("float:from 0", "0.02"),
    "tie_word_embeddings": ("bool", "True"), "colour": ("anything?",),
}  # fmt: skip
PATCHES = {**IMAGES, "patch_size": ("int:1", "2"), "hidden_size": ("int:1", "12"), "num_layers": SIZE}
VISION: dict[str, Row] = {
    "ViTConfig": row(
        "vision.ViTConfig", **PATCHES, **SHARES, **CLASSES, num_heads=("int:1", "3"), class_token=("bool", "False"),
        mlp_ratio=("float:above 0", "2", "0.5"), layer_scale=("float?", "None", "1e-5"),
        norm_eps=("float:above 0", "1e-5"),
    ),
    "EncoderConfig": row(
        "vision.EncoderConfig", **{name: (f"*{kind}", *values) for name, (kind, *values) in PATCHES.items()},
        num_classes=("*int:1", "5"), num_heads=("*int:1", "3"), mlp_hidden_size=("*int:1", "20"),
        norm_eps=("float:above 0", "1e-5"),
    ),
    "DaViTConfig": row(
        "davit.DaViTConfig", equally_long("hidden_sizes", "depths", "num_heads"), **IMAGES, **SHARES, **CLASSES,
        hidden_sizes=("*sizes:1", "(12, 24)"), depths=("*sizes:1", "(2, 1)"), num_heads=("*sizes:1", "(3, 6)"),
        window_size=SIZE, version=("choice:1|2", "1", "2"), downsample_size=SIZE,
    ),
    "L2ViTConfig": row(
        "l2vit.L2ViTConfig", equally_long("hidden_sizes", "depths", "num_heads"), **IMAGES, **SHARES, **CLASSES,
        hidden_sizes=("*sizes:1", "(12, 24)"), depths=("*sizes:1", "(2, 1)"), num_heads=("*sizes:1", "(3, 6)"),
        window_size=SIZE, denominator_minimum=("float:above 0", "1.0"),
    ),
    "MaxViTConfig": row(
        "maxvit.MaxViTConfig", _maxvit, **IMAGES, **SHARES, **CLASSES, stem_size=SIZE, head_dim=("int:1", "4", "6"),
        hidden_sizes=("*sizes:1", "(12, 24)"), depths=("*sizes:1", "(2, 1)"), block_size=("int?:1", "None", "2"),
    ),
    "NATConfig": row(
        "nat.NATConfig", equally_long("hidden_sizes", "depths", "num_heads"), **IMAGES, **SHARES, **CLASSES,
        mlp_ratio=("float:above 0", "2.0"), window_size=SIZE,
        hidden_sizes=("*sizes:1", "(12, 24)"), depths=("*sizes:1", "(2, 1)"), num_heads=("*sizes:1", "(3, 6)"),
        layer_scale=("float?", "None", "1e-5"),
    ),
    "RAVLTConfig": row(
        "ravlt.RAVLTConfig", equally_long("hidden_sizes", "depths", "num_heads", "attention", "layer_scale"),
        **IMAGES, **SHARES, **CLASSES, hidden_sizes=("*sizes:1", "(12, 24, 24, 48)"),
        depths=("sizes:1", "(2, 1, 1, 1)"),
        num_heads=("sizes:1", "(3, 6, 3, 6)"), mlp_ratio=("float:above 0", "2.0"), projected_size=SIZE,
    ),
    "TransNeXtConfig": row(
        "transnext.TransNeXtConfig", equally_long("hidden_sizes", "depths", "num_heads", "mlp_ratios", "reductions"),
        **IMAGES, **SHARES, **CLASSES, hidden_sizes=("*sizes:1", "(12, 24)"), depths=("*sizes:1", "(2, 1)"),
        num_heads=("*sizes:1", "(3, 6)"), mlp_ratios=("*sizes:1", "(2, 2)"), reductions=("*sizes:1", "(2, 1)"),
    ),
    "HaloNetConfig": row(
        "halonet.HaloNetConfig", _halonet, **IMAGES, **SHARES, **CLASSES, stem_sizes=("sizes:1", "(4, 6)"),
        inner_sizes=("sizes:1", "(4, 8, 8, 8)"), hidden_sizes=("*sizes:1", "(8, 12, 12, 12)"), block_size=SIZE,
        num_heads=("sizes:1", "(2, 2, 2, 2)"), halo_size=("int:0", "0", "2"), key_dim=("int?:1", "None", "4"),
        value_ratio=("float:above 0", "2.0"), group_size=("int?:1", "None", "2"), final_size=("int?:1", "None", "10"),
        as_timm=("bool", "True"), stem_pool=("bool", "False"), activation=("text", "'silu'"),
        gate=("text?", "None", "'se'"),
    ),
    "DiTConfig": row(
        "dit.DiTConfig", _dit, **IMAGES, patch_size=SIZE, hidden_size=("int:1", "12"),
        num_heads=("*sizes:1", "(3, 3)"),
        head_dim=("int?:1", "None", "4"), num_shared=("sizes?:0", "None", "(1, 0)"),
        num_active=("sizes?:1", "None", "(2, 1)"),
        mlp_ratio=("float:above 0", "2.0"), num_classes=("int:1", "5"), class_dropout=RATE,
        learns_variance=("bool", "False"),
    ),
    "AxialTransformerConfig": row(
        "axial_transformer.AxialTransformerConfig", _axial, image_size=("sizes:1 2", "(3, 4)"),
        in_channels=("int:1", "3"),
        num_levels=("int:2", "5"), num_frames=("int?:1", "None", "2"), hidden_size=SIZE, num_heads=SIZE, dropout=RATE,
        mlp_hidden_size=SIZE, num_exterior_layers=("int:0", "2", "4"), num_outer_layers=("int:0", "2"),
        num_inner_layers=SIZE,
    ),
    "models.create of all": row(
        "models.create", _large, says=("models.create", "DropPath"), weight=0.3, device=("*device?", "'meta'"),
        name=("*choice:davit_tiny|l2vit_tiny|maxvit_tiny_tf_224|nat_mini|ravlt_t|halonet26t|transnext_micro",
              "'davit_tiny'", "'nat_mini'", "'halonet26t'", "'maxvit_tiny_tf_224'"),
        num_classes=("int?:0", "0", "5"), drop_path_rate=("float?:share", "0.1"), features_only=("bool", "True"),
    ),
}  # fmt: skip
SETUPS: dict[str, Row] = {
    "TrainConfig": row(
        "train.TrainConfig", _evaluations, steps=("*int:0", "0", "5"), learning_rate=("*float:from 0", "1e-3"),
        warmup_fraction=("float:0 to 1", "0.1", "1.0"), final_factor=("float:from 0", "0.1"), accumulate=SIZE,
        constant_after=("int?:0", "None", "3"), clip_norm=("float?:above 0", "None", "1.0"),
        autocast=("dtype?", "None"),
        clip_value=("float?:above 0", "None", "0.5"), evaluations=("per_axis", "0", "3", "(1, 2)"),
        checkpoint_seconds=("float:from 0", "0", "2.5"),
    ),
    "BrainSetup": row(
        "train_brain.BrainSetup", steps=SIZE, batch_size=SIZE, learning_rate=("float:above 0", "1e-3"),
        perceive=("bool", "False"), remember=("bool", "True"), seed=("int", "-1"),
    ),
    "ScanpathSetup": row(
        "train_scanpaths.ScanpathSetup", config=("instance:OATConfig", "pointing.OAT.tiny"), steps=SIZE,
        batch_size=SIZE,
        learning_rate=("float:above 0", "1e-3"), samples=SIZE, seed=("int", "-1"),
    ),
    "ImageSetup": row(
        "train_image.ImageSetup", recipe=("*instance:ImageRecipe", "image_recipe.RECIPES['light']"),
        image_size=("*sizes:1 2", "(32, 48)"), batch_size=("*int:1", "4"), steps=("*int:1", "9"), accumulate=SIZE,
        evaluations=("int:0", "0"), seed=("int", "-1"), autocast=("dtype?", "None"),
    ),
    "ImageRecipe": row(
        "image_recipe.ImageRecipe", epochs=("float:above 0", "3", "0.5"), batch_size=SIZE, smoothing=RATE,
        learning_rate=("float:above 0", "1e-3"), final_factor=("float:from 0", "0"),
        warmup_epochs=("float:from 0", "0"),
        weight_decay=("float:from 0", "0"), optimizer=("choice:adamw|sgd", "'sgd'"),
        ema=("float?:share", "None", "0.9"),
        clip_norm=("float?:above 0", "None"), layer_decay=("float:above 0", "0.75"),
    ),
    "TrialOptions": row(
        "trial.TrialOptions", to=("*text", "'gla'"), minutes=("float:from 0", "0", "0.1"), window_size=SIZE,
        distill_minutes=("float:from 0", "0"), sinks=("int:0", "0"), context=SIZE,
    ),
    "learning_rate_factor": row(
        "train.learning_rate_factor", step=("*int:0", "0", "4"), steps=("*int:0", "9"),
        warmup_steps=("*int:0", "0", "3"),
        final_factor=("float:from 0", "0.1"),
    ),
    "polynomial_average": row(
        "train.polynomial_average", model=("*instance:Linear", "torch.nn.Linear(2, 3)"),
        decay=("float:from 0", "0", "8.0")
    ),
}  # fmt: skip
BUILT = {
    **dict.fromkeys(
        ("DaViT", "L2ViT", "MaxViT", "NAT", "RAVLT", "TransNeXt", "HaloNet", "DiT", "AxialTransformer"), ""
    ),
    **dict.fromkeys(("DeconstructedForCausalLM", "PLDRForCausalLM", "TransNormerForCausalLM"), "Parameter config in"),
}
MODELS: dict[str, Row] = {
    **{
        name: row(
            f"models.{name}", says=(said or name,), weight=0.2,
            config=(f"*instance:{name.removesuffix('ForCausalLM')}Config", f"models.{name}.tiny"),
        )
        for name, said in BUILT.items()
    },
    "Frequencies": row(
        "nn.Frequencies", values=("*numbers", "(1.0, 0.5)"), gain=("float:above 0", "2.0"),
        score_gain=("float:above 0", "1"),
    ),
    "StateCache": row(
        "nn.StateCache", _states, batch_size=("*int:0", "2"), sizes=("*anything", "{'state': (3, 4)}"),
        device=("device?",), dtype=("dtype?",),
    ),
    "TaylorFeatures": row(
        "ops.TaylorFeatures", degree=("*int:0", "2"), diagonal=("bool", "True"), scale=("float?", "0.5")
    ),
    "NoMixing": row("nn.NoMixing", _large, hidden_size=("*int:1", "12"), bias=("bool", "True")),
    "load_balance_loss": row(
        "nn.load_balance_loss", model=("*instance:Sequential|Linear", "torch.nn.Sequential(torch.nn.Linear(2, 2))")
    ),
    "OATConfig": row(
        "pointing.OATConfig", _oat, look=("sizes:1", "(5,)", "(6, 4)"), pooling_levels=("int:0", "0", "4"),
        hidden_size=("int:1", "96", "512"), look_size=("int?:1", "None", "40"), num_heads=("int:1", "2", "4"),
        intermediate_size=SIZE, num_encoder_layers=SIZE, num_decoder_layers=SIZE, num_pointers=SIZE, dropout=RATE,
        max_places=("int:2", "5"), sigma=("float:above 0", "1.5"), place_norm=("float:above 0", "2"),
        marks_target=("bool", "False"), max_length=SIZE,
    ),
    "ScorerConfig": row(
        "scorers.ScorerConfig", _scorer, num_entities=("*int:1", "7"), num_relations=("*int:1", "3"), dim=SIZE,
        relation_dim=("int?:1", "None", "4"), num_times=("int:0", "0", "3"), time_dim=("int?:1", "None"),
        inverse=("bool", "False"), nonnegative=("bool", "False"),
    ),
    "TensorBrainConfig": row(
        "tensor_brain.TensorBrainConfig", _brain, num_entities=("*int:1", "7"), num_predicates=("*int:1", "3"),
        unary=("anything", "{'class': 3}", "{}"), num_times=("int:0", "0", "3"), input_size=SIZE, dim=SIZE,
        hidden_size=SIZE,
        beta=("float:above 0", "1", "4.0"), centred=("bool", "False"),
        offset=("choice?:sums|learned", "None", "'sums'"),
        context=("choice?:recurrent|feedforward", "None"), feedback=("choice?:attention|sample", "None"),
        keep=("float", "0"), write=("float", "1.0"),
    ),
    "PointerNetwork": row(
        "pointing.PointerNetwork", _pointer, hidden_size=("int:1", "4"), input_size=("int:1", "2", "3"),
        init_range=("float:above 0", "0.1"), end_starts_encoder=("bool", "False"), device=("device?",),
        dtype=("dtype?",),
        logit_clip=("float?:above 0", "None", "10"),
    ),
    "Seq2SeqBaselines": row(
        "pointing.Seq2SeqBaselines", _large, hidden_size=("int:1", "4"), max_points=("int:1", "5"),
        attention=("bool", "True"),
        input_size=("int:1", "2"), init_range=("float:above 0", "0.1"), device=("device?",), dtype=("dtype?",),
    ),
    "gaussian_positions": row(
        "places.gaussian_positions", _codes, n=("*int:1", "5"), sigma=("float:above 0", "2"),
        width=("int:1", "9"), norm=("float:above 0", "1.5"), seed=("int", "3"),
    ),
    **{
        name: row(
            f"{module}.{name}", weight=0.5, **CAUSAL
        )
        for module, name in (("gla", "GLAConfig"), ("transnormer", "TransNormerConfig"), ("pldr", "PLDRConfig"),
                             ("stack", "StackConfig"), ("deconstructed", "DeconstructedConfig"))
    },
}  # fmt: skip


SIZES: dict[str, Row] = {**VISION, **SETUPS, **MODELS}
