"""Two stated tastes in emoji, computed from pixels: the truth that heads of the zoo were fitted to.

    taste      = 1 + 9 (0.5 saturation + 0.25 centring + 0.25 flatness)     of `zoo:emoji-aesthetic`
    preference = 1 + 9 (0.5 coolness + 0.25 contrast + 0.25 fullness)   of `zoo:emoji-preference`

Each term is in [0, 1], so both are in [1, 10].

    saturation   mean of (max - min) / max over the channels, over the figure's pixels
    centring     1 - |centroid of the figure - centre of the image| / (a quarter of the side), at
                 least 0
    flatness     share of neighbouring pixels within the figure that differ by less than 0.04 in
                 every channel: even surfaces, as in the style "twemoji", against shading, as in
                 "fluent"
    coolness     1/2 + mean of (B - R) over the figure's pixels, within [0, 1]: blue is best and
                 gray middling. Most figures that are rich in colour, which the first taste likes,
                 are warm
    contrast     mean of |Y - Y of the ground| over the figure's pixels, as a share of 0.6, at most
                 1; Y = 0.2126 R + 0.7152 G + 0.0722 B
    fullness     share of the image that is figure, as a share of a half, at most 1

The figure is everything that differs from the ground, and the ground is the median of the image's
border. An image without a figure gets 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# difference from the ground, in the channel that differs most, from which a pixel belongs to the
# figure
FIGURE = 0.12
EVEN = 0.04  # difference below which neighbouring pixels are one even surface
TASTE_WEIGHTS = (0.5, 0.25, 0.25)
PREFERENCE_WEIGHTS = (0.5, 0.25, 0.25)
LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709
ENOUGH_CONTRAST = 0.6  # difference from the ground's luma that is as good as any more
ENOUGH_FIGURE = 0.5  # share of the image that is as good as any more


def taste(images: Tensor) -> Tensor:
    """Return the first taste's rating: (B, 3, H, W) in [0, 1] -> (B,) in [1, 10]."""
    figure = _figure(images)
    terms = (_saturation(images, figure), _centring(figure), _flatness(images, figure))
    return _rating(terms, TASTE_WEIGHTS, figure)


def preference(images: Tensor) -> Tensor:
    """Return the other taste's rating: (B, 3, H, W) in [0, 1] -> (B,) in [1, 10].

    It is partly in conflict with the first taste.
    """
    figure = _figure(images)
    terms = (_coolness(images, figure), _contrast(images, figure), _fullness(figure))
    return _rating(terms, PREFERENCE_WEIGHTS, figure)


def _rating(terms: Sequence[Tensor], weights: Sequence[float], figure: Tensor) -> Tensor:
    total = torch.zeros_like(terms[0])
    for weight, term in zip(weights, terms, strict=True):
        total = total + weight * term

    return 1 + 9 * torch.where(figure.any((1, 2)), total, 0.0)


def _ground(images: Tensor) -> Tensor:
    """Return the ground's colour (B, 3, 1, 1): the median of the border."""
    border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], -1)
    return border.median(-1).values[..., None, None]


def _figure(images: Tensor) -> Tensor:
    """Return the mask of the figure, (B, H, W) bool."""
    return (images - _ground(images)).abs().amax(1) > FIGURE


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `values` (B, H, W) over the `mask`; 0 where it is empty."""
    return (values * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)


def _saturation(images: Tensor, figure: Tensor) -> Tensor:
    highest = images.amax(1)
    lowest = images.amin(1)
    return _masked_mean((highest - lowest) / highest.clamp(min=1e-6), figure)


def _centring(figure: Tensor) -> Tensor:
    height, width = figure.shape[1:]
    y = torch.arange(height, device=figure.device) - (height - 1) / 2
    x = torch.arange(width, device=figure.device) - (width - 1) / 2
    distance = torch.hypot(
        _masked_mean(y[:, None].expand(height, width), figure),
        _masked_mean(x.expand(height, width), figure),
    )
    return (1 - distance / (min(height, width) / 4)).clamp(min=0)


def _flatness(images: Tensor, figure: Tensor) -> Tensor:
    even = torch.zeros_like(images[:, 0, 0, 0])
    pairs = torch.zeros_like(images[:, 0, 0, 0])

    for axis in (1, 2):
        size = figure.shape[axis] - 1
        inside = figure.narrow(axis, 0, size) & figure.narrow(axis, 1, size)
        difference = images.diff(dim=axis + 1).abs().amax(1)
        even = even + ((difference < EVEN) & inside).sum((1, 2))
        pairs = pairs + inside.sum((1, 2))

    return even / pairs.clamp(min=1)


def _coolness(images: Tensor, figure: Tensor) -> Tensor:
    return (0.5 + _masked_mean(images[:, 2] - images[:, 0], figure)).clamp(0, 1)


def _contrast(images: Tensor, figure: Tensor) -> Tensor:
    luma = ((images - _ground(images)) * images.new_tensor(LUMA)[:, None, None]).sum(1)
    return (_masked_mean(luma.abs(), figure) / ENOUGH_CONTRAST).clamp(max=1)


def _fullness(figure: Tensor) -> Tensor:
    return (figure.float().mean((1, 2)) / ENOUGH_FIGURE).clamp(max=1)
