"""OAT: which objects of a scene somebody looks at who searches one of them, in which order, and when it is found.

    scenes = Scenes(looks, cells, target, grid)
    model.loss(scenes, fixations).backward()          object numbers [B, M], -1 behind the end
    paths, lengths = model.generate(scenes, samples=100)

An encoder reads the objects and, once more, the target; a decoder reads what was looked at so far and points at the
encoder's tokens. Pointing at the target's own token ends the path: nothing is learned for the end.
Sizes: B scenes, N objects, M fixations, D hidden size, S samples. Source: arXiv:2407.13335 and its official code.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.data.object_scenes import Scenes
from attensor.models.folder import configured, load_model, read_config, save_model
from attensor.models.pointing.looks import Crops
from attensor.models.pointing.oat_checks import check_inputs
from attensor.models.pointing.oat_decoding import Decoding
from attensor.models.pointing.places import gaussian_positions
from attensor.nn._shapes import check_range
from attensor.ops import pointer_scores
from attensor.ops._checks import checked, checked_fields

__all__ = ["OAT", "OATConfig"]


@checked_fields
@dataclass(frozen=True)
class OATConfig:
    """Sizes of OAT.

    Attributes:
        look: height and width of the objects' crops in pixels, or how many numbers describe an object.
        pooling_levels: crops are pooled to 1, 4, 16, .. cells, so many kinds of them up to 4, for crops of any size; 0
            for the published pooling by 3.
        hidden_size: D.
        look_size: of the D channels of a token, how many say what it looks like; half of them if None.
        num_heads: of the encoder and decoder.
        intermediate_size: channels inside the MLPs.
        num_encoder_layers, num_decoder_layers: layers.
        num_pointers: heads of the readout, each with all channels.
        dropout: of every branch.
        max_places: rows or columns that have a code; a scene may have no more of either.
        sigma: places at which two codes are no longer alike, see `gaussian_positions`.
        place_norm: length of the codes.
        marks_target: say of each token whether it is the target; without it the end cannot be told.
        fixed_objects: N, for the authors' ablation (`CA_version` 0) whose output is a linear map to N objects, the end
            and the padding: it takes scenes of N objects alone. None points, at any number of objects.
        max_length: fixations that are generated at most.
    Raises:
        ValueError: a number out of its range, or heads that do not divide the channels.
    """

    look: tuple[int, ...] = (150, 93)
    pooling_levels: int = 0
    hidden_size: int = 512
    look_size: int | None = None
    num_heads: int = 4
    intermediate_size: int = 512
    num_encoder_layers: int = 4
    num_decoder_layers: int = 4
    num_pointers: int = 2
    dropout: float = 0.1
    max_places: int = 14
    sigma: float = 2.0
    place_norm: float = 8.764
    marks_target: bool = True
    fixed_objects: int | None = None
    max_length: int = 30

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        name = type(self).__name__
        check_range(name, 1, look=self.look, hidden_size=self.hidden_size, num_heads=self.num_heads)
        check_range(name, 1, intermediate_size=self.intermediate_size, num_encoder_layers=self.num_encoder_layers)
        check_range(name, 1, num_decoder_layers=self.num_decoder_layers, num_pointers=self.num_pointers)
        check_range(name, 1, max_length=self.max_length, fixed_objects=self.fixed_objects)
        check_range(name, 2, max_places=self.max_places)
        check_range(name, 0, 1, dropout=self.dropout)
        check_range(name, 0, 5, pooling_levels=self.pooling_levels)
        check_range(name, above=0, sigma=self.sigma, place_norm=self.place_norm)
        check_range(name, 1, self.hidden_size, look_size=self.look_size)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"{name}: hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; change one."
            )
        if len(self.look) > 2 or self.max_places > self.place_width:
            raise ValueError(
                f"{name}: look must be one number or two, and max_places at most a third of the channels that say "
                f"where, {self.place_width}, got look {self.look} and max_places {self.max_places}."
            )

    @property
    def appearance(self) -> int:
        """Channels of a token that say what it looks like."""
        return self.hidden_size // 2 if self.look_size is None else self.look_size

    @property
    def place_width(self) -> int:
        """Numbers of the code of a row, a column or the flag; of the last code some may be cut off."""
        return -(-(self.hidden_size - self.appearance) // 3)


class Encoded(NamedTuple):
    """What the decoder needs of a scene.

    Attributes:
        tokens: [B, N + 1, D], what fixating each object is to the decoder; last the beginning.
        memory: [B, N + 1, D], the encoder's tokens; last the target's.
        hidden: [B, N + 1], true where there is no object; None if there are N everywhere.
    """

    tokens: Tensor
    memory: Tensor
    hidden: Tensor | None


class OAT(nn.Module):
    """Object-level attention transformer: O(D (N^2 + M N + M^2)) a scene, O(D (N + M)) a generated fixation.

    Names of parameters are the official ones. What those files have besides is named in `oat_from_official`.

    Args:
        config: sizes.
    """

    tiny: ClassVar[OATConfig] = OATConfig(
        look=(5,), hidden_size=24, look_size=9, num_heads=2, intermediate_size=20, num_encoder_layers=2,
        num_decoder_layers=2, max_places=5, place_norm=2.0, max_length=6,
    )  # fmt: skip
    presets: ClassVar[dict[str, OATConfig]] = {
        "oat_amazon": OATConfig(),  # 84 book covers, 6 x 14
        "oat_shelves": OATConfig(max_places=11, place_norm=5.895),  # 27 yogurts, 3 x 9; 22 wines, 2 x 11
        "oat_generated": OATConfig(
            look=(8,), hidden_size=64, look_size=40, intermediate_size=128, num_encoder_layers=2, num_decoder_layers=1,
            max_places=8, sigma=1.0, place_norm=6.0, max_length=20,
        ),
        # words of a page: 32 lines of 32 words
        "oat_reading": OATConfig(
            look=(6,), hidden_size=128, look_size=32, intermediate_size=256, num_encoder_layers=2,
            num_decoder_layers=2, max_places=32, sigma=1.0, place_norm=6.0, max_length=400,
        ),
    }  # fmt: skip
    places: Tensor

    @checked
    def __init__(self, config: OATConfig) -> None:
        super().__init__()
        self.config = config
        options: dict[str, Any] = {"dropout": config.dropout, "batch_first": True}
        sizes = (config.hidden_size, config.num_heads, config.intermediate_size)
        self.transformer_encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*sizes, **options), config.num_encoder_layers, enable_nested_tensor=False
        )
        self.transformer_decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(*sizes, **options), config.num_decoder_layers
        )
        self.cnn_embedding = (
            Crops(config.look, config.appearance, config.pooling_levels)
            if len(config.look) == 2
            else nn.Linear(config.look[0], config.appearance)
        )
        if config.fixed_objects is None:
            self.cross_attentions = nn.ModuleList(Pointer(config.hidden_size) for _ in range(config.num_pointers))
            self.readout = nn.Linear(config.num_pointers, 1)
        else:
            self.generator = nn.Linear(config.hidden_size, config.fixed_objects + 2)
        self.dropout = nn.Dropout(config.dropout)
        codes = gaussian_positions(config.max_places, config.sigma, width=config.place_width, norm=config.place_norm)
        self.register_buffer("places", codes.to(torch.get_default_dtype()))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    @checked
    def forward(self, scenes: Scenes, fixations: Tensor) -> Tensor:
        """Scores of what is looked at next, after each beginning of a path.

        Args:
            scenes: B of them.
            fixations: [B, M] int64, objects in the order in which they were looked at; -1 behind the end.
        Returns:
            [B, M + 1, N + 2]: of each object, of the end, and of the padding, which never is a target but takes part
            in the softmax, as published. -inf where there is no object.
        Raises:
            ShapeError: sizes disagree, descriptions of another size. ValueError: an object that is not there, or a
                grid that has more rows or columns than codes.
        """
        check_inputs(type(self).__name__, self.config, scenes, fixations)
        encoded = self.encode(scenes)
        steps = self.steps(encoded, fixations)
        causal = torch.ones(steps.shape[1], steps.shape[1], dtype=torch.bool, device=steps.device).triu(1)
        found = self.transformer_decoder(
            steps, encoded.memory, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=encoded.hidden
        )
        return self.points(found, *self.pointers(encoded))

    def loss(self, scenes: Scenes, fixations: Tensor) -> Tensor:
        """Mean cross-entropy of the next object, or of the end, in nats; arguments as of `forward`."""
        logits = self(scenes, fixations)
        return F.cross_entropy(logits.flatten(0, 1), self.labels(scenes, fixations).flatten())

    @staticmethod
    def labels(scenes: Scenes, fixations: Tensor) -> Tensor:
        """What should follow each beginning: [B, M + 1] object numbers, N for the end, -100 behind it."""
        number = scenes.looks.shape[1]
        closed = F.pad(fixations, (0, 1), value=-1)
        ends = (closed < 0).int().cumsum(1) == 1
        return closed.masked_fill(closed < 0, -100).masked_fill(ends, number)

    def encode(self, scenes: Scenes) -> Encoded:
        """Read scenes: each crop once."""
        looks = self.cnn_embedding(scenes.looks)
        rows = torch.arange(len(scenes), device=looks.device)
        is_target = F.one_hot(scenes.target, looks.shape[1])
        fixated = torch.cat([looks, self.placed(scenes.cells, is_target)], -1)
        objects = torch.cat([looks, self.placed(scenes.cells, torch.zeros_like(is_target))], -1)
        source = torch.cat([objects, fixated[rows, scenes.target][:, None]], 1)
        first = self.cnn_embedding(scenes.looks.new_ones(1, 1, *scenes.looks.shape[2:])).expand(len(rows), 1, -1)
        centre = scenes.grid.div(2, rounding_mode="floor")[:, None]
        first = torch.cat([first, self.placed(centre, torch.zeros_like(centre[..., 0]))], -1)
        hidden = None if scenes.present is None else F.pad(~scenes.present, (0, 1))
        memory = self.transformer_encoder(source, src_key_padding_mask=hidden)
        return Encoded(torch.cat([fixated, first], 1), memory, hidden)

    def placed(self, cells: Tensor, flags: Tensor) -> Tensor:
        """Codes of row, column and whether it is the target, each of the same table: [.., D - look size].

        Args:
            cells: [.., 2] int64, row and column.
            flags: [..] int64, 1 for the target.
        """
        marks = flags[..., None] * self.config.marks_target
        codes = self.places[torch.cat([cells, marks], -1)].flatten(-2)
        return codes[..., : self.config.hidden_size - self.config.appearance]

    def steps(self, encoded: Encoded, fixations: Tensor) -> Tensor:
        """The decoder's tokens, [B, M + 1, D]: the beginning, then what was fixated, each with its place in time."""
        number = encoded.tokens.shape[1] - 1
        which = F.pad(fixations, (1, 0), value=number).clamp(min=0)
        tokens = encoded.tokens.gather(1, which[..., None].expand(-1, -1, encoded.tokens.shape[-1]))
        placed: Tensor = self.dropout(tokens + self.times(which.shape[1]).to(tokens))
        return placed

    def times(self, count: int) -> Tensor:
        """Sines of the steps [count, D], at least float32."""
        width, device = self.config.hidden_size, self.places.device
        dtype = torch.promote_types(self.places.dtype, torch.float32)
        speeds = torch.exp(torch.arange(0, width, 2, device=device, dtype=dtype) * (-math.log(10_000) / width))
        turned = torch.arange(count, device=device)[:, None] * speeds
        return torch.stack([turned.sin(), turned.cos()], -1).flatten(1)[:, :width]

    def pointers(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """All heads of the readout in one form, z keys^T + offsets: keys [B, N + 1, D], offsets [B, N + 1].

        The heads are added before the softmax, so that their weights can be multiplied before anything is decoded.
        Keys of fixed outputs are the rows of a matrix, the same for every scene.
        """
        if self.config.fixed_objects is not None:
            batch, width = encoded.memory.shape[0], self.config.hidden_size
            return self.generator.weight[:-1].expand(batch, -1, width), self.generator.bias[:-1].expand(batch, -1)
        weights = self.readout.weight[0] / math.sqrt(self.config.hidden_size)
        keys, offsets = torch.zeros_like(encoded.memory), self.readout.bias.expand(encoded.memory.shape[:2])
        for pointer, weight in zip(self.pointer_heads, weights, strict=True):
            read = weight * pointer.encode_fc(encoded.memory)
            keys = keys + read @ pointer.decode_fc.weight
            offsets = offsets + read @ pointer.decode_fc.bias
        if encoded.hidden is not None:
            offsets = offsets.masked_fill(encoded.hidden, -torch.inf)
        return keys, offsets

    @property
    def pointer_heads(self) -> list[Pointer]:
        """Heads of the readout."""
        return list(self.cross_attentions)  # type: ignore[arg-type]

    def points(self, found: Tensor, keys: Tensor, offsets: Tensor) -> Tensor:
        """Scores [B, M, N + 2] of decoder outputs [B, M, D]."""
        scores = pointer_scores(found, keys, kind="bilinear") + offsets[:, None]
        if self.config.fixed_objects is None:
            padding = self.readout.bias.expand(*scores.shape[:2], 1)
        else:
            padding = F.linear(found, self.generator.weight[-1:], self.generator.bias[-1:])
        return torch.cat([scores, padding], -1)

    @torch.no_grad()
    @checked
    def generate(
        self,
        scenes: Scenes,
        *,
        samples: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Paths over each scene; the first step cannot be the end.

        Args:
            scenes: B of them.
            samples: S paths of each.
            temperature: 1 draws from the model, 0 takes the most likely object each time.
            generator: of the choices; PyTorch's own if None.
        Returns:
            paths [B, S, L] int64, -1 behind the end, L the longest; lengths [B, S].
        Raises:
            As `forward`; ValueError: a number out of its range.
        Cost: crops, encoder and keys once a scene; each step reads what is kept of the earlier ones.
        """
        check_range("OAT.generate", 1, samples=samples)
        check_range("OAT.generate", 0, temperature=temperature)
        check_inputs(type(self).__name__, self.config, scenes, scenes.target[:, None])
        was_training = self.training
        self.eval()
        try:
            return Decoding(self, self.encode(scenes), samples).run(temperature, generator)
        finally:
            self.train(was_training)

    @property
    def dummy_inputs(self) -> dict[str, Any]:
        """Two scenes of four objects, and a path over each; as many objects as fixed outputs need."""
        number = self.config.fixed_objects or 4
        size = (*self.config.look, 3) if len(self.config.look) == 2 else self.config.look
        waves = torch.arange(2 * number * math.prod(size), dtype=self.places.dtype).sin()
        place = torch.arange(number)
        cells = torch.stack([place // 2, place % 2], -1).expand(2, -1, -1)
        grid = torch.tensor([[-(-number // 2), 2]]).expand(2, -1)
        scenes = Scenes(waves.view(2, number, *size), cells, torch.tensor([0, number - 1]), grid)
        return {"scenes": scenes, "fixations": torch.tensor([[number - 1, 0], [0, -1]])}

    @checked
    def save(self, folder: str | Path) -> None:
        """Write model.safetensors and, last, config.json."""
        save_model(Path(folder), self, asdict(self.config))

    @classmethod
    @checked
    def load(cls, folder: str | Path) -> Self:
        """A model that `save` wrote, in evaluation mode.

        Raises:
            FileNotFoundError: there is none. ValueError: a folder of another model, or damaged.
        """
        folder = Path(folder)
        told = read_config(folder, [cls.__name__], writer="attensor train scanpaths")
        given = {name: value for name, value in told.items() if name != "model"}
        config = configured(lambda: OATConfig(**{**given, "look": tuple(given["look"])}), folder, cls.__name__)
        return load_model(lambda: cls(config), folder)


class Pointer(nn.Module):
    """Maps of one head of the readout, of all channels to all."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.decode_fc = nn.Linear(hidden_size, hidden_size)
        self.encode_fc = nn.Linear(hidden_size, hidden_size)
