"""Which tricks a tower uses to be fast: one named switch each, all of them data. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from bindsearch.errors import InputError, UnknownNameError

ATTENTION = ("auto", "sdpa", "products")
COMPILERS = ("off", "inductor", "graphs", "eager")


@dataclass(frozen=True)
class Switches:
    """The tricks of a tower; the defaults are the fast ones that change no more than the last bits.

    Attributes:
        packed: weights of linear layers are laid out once for the processor's matrix kernels (CPU only).
        fused_gelu: the GELU (exact, erf) is computed by the linear layer before it, where weights are packed.
        attention: "sdpa" (torch's fused kernel), "products" (two batched products and a softmax), or "auto": whichever
            is the faster one for the number type and processor, see docs/adr/0132.
        wide_residual: in bfloat16, the residual stream, the ends of a tower and its norms stay in float32.
        trimmed: a text ends at its pooled token, what follows it is not computed; exact, the mask is causal.
        ragged: texts of one batch are laid end to end, none is padded to the longest (CPU only); exact.
        last_block: the last block is computed for the pooled token alone; exact.
        once: clips of a batch that are equal, byte for byte, are encoded once; exact.
        int8: linear layers in 8 bits: weights a scale a row, activations a scale a token; CPU only, not exact.
        compiled: "off", "inductor" (torch.compile), "graphs" (torch.compile with CUDA graphs), "eager" (traced, not
            compiled: tests the path).
        cap_mb: memory that activations of one forward pass may take; the number of clips a pass follows from it. 0
            takes 128 on a CPU, 4096 on a GPU.
    """

    packed: bool = True
    fused_gelu: bool = True
    attention: str = "auto"
    wide_residual: bool = True
    trimmed: bool = True
    ragged: bool = True
    last_block: bool = True
    once: bool = True
    int8: bool = False
    compiled: str = "off"
    cap_mb: int = 0

    def __post_init__(self) -> None:
        """Refuse values that do not exist."""
        if self.attention not in ATTENTION:
            raise UnknownNameError("attention", self.attention, ATTENTION)
        if self.compiled not in COMPILERS:
            raise UnknownNameError("compiler", self.compiled, COMPILERS)
        if self.cap_mb < 0:
            raise InputError(f"cap_mb: expected 0 or more MB, got {self.cap_mb}.")

    @property
    def id(self) -> str:
        """Say which switches differ from the defaults: "fast", or "fast,packed=off,..."; `switches_of` reads it."""
        words = [
            f"{each.name}={_word(getattr(self, each.name))}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        return ",".join(["fast", *words])


PLAIN = Switches(
    packed=False,
    fused_gelu=False,
    attention="products",
    wide_residual=False,
    trimmed=False,
    ragged=False,
    last_block=False,
    once=False,
)
"""Every trick off: what parity tests and benchmarks compare with."""

PROFILES = {"fast": Switches(), "plain": PLAIN, "single": Switches(packed=False)}
"""By name; "single" is for a process that encodes one thing: packing costs more than one forward pass gains."""


def switches_of(text: str | Switches) -> Switches:
    """Read switches as people write them: "fast", "plain", "single", "fast,int8=on", "packed=off,cap_mb=64".

    Raises:
        UnknownNameError: no such profile, switch or value.
        InputError: a value of another kind.
    """
    if isinstance(text, Switches):
        return text
    words = [word.strip() for word in text.split(",") if word.strip()]
    chosen = Switches()
    if words and "=" not in words[0]:
        name = words.pop(0)
        if name not in PROFILES:
            raise UnknownNameError("speed", name, PROFILES, "Or switches: packed=off,int8=on,...")
        chosen = PROFILES[name]
    known = {each.name: each for each in fields(Switches)}
    values: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise UnknownNameError("switch", name, known)
        values[name] = _read(name, value.strip(), known[name].default)
    return replace(chosen, **values)


def _read(name: str, value: str, default: Any) -> Any:
    if isinstance(default, bool):
        if value not in ("on", "off"):
            raise InputError(f"switch {name}: expected on or off, got {value!r}. Write {name}=on or {name}=off.")
        return value == "on"
    if isinstance(default, int):
        try:
            return int(value)
        except ValueError as error:
            raise InputError(f"switch {name}: expected a whole number, got {value!r}.") from error
    return value


def _word(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
