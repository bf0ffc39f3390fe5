"""Local concentration: two convolutions per channel that gather what linear attention has spread over the map."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn._shapes import check_hidden_states

__all__ = ["LocalConcentration"]


class LocalConcentration(nn.Module):
    """`conv2(batch_norm(gelu(conv1(x))))` with convolutions of one channel each: the LCM of L2ViT.

    The residual and the norm before it belong to the block around it: `x + lcm(norm(x))`, after the attention's own
    residual. Cost O(cells * kernel_size^2 * C). In training the batch norm takes its statistics over the batch, so that
    images of a batch see each other; in evaluation they do not.
    Keys of the state_dict: `conv1.*`, `bn.*`, `conv2.*`.

    Args:
        hidden_size: channels C.
        kernel_size: side of the convolutions in cells, odd.
        device, dtype: of the parameters.
    Raises:
        ValueError: an even kernel, which would shift the map.
    Source: arXiv:2501.16182, section 3 (local concentration module).
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        kernel_size: int = 7,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"LocalConcentration: kernel_size must be odd, got {kernel_size}.")
        self.hidden_size = hidden_size
        depthwise = partial(nn.Conv2d, hidden_size, hidden_size, kernel_size, padding="same", groups=hidden_size)
        self.conv1 = depthwise(device=device, dtype=dtype)
        self.bn = nn.BatchNorm2d(hidden_size, device=device, dtype=dtype)
        self.conv2 = depthwise(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the convolutions anew and forget the statistics."""
        for module in (self.conv1, self.bn, self.conv2):
            module.reset_parameters()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Gather what is near each cell.

        Args:
            hidden_states: [B, height, width, C].
        Returns:
            [B, height, width, C].
        Raises:
            ShapeError: another rank or width.
        """
        check_hidden_states(self, hidden_states, self.hidden_size, (4,))
        channels_first = hidden_states.movedim(-1, 1)  # a view in the layout that convolutions like best on a CPU
        out: Tensor = self.conv2(self.bn(F.gelu(self.conv1(channels_first)))).movedim(1, -1)
        return out
