"""Requests: threads, batches, beams, streams, prompts, limits, bad input."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import golden_llm as golden
import numpy as np
import pytest
import torch

from bindsearch.errors import InputError, MismatchError, ShapeError, UnsupportedError
from bindsearch.llm.base import rows_for
from bindsearch.llm.generate import Sampling, generate, nucleus, stream
from bindsearch.llm.model import AdapterLlama
from bindsearch.llm.prompts import alpaca


@pytest.fixture(scope="module")
def of() -> AdapterLlama:
    return golden.model()


def prompt(of: AdapterLlama) -> list[int]:
    return of.tokenizer.encode("the old bell")


def test_without_a_request_the_llama_is_stock(of: AdapterLlama) -> None:
    g = golden.figures("full_forward")
    with torch.no_grad():
        before = of.llama(input_ids=g["tokens"]).logits
    of.logits(golden.feature(), g["tokens"])
    with torch.no_grad():
        assert torch.equal(of.llama(input_ids=g["tokens"]).logits, before)
        assert golden.error(before, golden.figures("full_forward_ablations")["no_gate"]) <= golden.LOGITS
    of.connection.close()
    assert not of.llama.model.layers[0].self_attn.o_proj._forward_pre_hooks
    of.connection = of.connector.connect(of.llama, of.lora)
    assert golden.logits_error(of) <= golden.LOGITS


def test_threads_see_their_own_feature_only(of: AdapterLlama) -> None:
    g = golden.figures("full_forward")
    features = torch.nn.functional.normalize(torch.randn(6, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    alone = [of.logits(row[None], g["tokens"]) for row in features]
    barrier = threading.Barrier(len(features))
    worst = [1.0] * len(features)

    def ask(at: int) -> None:
        barrier.wait()
        worst[at] = max(golden.error(of.logits(features[at][None], g["tokens"]), alone[at]) for _ in range(8))

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(features))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == [0.0] * len(features)
    assert golden.error(alone[0], alone[1]) > 1


def test_batch_is_its_rows(of: AdapterLlama) -> None:
    g = golden.figures("full_forward")
    both = of.logits(golden.feature(), g["tokens"])
    for row in range(2):
        one = of.logits(golden.feature()[row : row + 1], g["tokens"][row : row + 1])
        assert golden.error(one, both[row : row + 1]) <= 2e-5


def test_one_feature_serves_a_batch(of: AdapterLlama) -> None:
    g = golden.figures("full_forward")
    one = golden.feature()[:1]
    assert golden.error(of.logits(one, g["tokens"]), of.logits(one.expand(2, -1), g["tokens"])) <= 2e-5


def test_beams_repeat_what_is_injected(of: AdapterLlama) -> None:
    from transformers import GenerationConfig

    settings = GenerationConfig(max_new_tokens=6, num_beams=3, do_sample=False, eos_token_id=2, pad_token_id=2)
    ids = golden.figures("full_forward")["tokens"][:, :8]

    def beams(features: torch.Tensor, ids: torch.Tensor) -> list[list[int]]:
        with torch.no_grad(), of.connection.inject(features):
            mask = torch.ones_like(ids)
            out = of.llama.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        return [row[8:].tolist() + [2] * (14 - len(row)) for row in out]  # what ended is padded

    both = beams(golden.feature(), ids)
    assert both == [beams(golden.feature()[row : row + 1], ids[row : row + 1])[0] for row in range(2)]
    assert both != beams(golden.feature().flip(0), ids)


def test_rows_lie_together() -> None:
    rows = torch.tensor([[1.0], [2.0]])
    assert rows_for(rows, 4, "x").flatten().tolist() == [1, 1, 2, 2]
    assert rows_for(rows[:1], 5, "x").flatten().tolist() == [1]
    with pytest.raises(ShapeError, match="2 embeddings were injected, the batch has 3 rows"):
        rows_for(rows, 3, "x")


def test_gradient_reaches_every_part_of_the_connector() -> None:
    of = golden.model()
    of.connector.requires_grad_(True)
    g = golden.figures("full_forward")
    with of.connection.inject(golden.feature()):
        golden.loss(of.llama(input_ids=g["tokens"]).logits, g["labels"]).backward()
    assert all(float(p.grad.abs().max()) > 0 for p in of.connector.parameters())
    assert all(p.grad is None for p in of.llama.parameters())


def test_gradient_checkpointing_is_refused() -> None:
    of = golden.model()
    of.llama.train()
    of.llama.activation_checkpointing_enable()
    with (
        pytest.raises(UnsupportedError, match="activation_checkpointing_disable"),
        of.connection.inject(golden.feature()),
    ):
        pass


class TestDrawing:
    def test_seed_gives_the_same_answer_and_no_other_draw_disturbs_it(self, of: AdapterLlama) -> None:
        sampling = Sampling(max_new_tokens=12, temperature=2.0, top_p=0.95, seed=7)
        ask = golden.feature()[:1]
        first = generate(of.connection, ask, [prompt(of)], sampling, of.tokenizer.eos)
        torch.rand(3)
        before = torch.random.get_rng_state()
        assert generate(of.connection, ask, [prompt(of)], sampling, of.tokenizer.eos) == first
        assert torch.equal(torch.random.get_rng_state(), before)
        other = Sampling(max_new_tokens=12, temperature=2.0, top_p=0.95, seed=8)
        assert generate(of.connection, ask, [prompt(of)], other, of.tokenizer.eos) != first

    def test_draws_follow_the_nucleus(self, of: AdapterLlama) -> None:
        with torch.no_grad(), of.connection.inject(golden.feature()[:1]):
            logits = of.llama(input_ids=torch.tensor([prompt(of)])).logits[:, -1]
        shares, ids = nucleus(logits, 1.5, 0.5)
        want = torch.zeros(512).scatter(0, ids[0], shares[0])
        rows = 3000
        drawn = generate(
            of.connection, golden.feature()[:1], [prompt(of)] * rows, Sampling(1, 1.5, 0.5, seed=0), eos=-1
        )
        got = torch.bincount(torch.tensor(drawn).flatten(), minlength=512) / rows
        assert 1 < int((want > 0).sum()) < 100
        assert not bool(got[want == 0].any())
        assert float((got - want).abs().max()) < 4 * (0.25 / rows) ** 0.5

    def test_a_tie_at_the_edge_stays(self) -> None:
        logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
        assert nucleus(logits, 1.0, 0.5)[0].tolist()[0] == pytest.approx([2 / 3, 1 / 3, 0])

    @pytest.mark.parametrize(
        "wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 1.5}, {"max_new_tokens": 0}]
    )
    def test_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(InputError, match=next(iter(wrong))):
            Sampling(**wrong)  # type: ignore[arg-type]


class TestStream:
    def test_pieces_make_the_answer(self, of: AdapterLlama) -> None:
        case = golden.read("generation.json")["greedy_image"]
        feature = torch.tensor(case["inputs"][0][1])
        feature = feature / feature.norm() / (1 + 1e-6)
        sampling = Sampling(max_new_tokens=24, temperature=0)
        pieces = list(of.answer(feature, "Describe the picture in detail", sampling=sampling, stream=True))
        assert "".join(pieces) == case["text"][0]
        assert len(pieces) > 15
        assert of.answer(feature, "Describe the picture in detail", sampling=sampling) == case["text"][0].strip()

    def test_leaving_early_stops_the_model(self, of: AdapterLlama) -> None:
        calls = []
        handle = of.llama.lm_head.register_forward_hook(lambda *_: calls.append(1))
        pieces = stream(of.connection, golden.feature()[:1], prompt(of), Sampling(400, 1.0, 1.0, seed=0), eos=-1)
        for _ in range(3):
            next(pieces)
        pieces.close()
        handle.remove()
        assert len(calls) < 400
        assert not [thread for thread in threading.enumerate() if thread.name == "bindsearch-answer"]

    def test_an_error_is_raised_where_the_answer_is_read(self, of: AdapterLlama) -> None:
        bad = golden.feature()[:1].clone()
        bad[0, 5] = torch.nan
        with pytest.raises(InputError, match="row 0 of the embeddings holds NaN"):
            list(of.answer(bad, "What?", stream=True))


def test_limits(of: AdapterLlama) -> None:
    assert Sampling().room(505) == 7
    assert Sampling().room(10) == 256
    with pytest.raises(InputError, match="512 tokens, the context 512"):
        Sampling().room(512)
    with pytest.raises(InputError, match="no room for an answer"):
        of.answer(golden.feature()[:1], "bell " * 600)
    rows = generate(
        of.connection, golden.feature()[:1], [[1] * 508, [1, 5]], Sampling(9, 0), eos=-1
    )  # each row has its own room
    assert [len(row) for row in rows] == [4, 9]


def test_refusals(of: AdapterLlama) -> None:
    tokens = golden.figures("full_forward")["tokens"]
    with pytest.raises(ShapeError, match=r"expected embeddings of shape \(B, 32\), got \(2, 31\)"):
        of.logits(torch.zeros(2, 31), tokens)
    with pytest.raises(ShapeError, match=r"got \(32,\)"):
        of.logits(torch.zeros(32), tokens)
    with pytest.raises(ShapeError, match=r"torch\.int64"):
        of.logits(torch.zeros(2, 32, dtype=torch.int64), tokens)
    with pytest.raises(ShapeError, match="3 embeddings were injected, the batch has 2 rows"):
        of.logits(torch.zeros(3, 32), tokens)
    with pytest.raises(InputError, match="one embedding, got 2"):
        of.answer(golden.feature(), "What?")
    with pytest.raises(InputError, match="2 prompts, 3 embeddings"):
        of.answers(torch.zeros(3, 32), ["a", "b"])
    with pytest.raises(InputError, match="Nothing to answer"):
        of.answers(golden.feature()[:1], [])
    wide = golden.model()
    wide.llama.config.hidden_size = 5120
    with pytest.raises(MismatchError, match="width 64, 4 layers, 4 heads; this one has width 5120"):
        wide.connector.connect(wide.llama)


def test_prompts() -> None:
    cases = golden.read("generation.json")
    assert alpaca("Describe the picture in detail") == cases["greedy_image"]["prompts"][0]
    assert alpaca("What is making this sound?", "the old bell") == cases["greedy_mix_cache"]["prompts"][0]
    assert alpaca("x", "") == alpaca("x")


def test_the_page_runs(tmp_path, monkeypatch, capsys) -> None:
    """Every Python block of the page, on the tiny pair under the released names."""
    page = (Path(__file__).parent.parent / "docs" / "llm.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) >= 3
    (tmp_path / "7B.pth").write_bytes(golden.ADAPTER.read_bytes())
    (tmp_path / "llama-7b").symlink_to(golden.LLAMA)
    np.save(tmp_path / "sound.npy", golden.feature()[:1].numpy())
    np.save(tmp_path / "picture.npy", golden.feature()[1:].numpy())
    images = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    said = capsys.readouterr().out
    assert "kind='imagebind-llm'" in said
    assert len(said) > 300
    assert (tmp_path / "mine.pth").is_file()
