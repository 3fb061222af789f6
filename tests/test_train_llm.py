"""Training a language model on conversations: what is learned, exact resume, three connectors, the pair, `ask`."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bindsearch.cache import VisualCache
from bindsearch.cli import run
from bindsearch.errors import (
    BindSearchError,
    DecodeError,
    InputError,
    MismatchError,
    MissingExtraError,
    MissingInputError,
    UnknownNameError,
    WeightsError,
)
from bindsearch.llm.conversations import Conversation, Turn, write_conversations
from bindsearch.llm.generate import Sampling
from bindsearch.llm.llava_files import load_projector
from bindsearch.llm.llava_model import load_llava_pair
from bindsearch.llm.model import load
from bindsearch.llm.pair import ADAPTER, FILE, load_pair, pair_bytes, read_manifest
from bindsearch.llm.tiny import TinyConfig, save_llama
from bindsearch.llm.tokenizer import Tokenizer
from bindsearch.models.space import find_dtype
from bindsearch.models.spaces import bundled_folder, load_space
from bindsearch.train.answer_config import (
    AnswerConfig,
    AnswerStageConfig,
    ConnectorConfig,
    load_answer_config,
    read_run_config,
)
from bindsearch.train.answer_measure import answer_all, measure_answers
from bindsearch.train.answer_pair import make_pair, write_pair
from bindsearch.train.answer_run import AnswerSources, _stage, prepare_run, train_pair
from bindsearch.train.answers import AnswerBatch, answer_loss, draw_batch, only_these_learn
from bindsearch.train.checkpoint import differences
from bindsearch.train.picture_rows import embed_scenes, named_rows, read_pictures
from bindsearch.world.image import render_images
from bindsearch.world.scene import sample, split_seeds

TINY = TinyConfig(width=32, layers=2, heads=2, inner=48, pieces=620)
CONNECTORS = {
    "imagebind-llm": ConnectorConfig("imagebind-llm", hidden=48),
    "llama-adapter-v2": ConnectorConfig("llama-adapter-v2", hidden=32, depth=1, heads=2, tokens=3),
    "llava": ConnectorConfig("llava"),
}


def numbers(steps: int = 4, connector: str = "imagebind-llm", trains: tuple[str, ...] = ("connector", "llama")):
    common = {"steps": steps, "batch": 8, "warmup_steps": 2, "learning_rate": 0.01}
    return AnswerConfig(
        stages=(
            AnswerStageConfig("reading", "reading", trains=("llama",), turns=3, **common),
            AnswerStageConfig("captions", "captions", trains=("connector",), turns=1, **common),
            AnswerStageConfig("asking", "instructions", trains=trains, turns=4, noise=0.1, shortest=0.5, **common),
        ),
        llama=TINY,
        connector=CONNECTORS[connector],
        scenes=60,
        validation=4,
        measure_every=100,
    )


@pytest.fixture(scope="module")
def space():
    return load_space("bindsearch-mini")


@pytest.fixture(scope="module")
def home(tmp_path_factory, space):
    """A folder with data and embeddings that runs of this file share."""
    folder = tmp_path_factory.mktemp("run")
    prepare_run(numbers(), folder, space, AnswerSources(), lambda line: None)
    return folder


def share(home, folder):
    """Let a run in another folder find what `home` has made already."""
    for name in ("data", "embeddings", "tokenizer.model"):
        if (home / name).exists() and not (folder / name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(home / name)


def ready_in(home, folder, space, config):
    share(home, folder)
    return prepare_run(config, folder, space, AnswerSources(), lambda line: None)


@pytest.fixture(scope="module")
def trained(home, space):
    ready = prepare_run(numbers(), home, space, AnswerSources(), lambda line: None)
    train_pair(ready)
    return ready


def weights(ready):
    parts = {"llama": ready.llama, "connector": ready.connector}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def test_a_stopped_run_ends_with_the_same_bits(trained, home, space, tmp_path):
    for after in (2, 7, 11):  # in each of the three stages
        left, ready = {"steps": after}, ready_in(home, tmp_path, space, numbers())

        def stopped(left=left):
            left["steps"] -= 1
            return left["steps"] <= 0

        train_pair(ready, stopped=stopped)
    ready = ready_in(home, tmp_path, space, numbers())
    train_pair(ready)
    again = weights(ready)
    assert all(torch.equal(value, again[key]) for key, value in weights(trained).items())


def test_another_runs_checkpoint_is_refused(home, trained, space, tmp_path):
    folder = tmp_path / "other"
    ready_in(home, folder, space, numbers())
    (folder / "reading.safetensors").write_bytes((home / "reading.safetensors").read_bytes())
    config = dataclasses.replace(numbers(), seed=5)
    with pytest.raises(MismatchError, match="written by configuration"):
        train_pair(ready_in(home, folder, space, config))


def small(**changes):
    """One stage on the tiny space with V2's connector, whose heads no tensor tells."""
    config = dataclasses.replace(numbers(2, "llama-adapter-v2"), space="tiny", scenes=20, validation=0)
    return dataclasses.replace(config, **{"stages": config.stages[2:], **changes})


