"""Who made these vectors: the identity that stores, indexes and queries carry, and the refusal of those that differ."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

from bindsearch.errors import MismatchError


@dataclass(frozen=True)
class Identity:
    """The space, towers and presets that vectors were made with.

    Attributes:
        space_id: the anchor tower and head, as in "bindsearch-mini@4f2c91ab03de"; None: not known (a bare vector).
        tower_ids: modality -> tower, as in "audio:91ab07d2c1f4@bindsearch-mini@4f2c91ab03de".
        preset_ids: modality -> preprocessing, as in "default:1a2b3c4d".
        tokenizer_id: of the text modality, or None.
    """

    space_id: str | None
    tower_ids: Mapping[str, str] = field(default_factory=dict)
    preset_ids: Mapping[str, str] = field(default_factory=dict)
    tokenizer_id: str | None = None

    def __post_init__(self) -> None:
        """Refuse a tower that was bound to another space.

        Raises:
            MismatchError: naming the tower and the space.
        """
        for modality, tower in self.tower_ids.items():
            bound = bound_space(tower)
            if self.space_id is not None and bound and bound != self.space_id:
                raise MismatchError(
                    f"the {modality} tower {tower} was bound to the space {bound}, not to {self.space_id}. "
                    "Load the space whose tower it is."
                )

    def difference(self, other: Identity) -> tuple[str, str, str] | None:
        """Give what first differs from another identity and the value of each, as in ("audio tower", ours, theirs).

        What one of the two does not know is no difference; None: they go together.
        """
        pairs = [("space", self.space_id, other.space_id)]
        for modality in sorted(set(self.tower_ids) & set(other.tower_ids)):
            pairs.append((f"{modality} tower", self.tower_ids[modality], other.tower_ids[modality]))
        for modality in sorted(set(self.preset_ids) & set(other.preset_ids)):
            pairs.append((f"{modality} preset", self.preset_ids[modality], other.preset_ids[modality]))
        pairs.append(("tokenizer", self.tokenizer_id, other.tokenizer_id))
        for what, ours, theirs in pairs:
            if ours is not None and theirs is not None and ours != theirs:
                return what, ours, theirs
        return None

    def merged(self, other: Identity, here: str, there: str, fix: str) -> Identity:
        """Give the identity of two things that go together.

        Args:
            other: the identity of `there`.
            here: what carries this identity, for messages: "indexes/demo".
            there: what carries the other: "the query".
            fix: what to type next.

        Raises:
            MismatchError: another space; or another tower, preset or tokenizer of a modality that both have.
        """
        differs = self.difference(other)
        if differs is not None:
            what, ours, theirs = differs
            raise MismatchError(f"{here}: built with {what} {ours}, {there} comes from {theirs}. {fix}")
        return Identity(
            space_id=self.space_id if self.space_id is not None else other.space_id,
            tower_ids={**self.tower_ids, **other.tower_ids},
            preset_ids={**self.preset_ids, **other.preset_ids},
            tokenizer_id=self.tokenizer_id if self.tokenizer_id is not None else other.tokenizer_id,
        )

    def within(self, modalities: Container[str]) -> Identity:
        """Give the identity of what is of some modalities alone: embeddings name the towers of all they tried."""
        towers = {name: tower for name, tower in self.tower_ids.items() if name in modalities}
        presets = {name: preset for name, preset in self.preset_ids.items() if name in modalities}
        return replace(self, tower_ids=towers, preset_ids=presets)


def bound_space(tower_id: str) -> str:
    """Give the id of the space that a tower was bound to; empty where the tower's id names none."""
    return tower_id.partition("@")[2]
