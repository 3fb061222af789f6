"""LLaVA's connector: features projected into token embeddings, spliced into the text in place of the image tag.

    ids        [BOS] what is [-200] this ?          the tag's id is in no vocabulary
    embeddings  e    e    e  [f1 f2 ...] e    e     features of the next image in its place, ignored by the loss

Source: golden llava_splice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from bindsearch.errors import InputError, MismatchError, ShapeError, UnknownNameError
from bindsearch.llm.base import Connection, Connector

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from bindsearch.llm.lora import LoraTerms

IMAGE_ID = -200
IGNORED = -100
IMAGE_TAG = "<image>"
PROJECTORS = ("identity", "linear", "mlp2x_gelu")
_MLP = re.compile(r"mlp([1-9]\d*)x_gelu")


@dataclass(frozen=True)
class Spliced:
    """Text with features in it, ready for a Llama.

    Attributes:
        embeddings: (B, L, D), zeros where padded.
        mask: (B, L) of the dtype that came in, or bool; None where none came in.
        labels: (B, L) int64, IGNORED at features and padding; None where none came in.
        positions: (B, L) int64, from 0 a row, 0 at padding; None where none came in.
    """

    embeddings: torch.Tensor
    mask: torch.Tensor | None
    labels: torch.Tensor | None
    positions: torch.Tensor | None


@dataclass(frozen=True)
class SpliceRules:
    """How rows are made equally long.

    Attributes:
        padding_side: "right", or "left" for generation.
        max_length: rows are cut to this after the splice, so that the end of an answer may go; None: never.
    """

    padding_side: str = "right"
    max_length: int | None = None

    def __post_init__(self) -> None:
        """Refuse other sides.

        Raises:
            InputError: naming the side.
        """
        if self.padding_side not in ("right", "left"):
            raise InputError(f"padding_side: expected right or left, got {self.padding_side!r}.")


def build_projector(kind: str, dim: int, width: int) -> nn.Module:
    """Make a projector with random weights.

    Args:
        kind: "identity", "linear", or "mlpNx_gelu": N linears with GELU between them.
        dim: of the features.
        width: of the Llama.

    Raises:
        UnknownNameError: another kind.
        MismatchError: an identity between different sizes.
    """
    if kind == "identity":
        if dim != width:
            raise MismatchError(f"projector identity: features of {dim} cannot go into a Llama of width {width}.")
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(dim, width)
    found = _MLP.fullmatch(kind)
    if found is None:
        raise UnknownNameError("projector", kind, PROJECTORS, "mlpNx_gelu is known for any N.")
    layers: list[nn.Module] = [nn.Linear(dim, width)]
    for _ in range(int(found[1]) - 1):
        layers += [nn.GELU(), nn.Linear(width, width)]
    return nn.Sequential(*layers)


def tokenize(prompt: str, encode: Callable[[str], Sequence[int]], bos: int | None = 1) -> list[int]:
    """Turn a prompt with image tags into ids, the tags to IMAGE_ID.

    Args:
        prompt: text with IMAGE_TAG where an image goes.
        encode: text to ids; may put a BOS before each piece, of which the first stays.
        bos: its id; None: `encode` puts none.
    """
    ids: list[int] = []
    for number, piece in enumerate(prompt.split(IMAGE_TAG)):
        part = list(encode(piece))
        if number:
            ids.append(IMAGE_ID)
        if number and bos is not None and part[:1] == [bos]:
            part = part[1:]
        ids += part
    return ids


def splice(
    ids: torch.Tensor,
    features: Sequence[torch.Tensor],
    embed: Callable[[torch.Tensor], torch.Tensor],
    mask: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    rules: SpliceRules | None = None,
) -> Spliced:
    """Put features in place of image tags.

    Args:
        ids: (B, L) int64 with IMAGE_ID where an image goes. Not modified.
        features: (m, D) each, one a tag in the order of the rows; a row without a tag takes one as well, and shows
            nothing of it, so that batches of texts and pictures need no special case. Not modified.
        embed: ids (n,) to embeddings (n, D).
        mask: (B, L), what is no padding; None: all.
        labels: (B, L) int64; None: none are wanted.
        positions: given where positions are wanted; its values are made anew.
        rules: padding side and greatest length.

    Raises:
        InputError: another number of features than the rows take.
        ShapeError: features of another width than the embeddings, or masks and labels of another shape than the ids.
    """
    rules = rules or SpliceRules()
    kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    told = torch.full_like(ids, IGNORED) if labels is None else labels
    if kept.shape != ids.shape or told.shape != ids.shape:
        raise ShapeError(f"splice: ids {tuple(ids.shape)}, mask {tuple(kept.shape)}, labels {tuple(told.shape)}.")
    _check_count(ids, kept, len(features))
    rows, names, at = [], [], 0
    for row, here, own in zip(ids, kept, told, strict=True):
        row, own = row[here], own[here]
        tags = (row == IMAGE_ID).nonzero()[:, 0].tolist()
        taken = list(features[at : at + max(1, len(tags))])
        at += len(taken)
        parts, labelled, start = [], [], 0
        for tag, feature in zip([*tags, len(row)], [*taken[: len(tags)], None], strict=True):
            parts.append(embed(row[start:tag]))
            labelled.append(own[start:tag])
            if feature is not None:
                parts.append(_fitting(feature, parts[0]))
                labelled.append(own.new_full((len(feature),), IGNORED))
            start = tag + 1
        rows.append(torch.cat(parts)[: rules.max_length])
        names.append(torch.cat(labelled)[: rules.max_length])
    return _padded(rows, names, (mask, labels, positions), rules.padding_side)


def _check_count(ids: torch.Tensor, kept: torch.Tensor, given: int) -> None:
    wanted = int(((ids == IMAGE_ID) & kept).sum(dim=1).clamp(min=1).sum())
    if given != wanted:
        raise InputError(
            f"splice: the rows take {wanted} images (one a tag, and one a row without a tag), got {given}. "
            f"Write {IMAGE_TAG} once for each image."
        )


def _fitting(feature: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Give features in the dtype and on the device of the embeddings, refusing another width."""
    if feature.ndim != 2 or feature.shape[1] != like.shape[1]:
        raise ShapeError(f"splice: expected features of shape (any, {like.shape[1]}), got {tuple(feature.shape)}.")
    return feature.to(like)