@pytest.fixture(scope="module")
def begun(tmp_path_factory, home):
    """A folder with a run of `small` that is done."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "tokenizer.model").symlink_to(home / "tokenizer.model")
    make_pair(small(), folder, AnswerSources(), folder / "pair", say=lambda line: None)
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": "tiny:1"}, r"data\.space is tiny:0@\w+ there, tiny:1@\w+ here"),
        ({"connector": dataclasses.replace(CONNECTORS["llama-adapter-v2"], heads=4)}, "heads is 2 there, 4 here"),
        ({"llama": dataclasses.replace(TINY, context_tokens=64)}, "context_tokens is 512 there, 64 here"),
        ({"llama": dataclasses.replace(TINY, heads=4)}, r"llama\.heads is 2 there, 4 here"),
    ],
)
def test_a_run_does_not_go_on_with_another_space_or_model(begun, tmp_path, changes, said):
    """Not even where every weight at the start is the same."""
    folder = tmp_path / "run"
    shutil.copytree(begun, folder, symlinks=True)
    before = (folder / "pair" / FILE).read_bytes()
    with pytest.raises(MismatchError, match=said):
        make_pair(small(**changes), folder, AnswerSources(), folder / "pair", say=lambda line: None)
    assert (folder / "pair" / FILE).read_bytes() == before


def test_two_runs_never_train_in_one_folder(begun, tmp_path):
    folder, refused = tmp_path / "run", []
    shutil.copytree(begun, folder, symlinks=True)

    def say(line):
        if "wrote" not in line and not refused:
            with pytest.raises(BindSearchError, match="another run trains there") as caught:
                make_pair(small(), folder, AnswerSources(), folder / "pair", say=print)
            refused.append(caught.value)

    make_pair(small(), folder, AnswerSources(), folder / "pair", say=say)
    assert len(refused) == 1


def test_other_lora_terms_at_the_start_are_another_stage(home, space, tmp_path):
    config = dataclasses.replace(numbers(2), connector=dataclasses.replace(CONNECTORS["imagebind-llm"], lora_rank=2))
    ready = ready_in(home, tmp_path, space, config)
    before = _stage(ready, config.stages[2], [dict]).facts
    with torch.no_grad():
        next(iter(ready.lora.parameters())).add_(1)
    after = _stage(ready, config.stages[2], [dict]).facts
    assert [name for name, _, _ in differences(before, after)] == ["start.lora"]


def test_a_run_begun_before_is_refused_in_plain_words(begun, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(begun, folder, symlinks=True)
    path = folder / "asking.safetensors"
    with safe_open(str(path), framework="pt") as file:
        notes = json.loads(file.metadata()["notes"])
    del notes["facts"]
    save_file(load_file(path), path, {"notes": json.dumps({**notes, "config": "0123456789ab"})})
    with pytest.raises(MismatchError, match=r"begun by an earlier bindsearch, which did not note what .* train this"):
        make_pair(small(), folder, AnswerSources(), folder / "pair", say=lambda line: None)


def test_only_answers_are_learned(trained):
    talk = _stage(trained, trained.config.stages[2], []).talk
    row, learned = talk.chat.row(talk.conversations[0].turns[:3])
    said = [turn.answer for turn in talk.conversations[0].turns[:3]]
    tokenizer = talk.chat.tokenizer
    parts, now = [], []
    for token, is_answer in zip(row, learned, strict=True):
        if is_answer and token == tokenizer.eos:
            parts.append(tokenizer.decode(now))
            now = []
        elif is_answer:
            now.append(token)
    assert parts == said and not now
    batch = draw_batch(talk, trained.config.stages[2], np.random.default_rng(0))
    kept = batch.labels != -100
    assert torch.equal(batch.labels[kept], batch.ids[kept]) and 0 < kept.float().mean() < 0.5
    assert batch.features is not None and float(batch.features.norm(dim=1).max()) < 3


@pytest.mark.parametrize("kind", sorted(CONNECTORS))
def test_the_loss_is_the_librarys_and_padding_does_not_count(home, space, tmp_path, kind):
    ready = ready_in(home, tmp_path, space, numbers(connector=kind))
    talk = _stage(ready, ready.config.stages[2], []).talk
    batch = draw_batch(talk, ready.config.stages[2], np.random.default_rng(1))
    with torch.no_grad():
        for parameter in ready.connector.parameters():  # no gate is shut
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        whole = answer_loss(ready.connection, batch)
        total = count = 0.0
        for row in range(len(batch.ids)):
            end = int((batch.labels[row] != -100).nonzero()[-1]) + 1
            ids, labels = batch.ids[row : row + 1, :end], batch.labels[row : row + 1, :end]
            alone = AnswerBatch(ids, labels, batch.features[row : row + 1])
            learned = int((labels != -100).sum())
            total, count = total + float(answer_loss(ready.connection, alone)) * learned, count + learned
            with ready.connection.inject(alone.features):
                inputs = ready.connection.inputs(ids, torch.ones_like(ids))
                theirs = ready.llama(**inputs, labels=labels).loss
            assert float(theirs) == pytest.approx(float(answer_loss(ready.connection, alone)), abs=1e-5)
    assert float(whole) == pytest.approx(total / count, abs=1e-5)


def test_a_batch_without_an_answer_teaches_nothing(trained):
    batch = draw_batch(
        _stage(trained, trained.config.stages[2], [dict]).talk, trained.config.stages[2], np.random.default_rng(0)
    )
    only_these_learn(trained.connection, {"connector": trained.connector})
    trained.connector.zero_grad()
    loss = answer_loss(trained.connection, dataclasses.replace(batch, labels=torch.full_like(batch.labels, -100)))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not any(one.grad is not None and one.grad.any() for one in trained.connector.parameters())
    trained.connector.requires_grad_(False)


@pytest.mark.parametrize("kind", sorted(CONNECTORS))
def test_every_connector_learns_and_what_is_frozen_stays(home, space, tmp_path, kind):
    config = numbers(3, kind, ("connector",))
    config = dataclasses.replace(config, stages=config.stages[1:], validation=0)
    ready = ready_in(home, tmp_path, space, config)
    before = {key: value.clone() for key, value in weights(ready).items()}
    train_pair(ready)
    moved = {key for key, value in weights(ready).items() if not torch.equal(value, before[key])}
    unused = {key for key in before if key.startswith("connector.gates.0") and kind == "llama-adapter-v2"}
    assert moved == {key for key in before if key.startswith("connector.")} - unused
    rows = ready.features(embed_scenes(space, "image", sample(split_seeds("test", 3))))
    assert len(answer_all(ready.connection, ready.chat, rows, ["What is it?"] * 3)) == 3


def test_norms_and_lora_can_be_trained_alone(home, space, tmp_path):
    config = numbers(2, trains=("norms", "lora"))
    config = dataclasses.replace(
        config, stages=config.stages[2:], validation=0, connector=dataclasses.replace(config.connector, lora_rank=2)
    )
    ready = ready_in(home, tmp_path, space, config)
    before = {key: value.clone() for key, value in weights(ready).items()}
    train_pair(ready)
    moved = {key for key, value in weights(ready).items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if key.startswith("llama.") and "norm" in key}
    assert ready.lora is not None and all(float(v.abs().sum()) > 0 for v in ready.lora.parameters())
    with pytest.raises(InputError, match="lora_rank"):
        bare = dataclasses.replace(config, connector=CONNECTORS["imagebind-llm"])
        train_pair(ready_in(home, tmp_path / "bare", space, bare))


def test_only_the_stages_parts_get_gradients(trained):
    stage = _stage(trained, trained.config.stages[1], [])
    only_these_learn(stage.connection, stage.parts)
    assert all(parameter.requires_grad for parameter in trained.connector.parameters())
    assert not any(parameter.requires_grad for parameter in trained.llama.parameters())


def test_measured_shares_are_over_scenes_that_have_the_attribute(trained, space):
    scenes = sample(split_seeds("validation", 12))
    rows = trained.features(embed_scenes(space, "image", scenes))
    figures = measure_answers(trained.connection, trained.chat, rows, scenes, ("subject", "place"))
    there = int((scenes.place >= 0).sum())
    assert set(figures) == {"subject", "place"} and there < 12
    assert abs(figures["place"] * there - round(figures["place"] * there)) < 0.01


@pytest.fixture(scope="module")
def pair(trained, home):
    output = home / "pair"
    report = make_pair(numbers(), home, AnswerSources(), output, say=lambda line: None)
    assert report["bytes"] == pair_bytes(output) and set(report["seconds"]) == {"reading", "captions", "asking"}
    return output


def test_the_pair_answers_as_what_was_trained(pair, trained, space):
    loaded = load_pair(pair)
    loaded.check_space(space.space_id)
    rows = embed_scenes(space, "image", sample(split_seeds("test", 4)))
    ids = torch.tensor([loaded.model.prompt("What is it?")] * 4)
    with trained.connection.inject(torch.from_numpy(rows)), torch.no_grad():
        ours = trained.llama(input_ids=ids).logits
    theirs = loaded.model.logits(rows, ids)
    assert float((ours - theirs).abs().max()) < 0.02 * float(ours.std())  # weights in float16
    assert read_manifest(pair).trained_on == ("image", "text")


def test_a_pair_of_adapter_v2_keeps_its_heads_and_is_asked(home, space, picture, tmp_path, capsys):
    config = numbers(2, "llama-adapter-v2")
    config = dataclasses.replace(config, stages=config.stages[2:], validation=0)
    share(home, tmp_path)
    make_pair(config, tmp_path, AnswerSources(), tmp_path / "pair", say=lambda line: None)
    loaded = load_pair(tmp_path / "pair").model
    assert loaded.connector.visual.heads == 2  # 16, the released files', divide 32 as well
    ask = ["ask", "What is it?", "--image", str(picture), "--pair", str(tmp_path / "pair"), "--max-new-tokens", "3"]
    assert run(ask) == 0
    rows = np.random.default_rng(0).standard_normal((20, space.dim)).astype(np.float32)
    moved = VisualCache.of_vectors(rows).enhance(embed_scenes(space, "image", sample(split_seeds("test", 1))))
    assert isinstance(loaded.answer(moved, "What is it?", sampling=Sampling(3)), str)
    with pytest.raises(InputError, match=r"3 heads do not divide the visual path's width of 32"):
        three = dataclasses.replace(config, connector=dataclasses.replace(config.connector, heads=3))
        ready_in(home, tmp_path / "three", space, three)


@pytest.fixture(scope="module")
def grouped(home, tmp_path_factory):
    """A Llama of two query heads and one key head that exists, with an inner width and head size of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("grouped")
    pieces = Tokenizer(home / "tokenizer.model").size
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": pieces, "head_dim": 8}
    save_llama(LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)), folder, torch.half)
    (folder / "tokenizer.model").write_bytes((home / "tokenizer.model").read_bytes())
    return folder


