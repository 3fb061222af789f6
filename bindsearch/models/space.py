"""A space: encoders that share one joint space, loaded one by one when first used. Loads torch only to encode."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, MismatchError, ShapeError, UnknownNameError
from bindsearch.models.clips import aligned, distinct
from bindsearch.models.manifest import SpaceCard
from bindsearch.models.switches import Switches
from bindsearch.models.transfer import to_device
from bindsearch.registry import MODALITIES
from bindsearch.sources import each_source

if TYPE_CHECKING:
    import torch

    from bindsearch.modalities.base import Modality, ModalityConfig
    from bindsearch.models.text_cache import TextCache
    from bindsearch.query import Embedding
    from bindsearch.types import FloatArray

TowerLoader = Callable[[str, "torch.dtype", "torch.device"], "torch.nn.Module"]
"""(tower, dtype, device) -> module in eval mode: (N, ...) -> (N, d), with a `check(x)` that raises ShapeError."""

FAST = "fast"
"""The dtype that means bfloat16 where the device has instructions for it, else float32."""
DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float64": "float64",
    FAST: FAST,
}
CLIPS_AT_ONCE = 64
"""Clips of one forward pass of a tower that does not say it itself."""
_OTHER_SPACES = "--space imagebind-huge reads all seven; --space tiny, of random weights, shows how a file is read."
_PROJECTED = "Features need the projector that `bindsearch train` made for them: --space RUN/space."
_HOW_SHAPES_READ = "B items, S clips each; a still has S = 1"


def find_device(name: str) -> torch.device:
    """Give a device by its name; "auto" is the first GPU that torch can use, else the CPU.

    Raises:
        InputError: no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}. Use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r}: torch {torch.__version__} sees no GPU here. Use --device cpu.")
    return device


def find_dtype(name: str, device: torch.device) -> str:
    """Give torch's name of a number type of DTYPES; "fast" is what the device is quick at.

    Raises:
        UnknownNameError: no such type.
    """
    from bindsearch.models.packed import fast_dtype

    if name not in DTYPES:
        raise UnknownNameError("dtype", name, ("auto", *DTYPES))
    return str(fast_dtype(device)).removeprefix("torch.") if name == FAST else DTYPES[name]


