r"""Power-law graph attention as a layer: a matrix G between queries and keys, made of the queries themselves.

    A_0 = norm(sum_n q_n q_n^T)    A = net(A_0)    A_LM, A_P, G = power_law_operator(A, ..)
    o_i = softmax_j(q_i^T G k_j / sqrt(D)) v_j

Training drives G to be the same for every input; a cache keeps it and leaves the net out.
Sizes: B batch, T tokens, H heads, D head width.
Source: arXiv:2502.13502, section 2, and its code; arXiv:2410.16703.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.nn import _statistics as statistics
from attensor.nn._power_law_net import EPSILON, ResidualUnit, normed
from attensor.nn._shapes import check_hidden_states, check_range, head_dim
from attensor.nn.cache import Cache, StateCache, TokenCache
from attensor.nn.joint_cache import JointCache
from attensor.nn.mixer import Heads, SequenceMixer
from attensor.nn.rotary import rotary_embedding, token_positions
from attensor.ops import power_law_operator, softmax_attention
from attensor.ops._checks import is_readable
from attensor.ops._precision import full_precision, working_dtype

__all__ = ["DeductiveOutputs", "PowerLawGraphAttention"]

_MOST_LAYERS = 2**12  # each is made one by one
_WEIGHTS = ("operator_weight", "exponent", "mix")
_BIASES = ("operator_bias", "mix_bias")


class DeductiveOutputs(NamedTuple):
    """What a layer concludes about its input, of each head: [B, H, D, D].

    Attributes:
        tensor: A, of the residual net.
        metric: A_LM, positive entries.
        potential: A_P, their learned powers.
        operator: G, what stands between queries and keys.
    """

    tensor: Tensor
    metric: Tensor
    potential: Tensor
    operator: Tensor


class PowerLawGraphAttention(SequenceMixer):
    """Causal softmax attention with scores q^T G k, G one D x D matrix a head and block of tokens.

    The paper makes G of all tokens of a training block, so that a token sees those after it: `operator="sequence"`.
    Here, by default, G of a block of `block_size` tokens is made of the tokens in the blocks before it.

    A cache keeps keys, values and G: decoding costs D multiplications a channel more than softmax attention, and a
    net once a block. `keeps = "tensor"` keeps A instead, from which G is made at every step (the paper's cache of keys
    and values alone). Beam search reorders G with its rows.

    Args:
        hidden_size: channels C of input and output.
        num_heads: heads H, each of D = C / H channels, an even number.
        operator: `"previous-blocks"`; `"sequence"`, of all tokens of the call that begins a sequence, and not causal
            there; `"fixed"`, a buffer that is not learned.
        custom: the fixed matrix, the same for all heads: `"identity"` (softmax attention), `"random"` (normal numbers),
            or one for each head [H, D, D]. Not None makes `operator` "fixed"; identity if None.
        units: residual units R of the net, below 4096.
        depth: gated layers S of each, below 4096.
        net_size: channels inside of these.
        block_size: tokens that share an operator.
        interleaved: rotary positions turn neighbouring channels (v51), not the halves of a head (v52).
        device, dtype: of the parameters.

    Attributes:
        keeps: what a cache holds, `"operator"` (G) or `"tensor"` (A).
        keeps_first: with `operator="sequence"`, a cache keeps what the first row concluded, for all rows: the others
            begin with their own G and go on with that (`cache_first_G` of the authors' port).
        given: [H, D, D] or [B, H, D, D], taken in the place of G where it is not None.
        records: keep `last_outputs`, the deductive outputs of the last forward, for `dag_loss`.

    Raises:
        ValueError: heads do not divide the channels, an odd head width, a number out of range.
        ShapeError: a custom matrix of another size.
    Cost: as softmax attention, and for each block (`sequence`: once) 6 H D^2 R S net_size + 4 H D^3 operations.
    Source: arXiv:2502.13502, section 2.
    """

    uses_positions = True
    reads_in_any_order = True
    shown = ("hidden_size", "num_heads", "operator", "units", "depth", "net_size", "block_size")
    fixed_operator: Tensor
    keeps: Literal["operator", "tensor"] = "operator"
    keeps_first: bool = False
    given: Tensor | None = None
    records: bool = False
    last_outputs: DeductiveOutputs | None = None

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        operator: Literal["previous-blocks", "sequence", "fixed"] = "previous-blocks",
        custom: Literal["identity", "random"] | Tensor | None = None,
        units: int = 8,
        depth: int = 2,
        net_size: int = 170,
        block_size: int = 64,
        interleaved: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_range(self, 1, hidden_size=hidden_size, num_heads=num_heads)
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.head_dim = head_dim(self, hidden_size, num_heads)
        if self.head_dim % 2:
            raise ValueError(
                f"PowerLawGraphAttention: rotary positions need an even head width, got hidden_size {hidden_size} / "
                f"num_heads {num_heads} = {self.head_dim}; change one of them."
            )
        check_range(self, 1, _MOST_LAYERS, units=units, depth=depth)
        check_range(self, 1, net_size=net_size, block_size=block_size)
        self.units, self.depth, self.net_size, self.block_size = units, depth, net_size, block_size
        self.operator = operator if custom is None else "fixed"
        self.interleaved = interleaved
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(hidden_size, hidden_size, **made) for _ in range(4)
        )
        self._custom: str | Tensor | None = custom
        if self.operator == "fixed":
            self.register_buffer("fixed_operator", self._matrix(custom, **made))
        else:
            self._add_net(**made)

    def project(self, hidden_states: Tensor, positions: Tensor | None = None) -> Heads:
        """[B, T, C] to queries, keys and values [B, T, H, D]; the first two turned by their positions."""
        q, k, v = (
            torch.unflatten(proj(hidden_states), -1, (self.num_heads, self.head_dim))
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if positions is not None:
            q, k = (rotary_embedding(x, positions, interleaved=self.interleaved) for x in (q, k))
        return Heads(q, k, v)

    def attend(self, heads: Heads, *, cache: Any = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Softmax attention with q G over the tokens and what the cache holds, padding left out: [B, T, H, D]."""
        with full_precision(heads.q):
            q = self._operated(heads.q, cache, cu_seqlens)
        k, v, real = heads.k, heads.v, None
        if cache is not None:
            tokens: Any = cache.parts["tokens"] if isinstance(cache, JointCache) else cache
            k, v = tokens.append(keys=k, values=v).values()
            real = tokens.real(tokens.length - k.shape[1], tokens.length)
        mask = None if real is None else real[:, None, None]
        out: Tensor = softmax_attention(
            q, k.to(q.dtype), v.to(q.dtype), is_causal=True, attn_mask=mask, cu_seqlens=cu_seqlens
        )
        return out.to(heads.q.dtype)

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Output projection: [B, T, H, D] to [B, T, C]."""
        mixed: Tensor = self.o_proj(out.flatten(-2))
        return mixed

    def deductive_outputs(self, hidden_states: Tensor) -> DeductiveOutputs:
        """A, A_LM, A_P and G of whole inputs: what the paper's layer would attend with.

        Args:
            hidden_states: [B, T, C], without padding.
        Returns:
            Each [B, H, D, D], in at least float32.
        Raises:
            ValueError: the operator is fixed, so that there is no net.
        """
        if self.operator == "fixed":
            raise ValueError(
                "PowerLawGraphAttention.deductive_outputs: the operator is fixed, it does not depend on an input; see "
                "`fixed_operator`."
            )
        check_hidden_states(self, hidden_states, self.hidden_size, self.ranks)
        positions = token_positions(hidden_states.shape[1], device=hidden_states.device)
        q = self.project(hidden_states, positions).q
        with full_precision(q):
            return self._outputs(self._tensor(statistics.gram(q.to(working_dtype(q)))))

    @torch.no_grad()
    def fix(self, operator: Tensor) -> None:
        """Replace the net by a matrix for each head, which is not learned.

        Args:
            operator: [H, D, D], for instance `deductive_outputs(..).operator[0]` of a prompt.
        Raises:
            ShapeError: another size.
        """
        like = self.q_proj.weight
        matrix = self._matrix(operator, device=like.device, dtype=like.dtype)
        if self.operator != "fixed":
            del self.norm, self.net
            for name in (*_WEIGHTS, *_BIASES):
                delattr(self, name)
        self.operator, self._custom, self.last_outputs = "fixed", operator.detach().clone(), None
        self.register_buffer("fixed_operator", matrix)

    def reset_own_parameters(self) -> None:
        """Draw what is in no sub-module anew: matrices normal by Xavier's rule for three axes, biases 0."""
        with torch.no_grad():
            if self.operator == "fixed":
                own = self.fixed_operator
                own.copy_(self._matrix(self._custom, device=own.device, dtype=own.dtype))
                return
            for name in _WEIGHTS:
                nn.init.xavier_normal_(getattr(self, name))
            for name in _BIASES:
                nn.init.zeros_(getattr(self, name))

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """With the blocks, the tokens that fill them, and the net's sizes."""
        blocks = -(-torch.Size(space).numel() // self.block_size)
        more = {"N": blocks, "Q": blocks * self.block_size, "R": self.units, "S": self.depth, "F": self.net_size}
        return {**super().cost_sizes(space), **more}

    def _add_net(self, **made: Any) -> None:
        square = (self.num_heads, self.head_dim, self.head_dim)
        self.norm = nn.LayerNorm(self.head_dim, eps=EPSILON, **made)
        self.net = nn.ModuleList(
            ResidualUnit(self.head_dim, self.net_size, self.depth, **made) for _ in range(self.units)
        )
        for name in (*_WEIGHTS, *_BIASES):
            self.register_parameter(name, nn.Parameter(torch.empty(square, **made)))
        self.reset_own_parameters()

    def _matrix(self, custom: str | Tensor | None, **made: Any) -> Tensor:
        """The fixed operator: [H, D, D]."""
        sizes = (self.num_heads, self.head_dim, self.head_dim)
        if isinstance(custom, Tensor):
            if custom.shape != sizes:
                raise ShapeError(
                    f"PowerLawGraphAttention: custom must be [H, D, D] = {list(sizes)}, got {list(custom.shape)}; "
                    "it has one matrix for each head."
                )
            return custom.detach().to(**made, copy=True)
        if custom == "random":
            return torch.randn(sizes, **made)
        return torch.eye(self.head_dim, **made).repeat(self.num_heads, 1, 1)

    def _tensor(self, grams: Tensor) -> Tensor:
        """A of sums q q^T [..., H, D, D]."""
        a = normed(self.norm, grams)
        for unit in self.net:
            a = unit(a)
        return a

    def _outputs(self, a: Tensor) -> DeductiveOutputs:
        names = ("operator_weight", "operator_bias", "exponent", "mix", "mix_bias")
        found = DeductiveOutputs(a, *power_law_operator(a, *(getattr(self, name).to(a.dtype) for name in names)))
        if self.records:
            self.last_outputs = found
        return found

    def _fresh(self, grams: Tensor) -> Tensor:
        """What a cache keeps, of sums q q^T."""
        a = self._tensor(grams)
        return a if self.keeps == "tensor" else self._outputs(a).operator

    def _finished(self, kept: Tensor) -> Tensor:
        """G of what a cache keeps."""
        return self._outputs(kept).operator if self.keeps == "tensor" else kept

    def _operated(self, q: Tensor, cache: Any, cu_seqlens: Tensor | None) -> Tensor:
        """q G, [B, T, H, D]; the statistics of the cache are brought up to date.

        In q's dtype, but for float16, whose range it leaves, in float32.
        """
        wide = q.to(working_dtype(q))
        dtype = wide.dtype if q.dtype == torch.float16 else q.dtype
        if self.operator == "fixed" or self.given is not None:
            operator = self.fixed_operator if self.given is None else self.given
            if isinstance(cache, JointCache):
                cache.parts["statistics"].update(q.shape[1])  # type: ignore[attr-defined]
            return _times(wide, operator.to(wide.dtype)).to(dtype)
        if cu_seqlens is not None:
            return self._packed(wide, cu_seqlens).to(dtype)
        if cache is None:
            return self._whole(wide).to(dtype)
        if not q.shape[1]:
            return q.to(dtype)
        state = cache.parts["statistics"]
        continued = self._continued_sequence if self.operator == "sequence" else self._continued_blocks
        turned, held = continued(wide, state)
        state.update(q.shape[1], **held)
        return turned.to(dtype)

    def _whole(self, q: Tensor) -> Tensor:
        if self.operator == "sequence":
            return _times(q, self._finished(self._fresh(statistics.gram(q))))
        blocks = statistics.blocks_of_rows(q, self.block_size)
        return blocks.times(self._finished(self._fresh(blocks.before()[0])))

    def _packed(self, q: Tensor, cu_seqlens: Tensor) -> Tensor:
        if self.operator == "sequence":
            place, bounds = torch.arange(q.shape[1], device=q.device), cu_seqlens.long()
            is_own = (place >= bounds[:-1, None]) & (place < bounds[1:, None])  # [N, T]
            apart = torch.where(is_own[..., None, None], q, 0)
            return _times(apart, self._finished(self._fresh(statistics.gram(apart)))).sum(0, keepdim=True)
        blocks = statistics.blocks_of_packed(q, self.block_size, cu_seqlens)
        return blocks.times(self._finished(self._fresh(blocks.before()[0])))

    def _continued_sequence(self, q: Tensor, state: StateCache) -> tuple[Tensor, dict[str, Tensor]]:
        """q G with the operator of the tokens that began each row, and what the cache then holds."""
        offset, kept = state.length, state.states["operator"].to(q.dtype)
        if state.real(0, 1) is None:
            kept = kept if offset else self._fresh(statistics.gram(q))
        else:
            real, begins = state.real(offset, offset + q.shape[1]), state.first >= offset
            shown = q if real is None else torch.where(real[..., None, None], q, 0)
            if not is_readable(begins) or begins.any():
                kept = torch.where(begins[:, None, None, None], self._fresh(statistics.gram(shown)), kept)
        held = kept[:1].expand_as(kept) if self.keeps_first else kept
        return _times(q, self._finished(kept)), {"operator": held}

    def _continued_blocks(self, q: Tensor, state: StateCache) -> tuple[Tensor, dict[str, Tensor]]:
        """q G with the operators of blocks, and what the cache then holds: that of the last block, and all sums."""
        past, held = (state.states[name].to(q.dtype) for name in ("gram", "operator"))
        if state.real(0, 1) is not None:
            return self._continued_padded(q, state, past, held)
        lead = state.length % self.block_size
        if lead and lead + q.shape[1] <= self.block_size:
            return _times(q, self._finished(held)), {"operator": held, "gram": past + statistics.gram(q)}
        blocks = statistics.blocks_of_rows(q, self.block_size, lead)
        before, total = blocks.before(past)
        kept = torch.cat([held[:, None], self._fresh(before[:, 1:])], 1) if lead else self._fresh(before)
        return blocks.times(self._finished(kept)), {"operator": kept[:, -1], "gram": total}

    def _continued_padded(
        self, q: Tensor, state: StateCache, past: Tensor, held: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same where rows begin at places of their own."""
        offset, first = state.length, state.first
        real = state.real(offset, offset + q.shape[1])
        real = q.new_ones(q.shape[:2], dtype=torch.bool) if real is None else real
        blocks = statistics.blocks_of_padded(q, self.block_size, offset, first, real)
        before, total = blocks.before(past)
        begins = (offset - first).clamp(min=0) % self.block_size == 0  # a block, with its first token here
        if before.shape[1] == 1 and is_readable(begins) and not begins.any():
            kept = held[:, None]
        else:
            fresh = self._fresh(before)
            own = torch.where(begins[:, None, None, None], fresh[:, 0], held)
            kept = torch.cat([own[:, None], fresh[:, 1:]], 1)
        rows = torch.arange(q.shape[0], device=q.device)
        return blocks.times(self._finished(kept)), {"operator": kept[rows, blocks.last()], "gram": total}

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> Cache:
        square = (self.num_heads, self.head_dim, self.head_dim)
        tokens = TokenCache(
            batch_size,
            dict.fromkeys(("keys", "values"), square[:2]),
            max_length=max_length,
            device=device,
            dtype=dtype,
        )
        if self.operator == "fixed":
            return tokens
        names = ("operator",) if self.operator == "sequence" else ("operator", "gram")
        held = StateCache(batch_size, dict.fromkeys(names, square), device=device, dtype=dtype)
        return JointCache(tokens=tokens, statistics=held)


def _times(q: Tensor, operator: Tensor) -> Tensor:
    """q [B, T, H, D] times [H, D, D] or [B, H, D, D]."""
    return torch.matmul(q.transpose(1, 2), operator).transpose(1, 2)
