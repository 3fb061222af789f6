"""CLIP's byte-level BPE: cleaning, splitting, merging, and the reduced vocabulary of a small space.

Vocabulary: ids 0-255 the byte symbols, 256-511 the same at the end of a word, 512-49405 one id a merge in the order of
the merges file, 49406 start, 49407 end.

Reduced vocabulary: a sorted list of kept CLIP ids; a token's id is its place in the list. The list holds the 512
byte symbols, both marks, and with every merged token also the two tokens that it is made of ("closed"). Encoding is
the same algorithm with only the kept merges. Because the kept merges stand in the same order, a word all of whose
CLIP tokens are kept is split exactly as CLIP splits it, and any other word falls apart into kept pieces, at worst
into bytes: no text is out of vocabulary.

Source: golden tokenizer.json; merges file of open_clip (MIT), see clip_bpe_merges.md.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

from bindsearch.config import content_hash
from bindsearch.errors import InputError, WeightsError

MERGES_FILE = "clip_bpe_merges.txt.gz"
MERGES_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
BYTE_IDS = 512
_USED_BYTES = 1 << 20
START_ID, END_ID = 49406, 49407
VOCABULARY_SIZE = 49408
WORD_END = "</w>"
START_TEXT, END_TEXT = "<|startoftext|>", "<|endoftext|>"

# ftfy and HTML unescaping change nothing in such text, so that neither needs to be imported
_PLAIN = re.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*")
_SPECIALS = r"<\|startoftext\|>|<\|endoftext\|>|"
_PLAIN_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clean(text: str) -> str:
    """Repair encodings, unescape HTML twice, shrink white space to single blanks, lower the case.

    Args:
        text: anything.

    Returns:
        The text as it is split into words.
    """
    if _PLAIN.fullmatch(text):
        return " ".join(text.split()).lower()
    import html

    import ftfy
    import regex

    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return str(regex.sub(r"\s+", " ", text)).strip().lower()


def split_words(text: str, parse_specials: bool) -> Iterator[str]:
    """Cut cleaned text in words: contractions, runs of letters, single digits, runs of other symbols.

    Args:
        text: from `clean`.
        parse_specials: read a literal "<|endoftext|>" as the end token (what the reference does); otherwise it is
            text like any other.
    """
    specials = _SPECIALS if parse_specials else ""
    for match in _word_pattern(specials, text.isascii()).finditer(text):
        yield match.group()


@lru_cache
def _word_pattern(specials: str, plain: bool) -> Any:
    if plain:
        return re.compile(specials + _PLAIN_WORDS)
    import regex

    return regex.compile(specials + _WORDS, regex.IGNORECASE)


class Tokenizer:
    """Text to token ids and back; build it with `load_tokenizer`.

    Attributes:
        id_map: kept CLIP ids in order, or None for the whole vocabulary.
        size: number of ids.
        start, end, pad: ids of the marks and of what fills the rest.
    """

    def __init__(self, id_map: tuple[int, ...] | None) -> None:
        """Read the merges that the map keeps.

        Raises:
            InputError: the map is not sorted, lacks the bytes or marks, or is not closed.
            WeightsError: the merges file is damaged.
        """
        self._lines = _merge_lines()
        if id_map is not None:
            _check_id_map(id_map)
            self._lines = [self._lines[number - BYTE_IDS] for number in id_map[BYTE_IDS:-2]]
        self._ranks = dict(zip(self._lines, range(len(self._lines)), strict=True))
        self._bytes = {symbol: number for number, symbol in enumerate(_byte_symbols())}
        if id_map is not None:
            self._check_closed(self._tokens)
        self.id_map, self.size = id_map, BYTE_IDS + len(self._lines) + 2
        self.start, self.end, self.pad = self.size - 2, self.size - 1, 0
        self._words: dict[str, tuple[int, ...]] = {}

    @cached_property
    def _tokens(self) -> list[str]:
        """All tokens in the order of their ids; encoding does without them, which saves half of the start."""
        merged = "\n".join(self._lines).replace(" ", "").split("\n") if self._lines else []
        return [*_byte_symbols(), *merged, START_TEXT, END_TEXT]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self._tokens)}

    def _check_closed(self, tokens: list[str]) -> None:
        known = set(tokens)
        for line in self._ranks:
            lost = [part for part in line.split(" ") if part not in known]
            if lost:
                raise InputError(
                    f"id_map keeps {line.replace(' ', '')!r} but not its part {lost[0]!r}; build it with closed_id_map."
                )

    @property
    def id(self) -> str:
        """Hash of the merges and the map."""
        return content_hash([MERGES_SHA256, self.id_map])

    def iter_ids(self, text: str, parse_specials: bool, longest_word: int = 4096) -> Iterator[int]:
        """Encode text without marks.

        Args:
            text: raw; it is cleaned first.
            parse_specials: see `split_words`.
            longest_word: symbols after which a word is cut, which bounds the time of hostile text.
        """
        for word in split_words(clean(text), parse_specials):
            if parse_specials and word in (START_TEXT, END_TEXT):
                yield self.start if word == START_TEXT else self.end
            else:
                yield from self._word_ids(word[:longest_word])

    def encode(self, text: str, parse_specials: bool = False) -> list[int]:
        """Encode text to ids without marks, however many there are."""
        return list(self.iter_ids(text, parse_specials))

    def decode(self, ids: Iterable[int]) -> str:
        """Spell ids as text; a word's end becomes a blank, undecodable bytes become U+FFFD."""
        symbols = "".join(self._tokens[number] for number in ids)
        table = {symbol: value for value, symbol in enumerate(_symbol_of_byte())}
        parts = symbols.split(WORD_END)
        words = (bytes(table[symbol] for symbol in part).decode("utf-8", "replace") for part in parts)
        return " ".join(words)

    def _word_ids(self, word: str) -> tuple[int, ...]:
        known = self._words.get(word)
        if known is None:
            known = tuple(self._merge(word))
            if len(self._words) < 50_000 and len(word) < 64:
                self._words[word] = known
        return known

    def _merge(self, word: str) -> list[int]:
        """Merge the byte symbols of a word, lowest rank first, all its places from left to right; gives the ids.

        A merge of rank r makes the token of id 512 + r.
        """
        table = _symbol_of_byte()
        parts = [table[value] for value in word.encode("utf-8", "surrogatepass")]
        parts[-1] += WORD_END
        ranks = self._ranks
        ids = [self._bytes[part] for part in parts]
        while len(parts) > 1:
            pairs = [f"{left} {right}" for left, right in pairwise(parts)]
            best = min(pairs, key=lambda pair: ranks.get(pair, VOCABULARY_SIZE))
            if best not in ranks:
                break
            left, right = best.split(" ")
            merged: list[str] = []
            numbers: list[int] = []
            at = 0
            while at < len(parts):
                if at + 1 < len(parts) and parts[at] == left and parts[at + 1] == right:
                    merged.append(left + right)
                    numbers.append(BYTE_IDS + ranks[best])
                    at += 2
                else:
                    merged.append(parts[at])
                    numbers.append(ids[at])
                    at += 1
            parts, ids = merged, numbers
        return ids