class Towers:
    """The loaded towers of a space; loading is done once a tower, whatever the number of threads that ask."""

    def __init__(
        self,
        load: TowerLoader,
        names: Sequence[str],
        dtype: str,
        device: str,
        switches: Switches | None = None,
        stored: str = "",
    ) -> None:
        """Load nothing yet.

        Args:
            load: see `TowerLoader`.
            names: of the towers.
            dtype: a value of DTYPES.
            device: "auto", "cpu", "cuda", "cuda:1".
            switches: how towers are made fast; None takes the defaults.
            stored: number type of the files; float32 ones keep their full precision outside of bfloat16 layers.
        """
        self._stored = stored
        self.asked_dtype, self.device_name = dtype, device
        self.switches = switches or Switches()
        self._load = load
        self._locks = {name: threading.Lock() for name in names}
        self._modules: dict[str, torch.nn.Module] = {}

    def __getitem__(self, name: str) -> torch.nn.Module:
        """Give a tower, loading it when first asked for."""
        with self._locks[name]:
            if name not in self._modules:
                device = self.device
                if device.type == "cuda":
                    import torch

                    torch.backends.cudnn.allow_tf32 = False  # convolutions would else keep 10 bits of float32
                self._modules[name] = self._loaded(name, device)
            return self._modules[name]

    def _loaded(self, name: str, device: torch.device) -> torch.nn.Module:
        """Load a tower and lay it out."""
        import torch

        from bindsearch.models.quick import quicken

        dtype = self.dtype
        mixed = dtype == torch.bfloat16 and self.switches.wide_residual and self._stored == "float32"
        return quicken(self._load(name, torch.float32 if mixed else dtype, device), self.switches, dtype)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the towers that are in memory."""
        return tuple(sorted(self._modules))

    def quicker(self) -> tuple[str, ...]:
        """Name what would make these towers quicker: another device, another number type, or neither."""
        device = ("a GPU",) if self.device.type == "cpu" else ()
        fast = find_dtype(FAST, self.device)
        return device + ((f"--dtype {fast}",) if fast != "float32" and self.dtype_name == "float32" else ())

    @cached_property
    def dtype_name(self) -> str:
        """Name of the numbers that towers compute in; "fast" is resolved by what the device is quick at."""
        return find_dtype(FAST, self.device) if self.asked_dtype == FAST else self.asked_dtype

    @property
    def dtype(self) -> torch.dtype:
        """Numbers that towers compute in."""
        import torch

        return getattr(torch, self.dtype_name)  # type: ignore[no-any-return]

    @cached_property
    def device(self) -> torch.device:
        """Where towers compute: see `find_device`."""
        return find_device(self.device_name)


class Space:
    """Encoders of one joint space; safe to use from several threads.

    Build one with `load_space`. `space.image("bird.jpg") + 0.5 * space.audio("waves.wav")` is a query.

    Args:
        card: what is known of the space without loading it.
        towers: its encoders.
        preset: preprocessing, see `with_preset`.
        location: name or folder that `load_space` takes to get this space again.
        texts: opens the cache that `embed` looks texts up in, when it is first used; None: texts are always computed.
    """

    def __init__(
        self,
        card: SpaceCard,
        towers: Towers,
        preset: str | Mapping[str, str] = "default",
        location: str = "",
        texts: Callable[[], TextCache | None] | None = None,
    ) -> None:
        self.card, self.location = card, location or card.name
        self._texts = texts
        self._towers = towers
        self._presets = _presets(card, preset)
        self._configs: dict[str, ModalityConfig] = {}

    def __repr__(self) -> str:
        """Say which space this is, for a person."""
        return f"<Space {self.space_id}: d = {self.dim}, {', '.join(self.modalities)}>"

    @property
    def name(self) -> str:
        """Name of the space, without its hash."""
        return self.card.name

    @property
    def space_id(self) -> str:
        """Name and hash of the anchor tower and head."""
        return self.card.space_id

    @property
    def dim(self) -> int:
        """Width d of the joint space."""
        return self.card.dim

    @property
    def modalities(self) -> tuple[str, ...]:
        """What can be encoded."""
        return tuple(self.card.towers)

    @property
    def dtype(self) -> str:
        """Numbers that the towers compute in; recorded in artefacts, not part of an id."""
        return self._towers.dtype_name

    @property
    def switches(self) -> Switches:
        """How the towers are made fast."""
        return self._towers.switches

    @property
    def device(self) -> str:
        """Where the towers compute."""
        return str(self._towers.device)

    def quicker(self) -> tuple[str, ...]:
        """Name what would make its towers quicker here, such as ("a GPU", "--dtype bfloat16")."""
        return self._towers.quicker()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the towers that are in memory."""
        return self._towers.loaded

    @property
    def tokenizer_id(self) -> str | None:
        """Id of the text tokenizer, or None for a space without text."""
        return getattr(self.config("text"), "tokenizer_id", None) if "text" in self.card.towers else None

    def tower_id(self, modality: str) -> str:
        """Give the id of a modality's tower, which names the space it was bound to; loads nothing."""
        return self.card.tower_ids[self._tower_name(modality)]

    def preset_id(self, modality: str) -> str:
        """Give the preset's name and the hash of all its numbers; for text the tokenizer's rules are among them."""
        return self.config(modality).id

    def config(self, modality: str) -> ModalityConfig:
        """Give the preprocessing of a modality: its preset with this space's sizes."""
        self._tower_name(modality)
        if modality not in self._configs:
            name = self._presets[modality].partition(":")[0]
            numbers = self.card.preprocess.get(modality, {})
            self._configs[modality] = self.modality(modality).config(name, **numbers)
        return self._configs[modality]

    def modality(self, modality: str) -> Modality[Any]:
        """Give the decoder and preprocessor of a modality."""
        found: Modality[Any] = MODALITIES[modality]
        return found

    def logit_scale(self, modality: str) -> float:
        """Give the multiplier of cosines that training used in its softmax, clamped; 1 where there is none."""
        if self.card.scale_from_tower:
            return float(self._towers[self._tower_name(modality)].logit_scale())  # type: ignore[operator]
        log_scale = self.card.log_scales.get(self._tower_name(modality), 0.0)
        return min(math.exp(log_scale), self.card.scale_limit)

    def with_preset(self, preset: str | Mapping[str, str]) -> Space:
        """Give the same space, sharing its loaded towers, with other preprocessing.

        Args:
            preset: a name for all modalities ("reference"); a modality that lacks it takes "default". Or names a
                modality: a mapping, or "default,depth=sunrgbd". A name may carry its hash ("default:1a2b3c4d"):
                then the resolved numbers must be the same.
        """
        return Space(self.card, self._towers, preset, self.location, self._texts)

    def encode(self, modality: str, x: np.ndarray[Any, Any]) -> FloatArray:
        """Encode items to the joint space.

        Args:
            modality: one of `modalities`.
            x: (B, S, ...): B items of S clips each, as `preprocess` makes them: float32, text int64. Not modified.

        Returns:
            (B, d) float32 unit rows: each clip normalised, the mean over clips normalised again.

        Raises:
            ShapeError: naming the expected and the given shape.
            InputError: an item has no direction: its numbers are not finite, or its clips cancel.
            WeightsError: the tower's weights are missing or damaged.
        """
        raw = self.encode_raw(modality, x)
        lost = ~(np.linalg.norm(raw.astype(np.float64), axis=1) > 0)  # NaN compares false
        if lost.any():
            row = int(np.flatnonzero(lost)[0])
            raise InputError(
                f"{modality}: item {row} of {len(raw)} has no embedding (it begins {raw[row, :3]}). Look for NaN or "
                "infinity in it."
            )
        return _unit(raw)

    def encode_raw(self, modality: str, x: np.ndarray[Any, Any]) -> FloatArray:
        """Encode items, and leave the mean over their unit clips as it is.

        Args:
            modality: as in `encode`.
            x: as in `encode`. Not modified.

        Returns:
            (B, d) float32; a row's norm is at most 1, and tells how much the item's clips agree.

        Raises:
            ShapeError, WeightsError: as in `encode`.
        """
        self._check(modality, x)
        clips = self._unit_clips(modality, x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]))
        mean: FloatArray = clips.reshape(x.shape[0], x.shape[1], self.dim).mean(axis=1, dtype=np.float64)
        return mean.astype(np.float32)

    def embed(self, modality: str, sources: Any) -> FloatArray:
        """Decode, preprocess and encode.

        Args:
            modality: one of `modalities`.
            sources: a list of whatever the modality takes: paths, URIs, bytes, arrays, PIL images; texts are the words.
                A bare path, text, bytes or picture is a list of one.

        Returns:
            (n, d) float32 unit rows, in the order given.

        Raises:
            DecodeError: a source cannot be read.
            MismatchError: a preset asked for with its hash resolves to other numbers here.
        """
        self._check_preset(modality)
        kind, config = self.modality(modality), self.config(modality)
        items = [kind.preprocess(kind.decode(kind.source_of(thing), config), config) for thing in each_source(sources)]
        if not items:
            return np.zeros((0, self.dim), dtype=np.float32)
        if modality == "text" and self._texts is not None and (cache := self._texts()) is not None:
            from bindsearch.models.text_cache import embed_texts

            return embed_texts(cache, items, self.dim, self._embed_clips)
        return self._embed_clips(modality, items)

    def _embed_clips(self, modality: str, items: Sequence[np.ndarray[Any, Any]]) -> FloatArray:
        """Encode items of (S, ...) clips each to (n, d) float32 unit rows."""
        clips = self._unit_clips(modality, np.concatenate(items))
        ends = np.cumsum([len(item) for item in items])
        means = [part.mean(axis=0, dtype=np.float64) for part in np.split(clips, ends[:-1])]
        return _unit(np.stack(means).astype(np.float32))

    def query(self, modality: str, thing: Any) -> Embedding:
        """Embed one thing as a query term."""
        from bindsearch.query import Embedding

        label = thing if isinstance(thing, str) else self.modality(modality).source_of(thing).name
        return Embedding.of(self, modality, self.embed(modality, [thing])[0], label, source=thing)

    def image(self, source: Any) -> Embedding:
        """Embed a picture as a query."""
        return self.query("image", source)

    def text(self, words: str) -> Embedding:
        """Embed words as a query."""
        return self.query("text", words)

    def audio(self, source: Any) -> Embedding:
        """Embed a sound as a query."""
        return self.query("audio", source)

    def video(self, source: Any) -> Embedding:
        """Embed a video as a query."""
        return self.query("video", source)

    def depth(self, source: Any) -> Embedding:
        """Embed a depth map as a query."""
        return self.query("depth", source)

    def thermal(self, source: Any) -> Embedding:
        """Embed a thermal picture as a query."""
        return self.query("thermal", source)

    def imu(self, source: Any) -> Embedding:
        """Embed a motion recording as a query."""
        return self.query("imu", source)

    def _tower_name(self, modality: str) -> str:
        if modality not in self.card.towers:
            hint = _PROJECTED if modality == "features" else _OTHER_SPACES
            raise UnknownNameError(f"modality of {self.name}", modality, self.card.towers, hint)
        return self.card.towers[modality]

    def _check_preset(self, modality: str) -> None:
        """Refuse to read media in another way than was asked for; ids are compared first by whoever has them."""
        here = self.preset_id(modality)
        wanted = self._presets[modality]
        if ":" in wanted and wanted != here:
            raise MismatchError(
                f"{self.space_id}: {modality} preset {wanted} was asked for, here it is {here}. Embed again with this "
                "version, or leave the hash away."
            )

    def _check(self, modality: str, x: np.ndarray[Any, Any]) -> None:
        self._tower_name(modality)
        clip = self.card.clip_shapes[modality]
        if x.ndim != len(clip) + 2 or (x.shape[0] and not x.shape[1]):
            wanted = ", ".join(map(str, ("B", "S", *clip)))
            raise ShapeError(f"{modality}: expected shape ({wanted}), got {x.shape}. {_HOW_SHAPES_READ}.")
        if modality == "video" and x.shape[3] != clip[1]:
            raise ShapeError(
                f"video: expected {clip[1]} frames a clip, got {x.shape[3]} in {x.shape}. {_HOW_SHAPES_READ}."
            )

    def _unit_clips(self, modality: str, clips: np.ndarray[Any, Any]) -> FloatArray:
        """Encode (N, ...) clips to (N, d) float32 unit rows."""
        import torch

        tower = self._towers[self._tower_name(modality)]
        device, dtype = self._towers.device, getattr(tower, "input_dtype", self._towers.dtype)
        back = None
        if self._towers.switches.once:
            first, back = distinct(clips)
            clips = clips if back is None else clips[first]
        rows = np.empty((len(clips), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for chosen in self._batches(tower, clips):
                x = to_device(aligned(clips, chosen), device, dtype)
                if modality == "image":
                    x = x.unsqueeze(2)  # (N, 3, 1, H, W): a picture is a clip of one frame
                unit = torch.nn.functional.normalize(tower(x).double(), dim=-1, eps=1e-12)
                rows[chosen] = unit.float().cpu().numpy()
        return rows if back is None else rows[back]

    def _batches(self, tower: Any, clips: np.ndarray[Any, Any]) -> Iterable[np.ndarray[Any, Any]]:
        """Give the numbers of the clips of each forward pass."""
        if hasattr(tower, "batches"):
            return tower.batches(clips)  # type: ignore[no-any-return]
        order = np.arange(len(clips))
        return (order[start : start + CLIPS_AT_ONCE] for start in range(0, len(clips), CLIPS_AT_ONCE))


def _unit(rows: FloatArray) -> FloatArray:
    """Normalise (n, d) rows; a row of zeros stays one."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    unit: FloatArray = (rows / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


def _presets(card: SpaceCard, preset: str | Mapping[str, str]) -> dict[str, str]:
    """Choose a preset's name for each modality; see `Space.with_preset`.

    Raises:
        UnknownNameError: no modality has a preset of that name.
    """
    if isinstance(preset, str):
        words = [word.strip() for word in preset.split(",")]
        general = words.pop(0) if "=" not in words[0] else "default"
        named = dict(word.split("=", 1) for word in words if "=" in word)
        if len(named) != len(words) or not general:
            raise InputError(f"preset {preset!r}: write NAME, or NAME,modality=NAME,... with each modality once.")
    else:
        named, general = dict(preset), "default"
    for modality, name in named.items():
        if modality not in card.towers and ":" not in name:  # an artefact's ids may speak of more than this space has
            raise UnknownNameError(f"modality of {card.name}", modality, card.towers)
    chosen = {modality: named.get(modality, general) for modality in card.towers}
    if general != "default":
        known = {modality: tuple(MODALITIES[modality].presets) for modality in card.towers if modality not in named}
        name = general.partition(":")[0]
        if known and not any(name in names for names in known.values()):
            raise UnknownNameError("preset", name, {each for names in known.values() for each in names})
        chosen.update({modality: "default" for modality, names in known.items() if name not in names})
    return chosen