@pytest.mark.parametrize("own", ["new", "grouped"])
@pytest.mark.parametrize("kind", sorted(CONNECTORS))
def test_a_pair_with_lora_answers_as_what_was_trained(home, space, grouped, tmp_path, kind, own):
    connector = dataclasses.replace(CONNECTORS[kind], lora_rank=2)
    config = numbers(4, kind, ("connector", "norms", "lora"))
    config = dataclasses.replace(config, stages=config.stages[2:], validation=0, connector=connector)
    share(home, tmp_path)
    sources = AnswerSources(llama=grouped if own == "grouped" else None)
    ready = prepare_run(config, tmp_path, space, sources, lambda line: None)
    train_pair(ready)
    write_pair(ready, tmp_path / "pair")
    loaded = load_pair(tmp_path / "pair").model
    rows = torch.from_numpy(embed_scenes(space, "image", sample(split_seeds("test", 2))))
    ids = torch.tensor([loaded.prompt("What is it?")] * 2)
    assert ids[0].tolist() == ready.chat.prompt((), "What is it?") == loaded.chat().prompt((), "What is it?")
    ours, theirs = scores(ready.connection, rows, ids), scores(loaded.connection, rows, ids)
    assert float((ours - theirs).abs().max()) < 0.02 * float(ours.std())  # weights in float16
    ready.lora.detach()
    assert float((ours - scores(ready.connection, rows, ids)).abs().max()) > 0.1 * float(ours.std())
    assert len(loaded.answers(rows, ["What is it?"] * 2, sampling=Sampling(3))) == 2


