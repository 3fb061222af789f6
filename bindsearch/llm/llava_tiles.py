"""Pictures in several tiles, as LLaVA lays them out: a small view of the whole, and a grid of tiles at full size.

Source: golden llava_splice, cases list_*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from bindsearch.errors import InputError, ShapeError

Size = tuple[int, int]
"""Width and height."""


def best_resolution(original: Size, resolutions: Sequence[Size]) -> Size:
    """Choose the canvas that keeps most of a picture's pixels, and of those the one that wastes least.

    Args:
        original: width and height of the picture in pixels.
        resolutions: canvases to choose from, in order of preference.

    Raises:
        InputError: nothing to choose from, or a picture without pixels.
    """
    if not resolutions or min(original) < 1:
        raise InputError(f"tiles: a picture of {original} px and {len(resolutions)} canvases: nothing to choose.")

    def worth(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / original[0], canvas[1] / original[1])
        kept = min(int(original[0] * scale) * int(original[1] * scale), original[0] * original[1])
        return kept, kept - canvas[0] * canvas[1]

    return max(resolutions, key=worth)


def crop_padding(features: torch.Tensor, original: Size) -> torch.Tensor:
    """Crop the rows or columns that are padding alone.

    Args:
        features: (D, H, W) features of a canvas that the picture was padded into. Not modified.
        original: width and height of the picture in pixels.

    Returns:
        (D, H', W'), a view.
    """
    height, width = int(features.shape[1]), int(features.shape[2])
    if original[0] / original[1] > width / height:  # bars above and below
        bar = (height - int(original[1] * (width / original[0]))) // 2
        return features[:, bar : height - bar, :]
    bar = (width - int(original[0] * (height / original[1]))) // 2
    return features[:, :, bar : width - bar]


def merge_tiles(
    tiles: torch.Tensor,
    merge: str,
    original: Size | None = None,
    resolutions: Sequence[Size] = (),
    tile_px: int = 336,
    newline: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bring the tokens of a picture's tiles into one sequence.

    Args:
        tiles: (tiles, L, D) projected tokens, the view of the whole first; L a square. Not modified.
        merge: "flat" (one tile after another), "spatial" (the whole, then the grid row by row), "spatial_unpad" (and
            without padding, with `newline` at each row's end; a single tile gets one at its end).
        original: width and height of the picture in pixels.
        resolutions: canvases that pictures are padded into, (width, height) in pixels.
        tile_px: side of a tile.
        newline: (D,).

    Returns:
        (tokens, D).

    Raises:
        InputError: an unknown merge, a grid that the tiles do not fill, or `newline` is missing.
        ShapeError: L is no square.
    """
    if merge not in ("flat", "spatial", "spatial_unpad"):
        raise InputError(f"tiles: merge expected flat, spatial or spatial_unpad, got {merge!r}.")
    if merge == "flat":
        return tiles.flatten(0, 1)
    if merge == "spatial_unpad" and newline is None:
        raise InputError("tiles: spatial_unpad needs the learned newline, which the checkpoint names image_newline.")
    if tiles.shape[0] == 1:
        return tiles[0] if newline is None or merge == "spatial" else torch.cat([tiles[0], newline[None].to(tiles)])
    if original is None or not resolutions:
        raise InputError("tiles: several tiles and no canvases: spatial needs pictures cut with image_grid_pinpoints.")
    side = math.isqrt(tiles.shape[1])
    if side * side != tiles.shape[1]:
        raise ShapeError(f"tiles: expected a square number of tokens a tile, got {tiles.shape[1]}.")
    canvas = best_resolution(original, resolutions)
    across, down = canvas[0] // tile_px, canvas[1] // tile_px
    if across * down != tiles.shape[0] - 1:
        raise InputError(f"tiles: a canvas of {canvas} px has {across} x {down} tiles, got {tiles.shape[0] - 1}.")
    grid = tiles[1:].reshape(down, across, side, side, -1)
    if merge == "spatial":
        return torch.cat([tiles[0], grid.transpose(1, 2).flatten(0, 3)])
    picture = grid.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)  # (D, down * side, across * side)
    picture = crop_padding(picture, original)
    if newline is None:
        raise InputError("tiles: spatial_unpad needs the learned newline.")
    ends = newline.to(picture)[:, None, None].expand(-1, picture.shape[1], 1)
    return torch.cat([tiles[0], torch.cat([picture, ends], dim=2).flatten(1, 2).T])
