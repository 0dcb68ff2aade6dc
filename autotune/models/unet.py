"""A diffusion U-Net's stack of convolutions (Ho et al., "Denoising Diffusion", arXiv:2006.11239, appendix B), without
attention."""

from __future__ import annotations

from tinygrad import Tensor, nn

WIDTHS = (128, 256, 256)
STEP = 500.0
"""The noise level that the one input is denoised from: its value changes no shape."""


class ResBlock:
    """Group norm, SiLU and a 3x3 convolution twice, the step's embedding added between them, and a shortcut."""

    def __init__(self, cin: int, cout: int, embedding: int) -> None:
        self.norm1, self.conv1 = nn.GroupNorm(32, cin), nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, cout), nn.Conv2d(cout, cout, 3, padding=1)
        self.step = nn.Linear(embedding, cout)
        self.shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else None

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        y = self.conv1(self.norm1(x).silu()) + self.step(step.silu())[:, :, None, None]
        y = self.conv2(self.norm2(y).silu())
        return y + (self.shortcut(x) if self.shortcut is not None else x)


class UNet:
    """For (batch, 4, 32, 32) latents: two blocks down and up at each of three widths, joined by concatenation."""

    def __init__(self) -> None:
        embedding = 4 * WIDTHS[0]
        self.step = [nn.Linear(WIDTHS[0], embedding), nn.Linear(embedding, embedding)]
        self.first = nn.Conv2d(4, WIDTHS[0], 3, padding=1)
        self.down: list[tuple[ResBlock, ResBlock, nn.Conv2d]] = []
        kept, cin = [WIDTHS[0]], WIDTHS[0]
        for width in WIDTHS:
            blocks = (ResBlock(cin, width, embedding), ResBlock(width, width, embedding))
            self.down.append((*blocks, nn.Conv2d(width, width, 3, 2, 1)))
            kept += [width, width]
            cin = width
        self.middle = ResBlock(cin, cin, embedding)
        self.up: list[tuple[nn.Conv2d, ResBlock, ResBlock]] = []
        for width in reversed(WIDTHS):
            sampled = nn.Conv2d(cin, cin, 3, padding=1)
            first = ResBlock(cin + kept.pop(), width, embedding)
            self.up.append((sampled, first, ResBlock(width + kept.pop(), width, embedding)))
            cin = width
        self.norm, self.last = nn.GroupNorm(32, cin), nn.Conv2d(cin, 4, 3, padding=1)

    def __call__(self, x: Tensor) -> Tensor:
        half = WIDTHS[0] // 2
        frequencies = (Tensor.arange(half) * (-9.21 / half)).exp().to(x.device)
        angles = frequencies * STEP
        step = self.step[1](self.step[0](angles.cos().cat(angles.sin()).reshape(1, -1)).silu())
        x = self.first(x)
        kept = []
        for first, second, halve in self.down:
            kept += [x := first(x, step), x := second(x, step)]
            x = halve(x)
        x = self.middle(x, step)
        for sampled, first, second in self.up:
            x = sampled(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
            x = first(x.cat(kept.pop(), dim=1), step)
            x = second(x.cat(kept.pop(), dim=1), step)
        return self.last(self.norm(x).silu())