def test_a_pair_of_llava_is_asked_in_the_prompts_it_was_taught(home, space, picture, tmp_path, capsys):
    config = numbers(2, "llava")
    config = dataclasses.replace(config, stages=config.stages[2:], validation=0)
    share(home, tmp_path)
    folder = tmp_path / "pair"
    report = make_pair(config, tmp_path, AnswerSources(), folder, say=lambda line: None)
    assert report["space_id"] == space.space_id and read_manifest(folder).prompts == "alpaca"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {FILE, *read_manifest(folder).files}
    ask = ["ask", "What is it?", "--image", str(picture), "--pair", str(folder), "--json", "--max-new-tokens", "4"]
    assert run(ask) == 0
    said = json.loads(capsys.readouterr().out)["answers"][0]["answer"]
    model = load_pair(folder).model
    row = load_space("bindsearch-mini").embed("image", [picture])
    assert said == model.answer(row, "What is it?", sampling=Sampling(4, 0.0))
    assert load_projector(folder / ADAPTER).width == 32
    with pytest.raises(WeightsError, match=r"LLaVA projector: of a pair it is read with llm.load_pair"):
        load(folder / ADAPTER, folder / "llama")
    facts = json.loads((folder / FILE).read_text(encoding="utf-8"))
    (folder / FILE).write_text(json.dumps(facts | {"prompts": "llava"}), encoding="utf-8")
    other = load_pair(folder).model
    assert "USER:" in other.tokenizer.decode([token for token in other.prompt("What?") if token >= 0])
    (folder / FILE).write_text(json.dumps(facts | {"prompts": "chatml"}), encoding="utf-8")
    with pytest.raises(UnknownNameError, match="prompts 'chatml'"):
        load_pair(folder)


def test_a_pair_finds_its_space_from_every_folder(home, tmp_path, monkeypatch):
    config = dataclasses.replace(numbers(), space="./bindsearch-mini")
    folder = bundled_folder("bindsearch-mini")
    monkeypatch.chdir(folder.parent)
    written = write_pair(ready_in(home, tmp_path, load_space(config.space), config), tmp_path / "pair")
    assert written.space == read_manifest(tmp_path / "pair").space == str(folder)
    named = dataclasses.replace(config, space="bindsearch-mini")
    monkeypatch.chdir(tmp_path)
    assert write_pair(ready_in(home, tmp_path, load_space(named.space), named), tmp_path / "own").space == named.space