@lru_cache(maxsize=8)
def load_tokenizer(id_map: tuple[int, ...] | None = None) -> Tokenizer:
    """Build a tokenizer once a process; a small map takes a few milliseconds.

    Args:
        id_map: kept CLIP ids, sorted (see the module); None for all 49,408.

    Raises:
        InputError, WeightsError: as `Tokenizer`.
    """
    return Tokenizer(id_map)


def closed_id_map(texts: Iterable[str]) -> tuple[int, ...]:
    """Collect the CLIP ids that some texts need, closed under "is made of", with all bytes and both marks.

    Args:
        texts: every text, or every word, that must be split exactly as CLIP splits it.

    Returns:
        Sorted CLIP ids, for `TextConfig.id_map`.
    """
    tokenizer = load_tokenizer(None)
    lines = _merge_lines()
    kept = {*range(BYTE_IDS), START_ID, END_ID}
    waiting = {number for text in texts for number in tokenizer.encode(text)} - kept
    while waiting:
        number = waiting.pop()
        kept.add(number)
        parts = (tokenizer._ids[part] for part in lines[number - BYTE_IDS].split(" "))
        waiting.update(part for part in parts if part not in kept)
    return tuple(sorted(kept))


def _check_id_map(id_map: tuple[int, ...]) -> None:
    if tuple(id_map[:BYTE_IDS]) != tuple(range(BYTE_IDS)) or tuple(id_map[-2:]) != (START_ID, END_ID):
        raise InputError(
            f"id_map: expected ids 0-511 first and {START_ID}, {END_ID} last; build it with closed_id_map."
        )
    if any(left >= right for left, right in pairwise(id_map)):
        raise InputError("id_map: expected ids in rising order, without doubles; build it with closed_id_map.")


@lru_cache(maxsize=1)
def _merge_lines() -> list[str]:
    """Read the merges, "left right" each, in order of rank; the file's checksum is verified."""
    data = (importlib.resources.files("bindsearch.modalities") / MERGES_FILE).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != MERGES_SHA256:
        raise WeightsError(
            f"{MERGES_FILE}: expected SHA-256 {MERGES_SHA256}, got {found}. Reinstall: pip install -U bindsearch"
        )
    # the file goes on with 213,250 merges that CLIP does not use: they are not even unpacked
    count = VOCABULARY_SIZE - BYTE_IDS - 2
    text = zlib.decompressobj(wbits=31).decompress(data, _USED_BYTES)
    return text.decode("utf-8", "ignore").split("\n", count + 1)[1 : count + 1]


@lru_cache(maxsize=1)
def _symbol_of_byte() -> tuple[str, ...]:
    """Give each byte value its symbol: printable Latin-1 stands for itself, the others for U+0100 and up, in order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return tuple(chr(value if value in printable else next(others)) for value in range(256))


def _byte_symbols() -> list[str]:
    """List the first 512 tokens: the symbols, self-standing ones first, then the same with the word's end."""
    table = _symbol_of_byte()
    single = sorted(table, key=lambda symbol: (ord(symbol) >= 256, ord(symbol)))
    return single + [symbol + WORD_END for symbol in single]
