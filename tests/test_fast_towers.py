"""Fast towers: each switch alone against the plain path by value, and what each one saves."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import golden_towers as golden
import numpy as np
import pytest
import torch

from bindsearch.embed.planning import EmbedOptions
from bindsearch.embed.run import run_embed
from bindsearch.errors import InputError, MismatchError, ShapeError, UnknownNameError
from bindsearch.models import packed, quick
from bindsearch.models.architecture import load_architecture
from bindsearch.models.bind import Tower, build_tower
from bindsearch.models.clips import aligned, distinct
from bindsearch.models.packed import Int8Linear, PackedLinear, PlainLinear, sums_bytes_whole
from bindsearch.models.quick import QuickTower
from bindsearch.models.spaces import drawn_tower, load_space, tiny_manifest
from bindsearch.models.switches import PLAIN, PROFILES, Switches, switches_of

TOWERS = ("vision", "text", "audio", "depth", "thermal", "imu")
EXACT = ("trimmed", "ragged", "last_block", "packed", "fused_gelu")
SEED = 3
GOOD = golden.cases(quirks=False)
whole_bytes = pytest.mark.skipif(not sums_bytes_whole(), reason="int8 is refused here: the processor has no VNNI")


def tower_of(name: str, dtype: torch.dtype) -> Tower:
    return drawn_tower(tiny_manifest(SEED), SEED, name).to(dtype)


def clips_of(name: str, count: int = 5) -> torch.Tensor:
    """Draw clips; texts of the lengths 3, 8, 4, 8, 5, ..., what follows the end token is not padding."""
    stem = load_architecture("tiny").towers[name].stem
    rng = np.random.default_rng(11)
    if name != "text":
        return torch.from_numpy(rng.standard_normal((count, *stem.shape), dtype=np.float32))
    end = int(stem.vocabulary or 0) - 1
    ids = rng.integers(1, end, (count, *stem.shape))
    for row, length in zip(range(count), itertools.cycle((3, 8, 4, 8, 5)), strict=False):
        ids[row, length - 1] = end
    return torch.from_numpy(ids)


def encode(tower: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Encode to float64 unit rows."""
    kind = getattr(tower, "input_dtype", None) or next(tower.parameters()).dtype
    with torch.inference_mode():
        rows = tower(x.to(kind) if x.is_floating_point() else x)
    return torch.nn.functional.normalize(rows.double(), dim=-1)


