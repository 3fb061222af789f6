"""Texts: a literal or a .txt file in, (1, 77) token ids out."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bindsearch.config import content_hash
from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities import bpe
from bindsearch.modalities.base import Modality, ModalityConfig, check_choice, check_media, check_positive, no_span
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Media, Span

if TYPE_CHECKING:
    import numpy as np

LOG = logging.getLogger(__name__)

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class TextConfig(ModalityConfig):
    """Numbers and switches of a text.

    Attributes:
        context_length: tokens that the tower sees, both marks included.
        vocabulary: "clip-bpe".
        id_map: kept CLIP ids of a reduced vocabulary, see `bpe`; None keeps all.
        special_tokens: "neutralise" takes a literal "<|endoftext|>" as plain text; "parse" makes it the end token, so
            that all that follows is ignored.
        keep_end: keep the end token when a text is cut. False is the reference before 2025-11-21: every text that was
            too long got one and the same vector.
        allow_empty: take a text without any token.
        limit_bytes: size of a file above which it is not read.
    """

    context_length: int = 77
    vocabulary: str = "clip-bpe"
    id_map: tuple[int, ...] | None = None
    special_tokens: str = "neutralise"
    keep_end: bool = True
    allow_empty: bool = False
    limit_bytes: int = 2**20

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        check_positive(self, "limit_bytes")
        check_choice(self, "vocabulary", ("clip-bpe",))
        check_choice(self, "special_tokens", ("neutralise", "parse"))
        if self.context_length < 3:
            raise InputError(f"TextConfig.context_length: expected 3 or more, got {self.context_length}.")

    @property
    def tokenizer_id(self) -> str:
        """Hash of merges, map and rules: texts of two ids cannot be compared."""
        return content_hash([bpe.MERGES_SHA256, self.id_map, self.special_tokens, self.keep_end])

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return bpe.VOCABULARY_SIZE if self.id_map is None else len(self.id_map)


class TextModality(Modality[TextConfig]):
    """Texts, as CLIP's byte-level BPE reads them."""

    name = "text"
    suffixes = (".txt",)
    unit = "character"
    tower = "text"
    config_class = TextConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "reference": {"special_tokens": "parse", "allow_empty": True},
        "reference-2024": {"special_tokens": "parse", "allow_empty": True, "keep_end": False},
    }

    def source_of(self, thing: Any, name: str | None = None) -> Source:
        """Take a plain string as the text itself; a Path, URI in a Source, or bytes as a file that holds it."""
        return Source.literal(thing, name) if isinstance(thing, str) else Source.of(thing, name)

    def _decode(self, source: Source, config: TextConfig, span: Span | None) -> Media:
        no_span(source, self.name, span)
        if source.kind == "value":
            raise InputError(f"{source.name}: a text is a string or a file, not an array.")
        text = (
            source.value if source.kind == "text" else decode_text(source.read_bytes(config.limit_bytes), source.name)
        )
        if not config.allow_empty and _is_empty(text, config):
            raise DecodeError(source.name, "holds no text", "read" if source.kind != "text" else "decode")
        notes: dict[str, Any] = {}
        room = config.context_length - 2
        if len(text.encode("utf-8", "surrogatepass")) > room:
            found = len(list(islice(_iter_ids(text, config), room + 1)))
            if found > room:
                notes["truncated"] = f"over {room} tokens; the rest is not seen"
                LOG.warning("%s: the text has more than %d tokens; the rest is cut off.", source.name, room)
        return Media(self.name, text, self.unit, name=source.name, notes=notes)

    def preprocess(self, media: Media, config: TextConfig) -> np.ndarray:
        """Encode a str to (1, context_length) int64: start, tokens, end, zeros."""
        import numpy as np

        check_media(media, self.name, dtype="str")
        tokenizer = bpe.load_tokenizer(config.id_map)
        length = config.context_length
        ids = [tokenizer.start, *islice(_iter_ids(media.array, config), length), tokenizer.end]
        if len(ids) > length:
            ids = [*ids[: length - 1], tokenizer.end] if config.keep_end else ids[:length]
        row = np.full((1, length), tokenizer.pad, np.int64)
        row[0, : len(ids)] = ids
        return row

    def example(self, seed: int) -> Media:
        """Make a short description."""
        import numpy as np

        rng = np.random.default_rng([seed, 2])
        subject = rng.choice(["dog", "bird", "car", "wave", "fox", "bell"])
        place = rng.choice(["on the beach", "in the snow", "at night", "near a café", "under 2 trees"])
        return Media(self.name, f"A {subject} {place}.", self.unit, name=f"<example {seed}>")


def _is_empty(text: str, config: TextConfig) -> bool:
    """Say whether a text has no token, such as one of blanks of any script, or "&nbsp;"."""
    bare = text.strip("\ufeff \t\r\n\f\v")
    if bare and bare[0].isascii() and bare[0].isalnum():
        return False
    return not bare or next(iter(_iter_ids(bare, config)), None) is None


def _iter_ids(text: str, config: TextConfig) -> Any:
    tokenizer = bpe.load_tokenizer(config.id_map)
    # no token has more than 32 symbols, so that what lies this far in cannot reach the last token that is seen
    return tokenizer.iter_ids(text, config.special_tokens == "parse", longest_word=64 * config.context_length)


def decode_text(data: bytes, name: str) -> str:
    """Decode a text file: by its byte order mark, else as UTF-8.

    Args:
        data: the whole file.
        name: for messages.

    Raises:
        DecodeError: neither, or with NUL characters, which no text has.
    """
    encoding = _encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = data[error.start : error.start + 1].hex()
        what = f"is not {encoding} (byte 0x{byte} at {error.start}); convert it: iconv -f latin1 -t utf-8 FILE"
        raise DecodeError(name, what) from error
    if "\x00" in text:
        raise DecodeError(name, f"no text: a NUL character at {text.index(chr(0))}; binary, or UTF-16 without its mark")
    return text


def decode_start(data: bytes) -> str:
    """Decode the first bytes of a text file, whatever they hold: by its byte order mark, else as UTF-8.

    What cannot be decoded becomes U+FFFD; a character that the end cuts is left away.
    """
    decoder = codecs.getincrementaldecoder(_encoding_of(data))("replace")
    return str(decoder.decode(data))


def _encoding_of(data: bytes) -> str:
    return next((coding for bom, coding in _BOMS if data.startswith(bom)), "utf-8")


def read_text(path: str | Path) -> str:
    """Read a text file by the rules of `decode_text` with the default size limit.

    Raises:
        DecodeError: unreadable or no text.
    """
    source = Source.of(Path(path))
    return decode_text(source.read_bytes(TextConfig().limit_bytes), source.name)


MODALITIES.register("text", TextModality())