def test_a_pair_of_llava_that_is_not_whole_is_refused(home, space, tmp_path):
    config = numbers(2, "llava", ("connector", "norms"))
    config = dataclasses.replace(config, stages=config.stages[2:], validation=0)
    ready = ready_in(home, tmp_path, space, config)
    write_pair(ready, tmp_path / "pair")
    state = load_file(tmp_path / "pair" / ADAPTER)
    for change, words in (
        ({"llama.norm.weight": None}, r"1 missing: llama\.norm\.weight"),
        ({"surprise": torch.zeros(1)}, "1 unexpected: surprise"),
        ({"mm_projector.0.bias": torch.full((32,), torch.nan)}, "1 tensors hold NaN or infinite values"),
    ):
        changed = {key: value for key, value in (state | change).items() if value is not None}
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(WeightsError, match=words):
            load_llava_pair(tmp_path / "changed.safetensors", tmp_path / "pair" / "llama", "alpaca")


def scores(connection, rows, ids):
    with connection.inject(rows), torch.no_grad():
        return connection.llama(**connection.inputs(ids, torch.ones_like(ids))).logits


def test_pairs_that_are_not_whole_are_refused(pair, tmp_path, space):
    with pytest.raises(MismatchError, match="bindsearch-mini@"):
        load_pair(pair).check_space("other@123")
    with pytest.raises(MissingInputError, match=r"pair\.json"):
        load_pair(tmp_path)
    for name in ("pair.json", "adapter.safetensors"):
        (tmp_path / name).write_bytes((pair / name).read_bytes())
    with pytest.raises(WeightsError, match=r"llama/.*missing"):
        load_pair(tmp_path)
    (tmp_path / "adapter.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(WeightsError, match=r"adapter\.safetensors: expected SHA-256"):
        load_pair(tmp_path)
    (tmp_path / "pair.json").write_text("{}", encoding="utf-8")
    with pytest.raises(WeightsError, match="expected format"):
        load_pair(tmp_path)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.fromarray(render_images(sample(split_seeds("test", 1)), 64)[0]).save(path)
    return path


def test_ask_prints_the_answer_and_nothing_else(pair, picture, capsys):
    assert run(["ask", "What is it?", "--image", str(picture), "--pair", str(pair), "--max-new-tokens", "5"]) == 0
    plain, said = capsys.readouterr()
    assert re.search(r"^\(answered in \d+\.\d s, loading not counted\)$", said, re.MULTILINE)
    asked = ["ask", "What is it?", "--image", f"{picture}@0.5", "--pair", str(pair), "--json", "--max-new-tokens", "5"]
    assert run(asked) == 0
    answer = json.loads(capsys.readouterr().out)
    assert plain.strip() == answer["answers"][0]["answer"]  # one term: its weight cancels
    assert answer["terms"] == [{"modality": "image", "what": str(picture), "weight": 0.5}] and answer["cached"] == []


def test_ask_takes_every_dtype_that_its_help_names(pair, picture, capsys, monkeypatch):
    taken = []
    monkeypatch.setattr(
        "bindsearch.llm.pair.load_pair", lambda folder, *how: taken.append(how) or load_pair(folder, *how)
    )
    asked = ["ask", "What is it?", "--image", str(picture), "--pair", str(pair), "--max-new-tokens", "2"]
    for dtype in ("auto", "fp32", "bf16", "float64", "fast"):
        assert run([*asked, "--dtype", dtype]) == 0, (dtype, capsys.readouterr().err)
    fast = find_dtype("fast", torch.device("cpu"))
    assert [how[0] for how in taken] == ["float32", "float32", "bfloat16", "float64", fast]
    monkeypatch.setenv("BINDSEARCH_DTYPE", "bf16")
    assert run(asked) == 0 and taken[-1][0] == "bfloat16"
    capsys.readouterr()
    assert run([*asked, "--dtype", "float8"]) == 2
    assert "Unknown dtype 'float8'" in capsys.readouterr().err and len(taken) == 6


def test_a_line_that_is_not_utf8_does_not_end_a_chat(pair, picture, capsys, monkeypatch):
    typed = io.TextIOWrapper(io.BytesIO(b"What colo\xffr?\nHow many?\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", typed)
    asked = ["ask", "--image", str(picture), "--pair", str(pair), "--max-new-tokens", "2"]
    assert run([*asked, "--chat", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [one["question"] for one in json.loads(out)["answers"]] == ["How many?"]
    assert r"'What colo\udcffr?': not in UTF-8. Type it again." in err
    assert run([*asked, "What colo\udcffr?"]) == 2
    assert "not in UTF-8" in capsys.readouterr().err


def test_seeds_have_64_bits(pair, picture, capsys):
    asked = ["ask", "What is it?", "--image", str(picture), "--pair", str(pair), "--max-new-tokens", "2"]
    drawn = [*asked, "--temperature", "1", "--seed"]
    assert run([*drawn, str(2**64 - 1)]) == 0
    assert run([*drawn, str(2**64)]) == 2
    assert f"up to {2**64 - 1}, got {2**64}" in capsys.readouterr().err


def test_ask_says_which_device_is_not_there(pair, picture, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked = ["ask", "What is it?", "--image", str(picture), "--pair", str(pair), "--max-new-tokens", "2"]
    for device, said in (("cuda", "sees no GPU here. Use --device cpu"), ("tpu7", "unknown device 'tpu7'")):
        assert run([*asked, "--device", device]) == 2
        assert said in capsys.readouterr().err


def test_chat_reads_the_turns_before(pair, picture, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What colour is it?\n\nHow many are there?\n"))
    assert run(["ask", "What is it?", "--chat", "--image", str(picture), "--pair", str(pair), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [one["question"] for one in answers] == ["What is it?", "What colour is it?", "How many are there?"]
    model = load_pair(pair).model
    from bindsearch.llm.conversations import Chat

    chat = Chat(model.tokenizer)
    turns = [Turn(one["question"], one["answer"]) for one in answers[:1]]
    prompt = chat.prompt(turns, "What colour is it?")
    alone = chat.prompt((), "What colour is it?")
    assert len(prompt) > len(alone) and prompt[0] == alone[0] == model.tokenizer.bos
    assert prompt.count(model.tokenizer.eos) == 1
    assert len(chat.prompt(turns * 200, "What colour is it?")) <= 256


def test_a_question_that_is_too_long_does_not_end_a_chat(pair, picture, capsys, monkeypatch, tmp_path):
    long = " ".join(f"word{n}" for n in range(600))
    asked = ["ask", "--image", str(picture), "--pair", str(pair), "--max-new-tokens", "2"]
    for words, sheet in (([], "one.png"), (["--json"], "two.png")):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"What is it?\n{long}\nHow many?\n"))
        assert run([*asked, "--chat", *words, "--sheet", str(tmp_path / sheet)]) == 4
        out, err = capsys.readouterr()
        assert "word1" in err and "no room for an answer. Shorten the question." in err
        assert "error: 1 of 3 questions were not answered." in err and (tmp_path / sheet).is_file()
        if words:
            assert [one["question"] for one in json.loads(out)["answers"]] == ["What is it?", "How many?"]
        else:
            assert len(out.splitlines()) == 2
    assert run([*asked, long]) == 2
    assert "Shorten the question." in capsys.readouterr().err


def test_ask_says_what_is_missing(pair, picture, capsys, monkeypatch):
    assert run(["ask", "What is it?", "--pair", str(pair)]) == 2
    assert "--image, --audio" in capsys.readouterr().err
    assert run(["ask", "--image", str(picture)]) == 2
    assert "No question" in capsys.readouterr().err
    both = ["ask", "What?", "--image", str(picture), "--pair", str(pair), "--cache", "x", "--no-cache"]
    assert run(both) == 2
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    capsys.readouterr()
    assert run(["ask", "What is it?", "--image", str(picture), "--pair", str(pair)]) == 2
    said = capsys.readouterr().err.strip()
    assert "pip install 'bindsearch[llm]'" in said and len(said.splitlines()) == 1
    with pytest.raises(MissingExtraError):
        load_pair(pair)


def test_a_users_own_llama_and_conversations(pair, picture, tmp_path, capsys):
    data = [
        Conversation(str(n), (Turn("What is it?", "A kite."), Turn("Sure?", "Yes.")), picture.name) for n in range(3)
    ]
    path = picture.parent / "talk.json"
    write_conversations(path, [*data, Conversation("text", (Turn("Hi", "Hello."),))])
    config = tmp_path / "run.json"
    stage = {"name": "own", "task": "instructions", "steps": 2, "batch": 2, "trains": ["connector", "norms"]}
    config.write_text(json.dumps({"connector": {"hidden": 16}, "stages": [stage]}), encoding="utf-8")
    llama, output = pair / "llama", tmp_path / "out"
    before = {file.name: file.read_bytes() for file in llama.iterdir()}
    told = ["train-llm", "-o", str(output), "--config", str(config), "--llama", str(llama), "--data", str(path)]
    assert run([*told, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pair"] == str(output / "pair")
    assert {file.name: file.read_bytes() for file in llama.iterdir()} == before
    assert not (output / "pair" / "llama").exists()
    answer = ["ask", "What is it?", "--image", str(picture), "--pair", str(output / "pair"), "--max-new-tokens", "3"]
    assert run(answer) == 0
    assert run([*told, "--stage", "none"]) == 2
    assert "'none'" in capsys.readouterr().err


def test_conversations_whose_question_fills_the_context_are_left_out(pair, picture, tmp_path, capsys):
    def asking(n, question):
        return Conversation(f"c{n}", (Turn(question, "A kite."), Turn("Sure?", "Yes.")), picture.name)

    path, config, output = picture.parent / "long.json", tmp_path / "run.json", tmp_path / "out"
    stage = {"name": "own", "task": "instructions", "steps": 2, "batch": 2, "trains": ["connector"]}
    config.write_text(json.dumps({"connector": {"hidden": 16}, "stages": [stage]}), encoding="utf-8")
    told = ["train-llm", "--config", str(config), "--llama", str(pair / "llama"), "--data", str(path)]
    long = " ".join(f"word{n}" for n in range(600))
    write_conversations(path, [asking(0, "What?"), asking(1, long), asking(2, long), asking(3, "What is it?")])
    assert run([*told, "-o", str(output)]) == 0
    said = capsys.readouterr().err
    assert "2 of 4 conversations ask more than the context of 512 tokens holds" in said and "id 'c1'" in said
    write_conversations(path, [asking(1, long)])
    assert run([*told, "-o", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "1 of 1 conversations" in said and "Shorten the questions." in said
    assert not (tmp_path / "none" / "own.safetensors").exists()


def test_a_llama_that_exists_is_not_trained(pair, tmp_path, capsys):
    config = tmp_path / "run.json"
    stage = {"name": "own", "task": "instructions", "steps": 1, "trains": ["connector", "llama"]}
    config.write_text(json.dumps({"stages": [stage]}), encoding="utf-8")
    llama, output = pair / "llama", tmp_path / "out"
    assert run(["train-llm", "-o", str(output), "--config", str(config), "--llama", str(llama)]) == 2
    said = capsys.readouterr().err
    assert f"stage own: trains llama, but {llama} stays as it is" in said
    assert '"trains": ["connector", "norms", "lora"] with "lora_rank": 16' in said
    assert not (output / "pair").exists()


def test_a_connector_is_trained_for_a_large_llama_kept_in_bfloat16(pair, home, tmp_path, monkeypatch):
    monkeypatch.setattr("bindsearch.train.answer_run._LARGE_BYTES", 0)
    config = numbers(2, trains=("connector", "norms"))
    config = dataclasses.replace(config, stages=config.stages[2:], validation=0)
    share(home, tmp_path)
    make_pair(config, tmp_path, AnswerSources(llama=pair / "llama"), tmp_path / "own", say=lambda line: None)
    assert load_pair(tmp_path / "own").model.base is not None  # recorded with the connector, and compared


def test_the_pages_lines_about_the_pair_run(pair, picture, monkeypatch, capsys):
    page = (Path(__file__).parent.parent / "docs" / "llm.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```py\n(.*?)```", page, flags=re.DOTALL)
    (picture.parent / "street.jpg").write_bytes(picture.read_bytes())
    monkeypatch.chdir(picture.parent)
    monkeypatch.setattr("bindsearch.llm.pair.BUNDLED", pair)
    names: dict[str, object] = {}
    exec(block, names)
    assert len(names["talk"].turns) == 2 and names["talk"].turns[0].answer in capsys.readouterr().out


def test_embeddings_are_made_once(space, tmp_path):
    names = [f"world:{n},kind=mixed#image" for n in range(5)]
    lines: list[str] = []
    first = named_rows(space, tmp_path, names, lines.append)
    again = named_rows(space, tmp_path, names, lines.append)
    assert len(lines) == 1 and first.dtype == np.float16 and np.array_equal(first, again)
    expected = embed_scenes(space, "image", sample(split_seeds("train", 5), "mixed"))
    assert np.abs(first.astype(np.float32) - expected).max() < 1e-3


def test_a_picture_that_was_replaced_is_embedded_anew(space, tmp_path):
    """Also one of the same size in bytes; what is beside it need not be files."""
    path, lines = tmp_path / "a.ppm", []
    names = [str(path), "world:3,kind=mixed#image"]
    rows = []
    for colour in ("red", "blue", "blue"):
        if len(rows) < 2:
            Image.new("RGB", (64, 64), colour).save(path)
            os.utime(path, (1e9 + len(rows), 1e9 + len(rows)))
        rows.append(named_rows(space, tmp_path / "embeddings", names, lines.append))
    fresh = space.embed("image", [path])[0]
    assert len(lines) == 2 and np.array_equal(rows[1], rows[2])
    assert np.abs(rows[1][0].astype(np.float32) - fresh).max() < 1e-3 < np.abs(rows[0][0] - rows[1][0]).max()
    assert np.array_equal(rows[0][1], rows[1][1])
    named_rows(space.with_preset({"image": "reference"}), tmp_path / "embeddings", names, lines.append)
    assert len(lines) == 3


class Counted:
    """A space that notes which pictures it embeds, and may be stopped at one."""

    def __init__(self, space, stop=None):
        self.space, self.stop, self.seen = space, stop, []

    def __getattr__(self, name):
        return getattr(self.space, name)

    def embed(self, modality, sources):
        if self.stop in sources:
            raise KeyboardInterrupt
        rows = self.space.embed(modality, sources)
        self.seen += sources
        return rows


def test_pictures_are_kept_shard_by_shard_each_once(space, tmp_path, monkeypatch):
    """A kill loses the shard in hand, another picture the shard that it is in, and no name is embedded twice."""
    monkeypatch.setattr("bindsearch.train.picture_rows._BLOCK", 2)
    names = [str(tmp_path / f"{number}.ppm") for number in range(5)]
    for number, name in enumerate(names):
        Image.new("RGB", (64, 64), (40 * number, 90, 200)).save(name)
    first = Counted(space, stop=names[4])
    with pytest.raises(KeyboardInterrupt):
        named_rows(first, tmp_path / "embeddings", names * 3, lambda line: None)
    assert first.seen == names[:4]
    second = Counted(space)
    rows = named_rows(second, tmp_path / "embeddings", names * 3, lambda line: None)
    assert second.seen == names[4:] and len(rows) == 15 and np.array_equal(rows[:5], rows[10:])
    Image.new("RGB", (64, 64), "red").save(names[3])
    os.utime(names[3], (1e9, 1e9))
    third = Counted(space)
    named_rows(third, tmp_path / "embeddings", names, lambda line: None)
    assert third.seen == names[2:4]


def test_pictures_that_cannot_be_read_are_told_and_tried_again(space, tmp_path):
    names = [str(tmp_path / f"{number}.ppm") for number in range(4)]
    for name in names[::2]:
        Image.new("RGB", (64, 64), "red").save(name)
    Path(names[1]).write_bytes(b"no 64 64 255 " + bytes(64 * 64 * 3))
    found = read_pictures(space, tmp_path / "embeddings", names, lambda line: None)
    assert list(found.bad) == names[1::2] and list(found.places) == names[::2]
    assert np.isfinite(found.rows).all() and "no such file" in found.bad[names[3]]
    with pytest.raises(DecodeError, match=re.escape(names[1])):
        named_rows(space, tmp_path / "embeddings", names, lambda line: None)
    facts = Path(names[1]).stat()
    Path(names[1]).write_bytes(b"P6 64 64 255 " + bytes(64 * 64 * 3))
    os.utime(names[1], ns=(facts.st_atime_ns, facts.st_mtime_ns))  # the shard is that of before, as its name says
    again = Counted(space)
    found = read_pictures(again, tmp_path / "embeddings", names, lambda line: None)
    assert again.seen == [names[1]] and list(found.bad) == [names[3]]
    assert np.abs(found.of([names[1]])[0] - space.embed("image", [names[1]])[0]).max() < 1e-3


def test_conversations_whose_picture_cannot_be_read_are_left_out(pair, picture, tmp_path, capsys):
    data, config, output = tmp_path / "talk.json", tmp_path / "run.json", tmp_path / "out"
    (tmp_path / "good.png").write_bytes(picture.read_bytes())
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:60])
    stage = {"name": "own", "task": "instructions", "steps": 2, "batch": 2, "trains": ["connector"]}
    config.write_text(json.dumps({"connector": {"hidden": 16}, "stages": [stage]}), encoding="utf-8")
    told = ["train-llm", "-o", str(output), "--config", str(config), "--llama", str(pair / "llama")]
    told += ["--data", str(data)]

    def write(*names):
        talk = [Conversation(str(n), (Turn("What?", "A kite."),), name) for n, name in enumerate(names)]
        write_conversations(data, talk)

    write("broken.png", "gone.png")
    assert run(told) == 3
    said = capsys.readouterr().err
    assert "2 of 2 pictures cannot be read" in said and str(output / "bad.jsonl") in said
    write("good.png", "broken.png", "good.png", "broken.png")
    assert run(told) == 0
    said = capsys.readouterr().err
    assert "1 of 2 pictures cannot be read, 2 conversations are left out" in said and "broken.png" in said
    (line,) = (output / "bad.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["image"] == str(tmp_path / "broken.png") and json.loads(line)["reason"]
    assert (output / "pair" / "pair.json").is_file()
    (output / "own.safetensors").unlink()
    (tmp_path / "broken.png").write_bytes(picture.read_bytes())
    assert run(told) == 0
    assert not (output / "bad.jsonl").exists()


def test_a_run_does_not_go_on_with_other_pictures(pair, tmp_path, capsys):
    path, data, config = tmp_path / "a.ppm", tmp_path / "talk.json", tmp_path / "run.json"
    Image.new("RGB", (64, 64), "red").save(path)
    write_conversations(data, [Conversation(str(n), (Turn("What is it?", "A kite."),), path.name) for n in range(3)])
    stage = {"name": "own", "task": "instructions", "steps": 2, "batch": 2, "trains": ["connector"]}
    config.write_text(json.dumps({"connector": {"hidden": 16}, "stages": [stage]}), encoding="utf-8")
    output = tmp_path / "out"
    told = [
        "train-llm",
        "-o",
        str(output),
        "--config",
        str(config),
        "--llama",
        str(pair / "llama"),
        "--data",
        str(data),
    ]
    assert run(told) == 0
    os.utime(path, (1e9, 1e9))  # the same picture, copied: embedded again, to the same rows
    capsys.readouterr()
    assert run(told) == 0
    assert "own: done before" in capsys.readouterr().err
    Image.new("RGB", (64, 64), "blue").save(path)
    assert run(told) == 5
    said = capsys.readouterr().err
    assert "own.safetensors: written by configuration" in said and "remove the file to train this stage again" in said
    (output / "own.safetensors").unlink()
    assert run(told) == 0


def test_packaged_numbers_can_be_read():
    config = read_run_config(None, seed=4)
    assert config.seed == 4 and [stage.task for stage in config.stages] == ["reading", "captions", "instructions"]
    own = read_run_config(None, llama=True, data=True)
    assert [stage.task for stage in own.stages] == ["instructions"] and "llama" not in own.stages[0].trains
    with pytest.raises(MissingInputError):
        load_answer_config("nowhere.json")
    with pytest.raises(InputError, match="shortest"):
        AnswerStageConfig("x", "captions", 1, shortest=0.0)