def plain(name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return encode(tower_of(name, dtype), clips_of(name))


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("switch", EXACT)
def test_each_exact_switch_alone_is_exact(name: str, switch: str) -> None:
    """Against `bind.Tower`: in float64 to 1e-12, in float32 to its own rounding."""
    on = replace(PLAIN, **{switch: True})
    if switch == "ragged":
        on = replace(on, trimmed=True)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        got = encode(QuickTower(tower_of(name, dtype), on), clips_of(name))
        assert float((got - plain(name)).abs().max()) <= bound


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("kind", ["sdpa", "products"])
def test_both_ways_of_attention_agree(name: str, kind: str) -> None:
    for last in (False, True):
        switches = replace(PLAIN, attention=kind, last_block=last)
        got = encode(QuickTower(tower_of(name, torch.float64), switches), clips_of(name))
        assert float((got - plain(name)).abs().max()) <= 1e-12


@pytest.mark.parametrize(("model", "case"), GOOD)
def test_fast_towers_stand_the_goldens(model: str, case: str) -> None:
    """The default switches, float32, against the reference's own numbers, to the bound of `bind.Tower`."""
    name = case if case in TOWERS else next(each for each in TOWERS if case.startswith(each) or _vision(case, each))
    clips, per_item = golden.clips_of(name, golden.case_input(model, case), torch.float32)
    fresh = build_tower(golden.architecture(model), name)
    fresh.load_state_dict(golden.state(model)[name], strict=True, assign=True)
    quicker = QuickTower(fresh.requires_grad_(False).eval(), Switches())
    with torch.inference_mode():
        unit = torch.nn.functional.normalize(quicker(clips), dim=-1, eps=1e-12) * quicker.logit_scale()
    got = unit.reshape(len(clips) // per_item, per_item, -1).mean(1).numpy()
    assert golden.error(got, golden.outputs(model)[f"out/{case}"]) <= 5e-5


def _vision(case: str, name: str) -> bool:
    return name == "vision" and case.startswith(("image", "video"))


def cosine(name: str, switches: Switches) -> float:
    got = encode(QuickTower(tower_of(name, torch.bfloat16), switches), clips_of(name))
    return float((got * plain(name)).sum(1).min())


@pytest.mark.parametrize("name", TOWERS)
def test_bfloat16_stays_near(name: str) -> None:
    assert cosine(name, Switches()) >= 0.998  # of a few numbers a layer; the mini keeps 0.9999, see below


def test_the_wide_residual_is_nearer() -> None:
    """Weights that bfloat16 holds exactly, so that what differs is the arithmetic; the mean over towers."""
    error = {}
    for wide in (False, True):
        found = []
        for name in TOWERS:
            rounded = tower_of(name, torch.bfloat16)
            truth = encode(tower_of(name, torch.bfloat16).double(), clips_of(name))
            got = encode(QuickTower(rounded, replace(Switches(), wide_residual=wide)), clips_of(name))
            found.append(1 - float((got * truth).sum(1).mean()))
        error[wide] = float(np.mean(found))
    assert error[True] < 0.7 * error[False]


@whole_bytes
def test_int8_is_near_but_not_the_same() -> None:
    for name in TOWERS:
        exact, rounded = (
            encode(QuickTower(tower_of(name, torch.float32), each), clips_of(name))
            for each in (Switches(), Switches(int8=True))
        )
        assert 0.995 <= float((exact * rounded).sum(1).min()) < 1 - 1e-8


def test_layers_agree_with_torch() -> None:
    """Packed layers of both types, 8 bits, with and without a GELU, for one row and many."""
    g = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(48, 80, generator=g), torch.randn(48, generator=g)
    for rows, gelu in itertools.product((1, 7, 130), (False, True)):
        x = torch.randn(rows, 80, generator=g)
        want = PlainLinear(weight.double(), bias.double())(x.double(), gelu)
        size = float(want.norm())
        for fused in (False, True):
            got = PackedLinear(weight, bias, fused)(x, gelu)
            assert float((got - want).norm()) <= 1e-6 * size
            half = PackedLinear(weight.bfloat16(), bias.bfloat16(), fused)(x.bfloat16(), gelu)
            assert 0 < float((half - want).norm()) <= 6e-3 * size
        if sums_bytes_whole():
            assert 0 < float((Int8Linear(weight, bias)(x, gelu) - want).norm()) <= 2e-2 * size


def test_int8_is_refused_where_sums_of_bytes_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial says what large products give, and a processor that fails it is not used for 8 bits."""
    ones = torch.ones(64, 64)
    assert sums_bytes_whole() == bool(torch.allclose(Int8Linear(ones, None)(ones), ones * 64))
    monkeypatch.setattr(packed, "sums_bytes_whole", lambda: False)
    with pytest.raises(InputError, match="no VNNI"):
        QuickTower(tower_of("text", torch.float32), Switches(int8=True))


def test_eight_bits_of_a_row_of_zeros() -> None:
    layer = Int8Linear(torch.ones(16, 32), torch.arange(16.0))
    assert torch.equal(layer(torch.zeros(2, 32)), torch.arange(16.0).expand(2, -1))


def rows_seen(tower: QuickTower, x: torch.Tensor) -> list[int]:
    """Count the rows that each block's MLP is given in one forward pass."""
    seen = []

    def watch(layer: Any) -> Any:
        def call(rows: torch.Tensor, gelu: bool = False) -> torch.Tensor:
            seen.append(len(rows))
            return layer(rows, gelu)  # type: ignore[no-any-return]

        return call

    for block in tower._blocks:
        block.fc1 = watch(block.fc1)
    encode(tower, x)
    return seen


def test_texts_are_computed_to_their_ends_and_the_last_block_for_them_alone() -> None:
    x = clips_of("text")  # of 3, 8, 4, 8 and 5 tokens
    context = x.shape[1]

    def seen(**changed: bool) -> tuple[int, int]:
        counted = rows_seen(QuickTower(tower_of("text", torch.float32), replace(PLAIN, **changed)), x)
        return counted[0], counted[-1]

    assert seen() == (5 * context, 5 * context)
    assert seen(trimmed=True) == (5 * 8, 5 * 8)
    assert seen(trimmed=True, ragged=True) == (3 + 8 + 4 + 8 + 5,) * 2
    assert seen(trimmed=True, ragged=True, last_block=True) == (3 + 8 + 4 + 8 + 5, 5)


def test_the_last_block_of_other_towers() -> None:
    for name in ("vision", "audio", "imu"):
        seen = rows_seen(QuickTower(tower_of(name, torch.float32), Switches()), clips_of(name))
        assert seen[-1] == 5 and seen[0] > 5 * 2


def test_a_batch_equals_its_singles() -> None:
    for name in TOWERS:
        tower, x = QuickTower(tower_of(name, torch.float64), Switches()), clips_of(name)
        apart = torch.cat([encode(tower, one[None]) for one in x])
        assert float((encode(tower, x) - apart).abs().max()) <= 1e-12
        assert tuple(tower(x[:0].double() if x.is_floating_point() else x[:0]).shape) == (0, tower.dim)


def test_wrong_shapes_are_refused_as_before() -> None:
    tower = QuickTower(tower_of("depth", torch.float32), Switches())
    with pytest.raises(ShapeError, match="depth tower: expected shape"):
        tower(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["text", "audio"])
def test_the_path_of_a_gpu_traced(name: str) -> None:
    """What a GPU runs, here: layers as they are, the fused kernel, texts trimmed, not ragged; through torch.compile."""
    switches = Switches(packed=False, attention="sdpa", ragged=False, compiled="eager")
    got = encode(QuickTower(tower_of(name, torch.float32), switches), clips_of(name))
    assert float((got - plain(name)).abs().max()) <= 3e-6


def test_equal_clips_are_found() -> None:
    rng = np.random.default_rng(0)
    three = rng.standard_normal((3, 2, 40, 40)).astype(np.float32)
    first, back = distinct(np.concatenate([three, three[:2], three]))
    assert first.tolist() == [0, 1, 2] and back is not None and back.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    nearly = three.copy()
    nearly[:, 1, 39, 38] += 1  # no sample lies there
    first, back = distinct(np.concatenate([three, nearly]))
    assert first.tolist() == list(range(6)) and back is None
    assert distinct(np.array([[0.0], [-0.0]]))[1] is None  # bytes, not values
    assert distinct(np.full((2, 1), np.nan))[1] is not None
    assert distinct(np.zeros((0, 3)))[0].size == 0


def test_aligned_takes_what_is_chosen() -> None:
    clips = np.arange(24, dtype=np.float32).reshape(6, 4)[:, ::2]
    taken = aligned(clips, np.array([4, 1]))
    assert taken.tolist() == clips[[4, 1]].tolist() and taken.ctypes.data % 64 == 0
    whole = aligned(taken, np.arange(2))
    assert whole is taken


def test_a_short_video_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five equal clips of three crops: three forward passes, and the vector of all fifteen."""
    asked: list[int] = []
    forward = QuickTower.forward

    def watch(self: QuickTower, x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(quick.QuickTower, "forward", watch)
    rng = np.random.default_rng(1)
    shape = load_space("tiny:3", device="cpu").card.clip_shapes["video"]
    crops = rng.standard_normal((1, 3, *shape), dtype=np.float32)
    x = np.tile(crops, (1, 5, *[1] * len(shape)))
    vectors = {}
    for word, count in (("on", 3), ("off", 15)):
        asked.clear()
        vectors[word] = load_space("tiny:3", device="cpu", switches=f"fast,once={word}").encode("video", x)
        assert sum(asked) == count
    assert np.abs(vectors["on"] - vectors["off"]).max() <= 1e-6


def test_passes_follow_from_the_clips_and_the_cap_alone() -> None:
    tower = QuickTower(tower_of("vision", torch.float32), Switches(cap_mb=1))
    clips = clips_of("vision", 60).numpy()
    passes = list(tower.batches(clips))
    assert np.concatenate(passes).tolist() == list(range(60))
    assert 1 < len(passes) < 60 and all(len(each) % 8 == 0 for each in passes[:-1])
    assert [each.tolist() for each in passes] == [each.tolist() for each in tower.batches(clips.copy())]
    wide = QuickTower(tower_of("vision", torch.float32), Switches(cap_mb=512))
    assert len(list(wide.batches(clips))) == 1
    words = clips_of("text", 200).numpy()
    text = QuickTower(tower_of("text", torch.float32), Switches(cap_mb=1))
    grouped = list(text.batches(words))
    assert sorted(np.concatenate(grouped).tolist()) == list(range(200))
    ends = [(words[each] == words.max()).argmax(1) for each in grouped]
    assert all(one.max() <= other.min() for one, other in itertools.pairwise(ends))  # texts of like length together


def test_texts_come_back_in_their_order() -> None:
    space, texts = load_space("bindsearch-mini", device="cpu"), ["a red circle on a blue ground", "dog", "two cats"]
    one_by_one = np.concatenate([space.embed("text", [each]) for each in texts])
    assert np.abs(space.embed("text", texts) - one_by_one).max() <= 1e-6


def test_the_mini_keeps_its_answers() -> None:
    """bfloat16 with float32 in bindsearch-mini: cosines of 0.9998 and more."""
    rng = np.random.default_rng(2)
    spaces = [load_space("bindsearch-mini", device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")]
    for modality in ("image", "audio"):
        x = rng.standard_normal((6, 1, *spaces[0].card.clip_shapes[modality]), dtype=np.float32)
        exact, half = (space.encode(modality, x) for space in spaces)
        assert float((exact * half).sum(1).min()) >= 0.9998
        assert not np.array_equal(exact, half)


def test_switches_are_read_and_written() -> None:
    assert switches_of("fast") == Switches() == switches_of("") and Switches().id == "fast"
    assert switches_of("plain") == PLAIN and switches_of(PLAIN.id) == PLAIN
    mixed = switches_of("single,int8=on,cap_mb=64,attention=sdpa")
    assert mixed == Switches(packed=False, int8=True, cap_mb=64, attention="sdpa") == switches_of(mixed.id)
    off = {each.name for each in fields(Switches) if isinstance(each.default, bool) and not getattr(PLAIN, each.name)}
    assert off == {each.name for each in fields(Switches) if isinstance(each.default, bool)}  # plain has none on
    assert set(PROFILES) == {"fast", "plain", "single"}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("quick", UnknownNameError, "quick"),
        ("fast,pakced=off", UnknownNameError, "Did you mean 'packed'"),
        ("packed=maybe", InputError, "expected on or off, got 'maybe'"),
        ("cap_mb=lots", InputError, "whole number"),
        ("cap_mb=-1", InputError, "0 or more"),
        ("attention=flash", UnknownNameError, "flash"),
        ("compiled=llvm", UnknownNameError, "llvm"),
    ],
)
def test_switches_that_cannot_be_meant(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        load_space("tiny", switches=text)


@pytest.mark.parametrize(("instructions", "dtype"), [("", "float32"), ("avx512_bf16", "bfloat16")])
def test_fast_numbers_are_what_the_processor_has_instructions_for(
    monkeypatch: pytest.MonkeyPatch, instructions: str, dtype: str
) -> None:
    monkeypatch.setattr(packed, "bfloat16_instructions", lambda: instructions)
    assert load_space("tiny", device="cpu", dtype="fast").dtype == dtype
    assert load_space("tiny", device="cpu").dtype == "float32"


@pytest.mark.parametrize(
    ("instructions", "kind"), [("", "products"), ("avx512_bf16", "products"), ("amx_bf16", "sdpa")]
)
def test_the_attention_follows_the_processor(monkeypatch: pytest.MonkeyPatch, instructions: str, kind: str) -> None:
    monkeypatch.setattr(quick, "bfloat16_instructions", lambda: instructions)
    assert QuickTower(tower_of("imu", torch.bfloat16), Switches()).kind == kind
    assert QuickTower(tower_of("imu", torch.float32), Switches()).kind == "sdpa"


def test_a_resumed_run_in_bfloat16_gives_the_same_bytes(tmp_path: Path) -> None:
    """A store says its type; a shard that is lost is made again, bit for bit."""
    options = EmbedOptions(workers=0, shard_size=16, batch_size=8)
    space = load_space("bindsearch-mini", device="cpu", dtype="bfloat16")
    run_embed(["world:0..40#image,text"], tmp_path / "a", space, options=options)
    before = {path.name: path.read_bytes() for path in sorted((tmp_path / "a").rglob("*.npy"))}
    assert len(before) >= 4
    lost = sorted((tmp_path / "a").rglob("image-00001.*"))
    assert lost
    for path in lost:
        path.unlink()
    again = load_space("bindsearch-mini", device="cpu", dtype="bfloat16")
    run_embed(["world:0..40#image,text"], tmp_path / "a", again, options=options)
    assert {path.name: path.read_bytes() for path in sorted((tmp_path / "a").rglob("*.npy"))} == before
    assert '"dtype":"bfloat16"' in (tmp_path / "a" / "manifest.json").read_text().replace(" ", "")


@pytest.mark.slow
def test_a_full_size_tower_keeps_its_cosines() -> None:
    """Depth of imagebind-huge, drawn weights: 0.9999 with float64 in bfloat16, 1e-9 in float32, 0.998 in 8 bits."""
    architecture = load_architecture("imagebind-huge")
    g = torch.Generator().manual_seed(4)
    x = torch.randn(2, *architecture.towers["depth"].stem.shape, generator=g)

    def drawn(dtype: torch.dtype) -> Tower:
        return build_tower(architecture, "depth", seed=9).requires_grad_(False).eval().to(dtype)

    truth = encode(drawn(torch.float64), x)
    for dtype, switches, least in (
        (torch.float32, Switches(), 1 - 1e-9),
        (torch.bfloat16, Switches(), 0.9999),
        (torch.bfloat16, Switches(int8=True), 0.998),
    ):
        if switches.int8 and not sums_bytes_whole():
            continue
        got = encode(QuickTower(drawn(dtype), switches), x)
        assert float((got * truth).sum(1).min()) >= least


def test_an_unfinished_run_is_finished_with_its_own_switches(tmp_path: Path) -> None:
    options = EmbedOptions(workers=0, shard_size=4)
    texts = ["world:0..8#text"]
    run_embed(texts, tmp_path / "a", load_space("tiny:3", device="cpu"), options=options)
    for path in (tmp_path / "a").rglob("text-00001.*"):
        path.unlink()
    other = load_space("tiny:3", device="cpu", switches="fast,ragged=off")
    said = r"begun with speed fast, this run has fast,ragged=off\. Finish it with --speed fast"
    with pytest.raises(MismatchError, match=said):
        run_embed(texts, tmp_path / "a", other, options=options)
    run_embed(texts, tmp_path / "a", load_space("tiny:3", device="cpu"), options=options)
    run_embed(["world:0..9#text"], tmp_path / "a", other, options=options)  # what comes after may have another


def test_the_gpu_benchmark_measures_what_it_says() -> None:
    """The code that measures on a GPU, on the CPU with a narrow text tower: texts a second, and parity."""
    from benchmarks.bench_gpu_towers import matrix_rate, measure

    huge = load_architecture("imagebind-huge")
    text = replace(huge.towers["text"], trunk=replace(huge.towers["text"].trunk, width=64, blocks=2, heads=4))
    narrow = replace(huge, dim=32, towers={"text": text})
    rate = matrix_rate("cpu", 128)
    found = measure(
        "text", "cpu", "off", 16, rate, lambda name, dtype: build_tower(narrow, name, seed=1).eval().to(dtype)
    )
    assert found["items_a_second"] == pytest.approx(16 / found["wall_s"]["min"])
    assert 0.999 <= found["cosine_with_cpu_float32"] < 1 and found["share_of_matrix_rate"] > 0