def _padded(
    rows: Sequence[torch.Tensor],
    names: Sequence[torch.Tensor],
    wanted: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    side: str,
) -> Spliced:
    """Make rows equally long; `wanted` are the mask, labels and positions that came in."""
    mask, labels, positions = wanted
    longest = max(len(row) for row in rows)
    embeddings = rows[0].new_zeros((len(rows), longest, rows[0].shape[1]))
    kept = torch.zeros((len(rows), longest), dtype=torch.bool, device=embeddings.device)
    told = torch.full((len(rows), longest), IGNORED, dtype=torch.int64, device=embeddings.device)
    places = torch.zeros((len(rows), longest), dtype=torch.int64, device=embeddings.device)
    for number, (row, own) in enumerate(zip(rows, names, strict=True)):
        here = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        embeddings[number, here] = row
        kept[number, here] = True
        told[number, here] = own.to(told.device)
        places[number, here] = torch.arange(len(row), device=places.device)
    return Spliced(
        embeddings,
        None if mask is None else kept.to(mask.dtype),
        None if labels is None else told,
        None if positions is None else places,
    )


class LlavaConnector(Connector):
    """A projector, and the learned end of a picture's row where there is one.

    Args:
        kind: of the projector; see `build_projector`.
        dim: of the features: of a joint space, one vector an item; of a vision tower, one a patch.
        width: of the Llama.
        newline: whether there is an `image_newline`.
    """

    name = "llava"

    def __init__(self, kind: str, dim: int, width: int, newline: bool = False) -> None:
        super().__init__()
        self.kind, self.dim, self.width = kind, dim, width
        self.mm_projector = build_projector(kind, dim, width)
        self.image_newline = nn.Parameter(torch.zeros(width)) if newline else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project features (B, L, d) to token embeddings (B, L, D). Not modified."""
        out: torch.Tensor = self.mm_projector(features)
        return out

    def connect(self, llama: LlamaForCausalLM, lora: LoraTerms | None = None) -> LlavaConnection:  # noqa: ARG002
        """Compare sizes; there are no hooks, the tokens go in with the text."""
        if llama.config.hidden_size != self.width:
            raise MismatchError(
                f"This projector was made for a Llama of width {self.width}; this one has {llama.config.hidden_size}. "
                "Bring the Llama it was made with."
            )
        return LlavaConnection(self, llama)


class LlavaConnection(Connection):
    """A projector and the Llama whose token embeddings it makes."""

    def __init__(self, connector: LlavaConnector, llama: LlamaForCausalLM) -> None:
        super().__init__(llama)
        self.connector = connector

    def prepare(self, embeddings: torch.Tensor) -> list[torch.Tensor]:
        """Project (B, d), one token each, or (B, L, d): B times (L, D)."""
        wide = embeddings[:, None, :] if embeddings.ndim == 2 else embeddings
        if wide.ndim != 3 or wide.shape[2] != self.connector.dim or not wide.numel():
            dim = self.connector.dim
            raise ShapeError(f"llava: expected features (B, {dim}) or (B, L, {dim}), got {tuple(embeddings.shape)}.")
        if not bool(torch.isfinite(wide).all()):
            raise InputError("llava: the features hold NaN or infinite values. Embed that item again.")
        weight = next(self.connector.parameters(), wide)
        return list(self.connector(wide.to(weight.device, weight.dtype)))

    def inputs(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Splice what was injected into ids (B, L) with one image tag a row.

        Raises:
            InputError: nothing is injected, or a row without a tag, which would not read it.
        """
        features = self._features(ids, mask.bool())
        made = splice(ids, features, self.llama.get_input_embeddings(), mask, rules=SpliceRules("left"))
        if made.mask is None:
            raise InputError("llava: the splice gave no mask.")
        return {"inputs_embeds": made.embeddings, "attention_mask": made.mask}

    def training_inputs(self, ids: torch.Tensor, labels: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Splice what was injected into rows padded on the right, and IGNORED into their labels; see the base class.

        Raises:
            InputError: as of `inputs`.
        """
        features = self._features(ids, torch.ones_like(ids, dtype=torch.bool))
        made = splice(ids, features, self.llama.get_input_embeddings(), labels=labels)
        if made.labels is None:
            raise InputError("llava: the splice gave no labels.")
        return {"inputs_embeds": made.embeddings}, made.labels

    def _features(self, ids: torch.Tensor, kept: torch.Tensor) -> list[torch.Tensor]:
        if self.state is None:
            raise InputError("llava: nothing is injected. Open a request first: with connection.inject(embeddings):")
        if not bool(((ids == IMAGE_ID) & kept).any(dim=1).all()):
            raise InputError(f"llava: a prompt without {IMAGE_TAG} would not read what is injected. Write it there.")
        features = list(self.state)
        return features * len(ids) if len(features) == 1 and len(ids) > 1 else features
