"""LLaVA's connector: projectors and the splice against the reference's figures, files, a stock Llama."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import golden_llm as golden
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bindsearch.errors import (
    InputError,
    MismatchError,
    MissingInputError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
    WeightsError,
)
from bindsearch.llm import llava
from bindsearch.llm.llava import IGNORED, IMAGE_ID, LlavaConnector, SpliceRules, build_projector, splice, tokenize
from bindsearch.llm.llava_files import connector_of, load_projector, merge_lora, split_state
from bindsearch.llm.llava_tiles import best_resolution, crop_padding, merge_tiles

FILE = Path(__file__).parent / "golden" / "imagebind_llm" / "llava_splice.safetensors"
G = load_file(FILE)
with safe_open(FILE, "pt") as opened:
    CASES = json.loads(opened.metadata()["cases"])
TILE_PX = 28


@pytest.fixture(scope="module")
def connector():
    state = {key.removeprefix("splice."): value for key, value in G.items() if key.startswith("splice.")}
    return connector_of(split_state({**state, "image_newline": G["newline"]}, "golden"), "golden")


def embed(ids):
    return G["embed"][ids]


def features_of(name, connector):
    """What the vision tower's stand-in gives: one view of 4 tokens a picture or tile, projected."""
    config, sizes = CASES[name]["cfg"], CASES[name]["sizes"]
    if f"{name}.images" in G:
        return list(connector(G[f"{name}.images"][:, 0]))
    tiles = [G[f"{name}.image.{number}"] for number in range(9) if f"{name}.image.{number}" in G]
    return [
        merge_tiles(
            connector(each[:, 0]),
            config["mm_patch_merge_type"],
            None if sizes is None else tuple(sizes[number]),
            [tuple(each) for each in config.get("image_grid_pinpoints", [])],
            TILE_PX,
            connector.image_newline,
        )
        for number, each in enumerate(tiles)
    ]


def spliced(name, connector, **changes):
    case = CASES[name]
    config = case["cfg"]
    rules = SpliceRules(config.get("tokenizer_padding_side", "right"), config.get("tokenizer_model_max_length"))
    arguments = {
        "mask": G[f"{name}.attention_mask_in"] if case["mask_given"] else None,
        "labels": G[f"{name}.labels_in"] if case["labels_given"] else None,
        "rules": rules,
        **changes,
    }
    with torch.no_grad():
        return splice(G[f"{name}.input_ids"], features_of(name, connector), embed, **arguments)


# ---- the reference's figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu", "mlp3x_gelu", "identity"])
def test_projectors(kind):
    prefix = f"proj.{kind}.sd."
    state = {key.removeprefix(prefix): value for key, value in G.items() if key.startswith(prefix)}
    if kind == "identity":
        projector = build_projector("identity", 32, 32)
    else:
        connector = connector_of(split_state(state, "golden"), "golden")
        assert (connector.kind, connector.dim, connector.width) == (kind, 32, 24)
        projector = connector.mm_projector
    with torch.no_grad():
        torch.testing.assert_close(projector(G["proj.input"]), G[f"proj.{kind}.out"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", list(CASES))
def test_splices(name, connector):
    found = spliced(name, connector)
    torch.testing.assert_close(found.embeddings, G[f"{name}.embeds"], atol=2e-6, rtol=0)
    for what, value in (("labels", found.labels), ("attention_mask", found.mask)):
        if what in CASES[name]["returns_none"]:
            assert value is None
        else:
            assert torch.equal(value, G[f"{name}.{what}"])
    assert found.positions is None
    assert "position_ids" in CASES[name]["returns_none"]


def test_all_eight_cases_are_there():
    assert len(CASES) == 8


def test_positions_count_what_is_no_padding(connector):
    found = spliced("left_pad", connector, positions=torch.zeros(1))
    assert found.positions.tolist()[1] == [0, 0, 0, 1, 2, 3, 4, 5, 6]
    assert found.positions.tolist()[0] == list(range(9))


# ---- wrong variants must fail the figures ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("left_pad", {"rules": SpliceRules("right")}),
        ("right_pad", {"rules": SpliceRules("left")}),
        ("truncate", {"rules": SpliceRules("right", 7)}),
        ("right_pad", {"mask": None}),
        ("no_image_and_two", {"mask": None}),
    ],
)
def test_wrong_rules_miss_the_figures(name, wrong, connector):
    found = spliced(name, connector, **wrong)
    expected = G[f"{name}.embeds"]
    assert found.embeddings.shape != expected.shape or not torch.allclose(found.embeddings, expected, atol=1e-3)


def test_wrong_tiles_miss_the_figures(connector):
    tiles = connector(G["list_spatial.image.0"][:, 0]).detach()
    shown = G["list_spatial.embeds"][0, 2:14]
    sizes, grids = (56, 28), [(56, 28), (28, 56)]
    assert torch.allclose(merge_tiles(tiles, "spatial", sizes, grids, TILE_PX), shown, atol=2e-6)
    assert not torch.allclose(merge_tiles(tiles, "flat"), shown, atol=1e-3)
    assert not torch.allclose(merge_tiles(tiles, "spatial", sizes, [(28, 56)], TILE_PX), shown, atol=1e-3)
    assert not torch.allclose(merge_tiles(tiles[[0, 2, 1]], "spatial", sizes, grids, TILE_PX), shown, atol=1e-3)


def test_labels_of_features_are_ignored_and_text_keeps_its_own(connector):
    found = spliced("right_pad", connector)
    assert (found.labels[0, 2:6] == IGNORED).all()
    assert found.labels[0, 6:].tolist() == [6, 7, 8]


# ---- properties ------------------------------------------------------------------------------------------------------


def test_a_batch_is_its_rows(connector):
    name = "right_pad"
    whole = spliced(name, connector)
    features = features_of(name, connector)
    for row in range(3):
        with torch.no_grad():
            alone = splice(
                G[f"{name}.input_ids"][[row]], features[row : row + 1], embed, G[f"{name}.attention_mask_in"][[row]]
            )
        torch.testing.assert_close(alone.embeddings[0], whole.embeddings[row, : alone.embeddings.shape[1]])


def test_gradients_reach_the_projector_alone(connector):
    features = list(connector(G["right_pad.images"][:, 0]))
    splice(G["right_pad.input_ids"], features, embed, G["right_pad.attention_mask_in"]).embeddings.sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in connector.mm_projector.parameters())


def test_inputs_stay_as_they_are(connector):
    before = {key: value.clone() for key, value in G.items()}
    spliced("truncate", connector)
    assert all(torch.equal(before[key], G[key]) for key in G)


def test_tokenize_keeps_one_bos():
    def encode(text):
        return [1, *(ord(letter) for letter in text)]

    assert tokenize("a<image>b<image>", encode) == [1, 97, IMAGE_ID, 98, IMAGE_ID]
    assert tokenize("<image>b", encode) == [1, IMAGE_ID, 98]
    assert tokenize("ab", encode) == [1, 97, 98]
    assert tokenize("a<image>b", lambda text: [ord(letter) for letter in text], None) == [97, IMAGE_ID, 98]


@pytest.mark.parametrize(
    ("original", "expected"), [((100, 40), (56, 28)), ((40, 100), (28, 56)), ((28, 28), (28, 56)), ((56, 20), (56, 28))]
)
def test_canvases(original, expected):
    grids = [(28, 56), (56, 28)]
    assert best_resolution(original, grids) == expected


def test_padding_is_cropped_on_both_sides():
    features = torch.arange(6 * 4).reshape(1, 6, 4)
    assert crop_padding(features, (4, 2)).tolist() == features[:, 2:4].tolist()
    assert crop_padding(features.transpose(1, 2), (2, 4)).shape == (1, 4, 2)
    assert torch.equal(crop_padding(features, (4, 6)), features)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_wrong_counts_and_shapes_are_refused(connector):
    ids, features = G["right_pad.input_ids"], features_of("right_pad", connector)
    with pytest.raises(InputError, match=r"the rows take 3 images.*got 2"):
        splice(ids, features[:2], embed)
    with pytest.raises(ShapeError, match=r"\(any, 24\), got \(4, 23\)"):
        splice(ids, [each[:, :23] for each in features], embed)
    with pytest.raises(ShapeError, match="splice: ids"):
        splice(ids, features, embed, labels=ids[:, :3])
    with pytest.raises(InputError, match="padding_side"):
        SpliceRules("middle")
    with pytest.raises(UnknownNameError, match="mlp2x_gelu"):
        build_projector("mlp2x_relu", 4, 4)
    with pytest.raises(MismatchError, match="identity"):
        build_projector("identity", 4, 5)


def test_tiles_that_do_not_fit_are_refused():
    tiles = torch.zeros(3, 4, 8)
    for arguments, words in (
        (("diagonal",), "flat, spatial or spatial_unpad"),
        (("spatial",), "no canvases"),
        (("spatial_unpad", (56, 28), [(56, 28)], TILE_PX), "image_newline"),
        (("spatial", (56, 28), [(84, 28)], TILE_PX), "3 x 1 tiles, got 2"),
    ):
        with pytest.raises(InputError, match=words):
            merge_tiles(tiles, *arguments)
    with pytest.raises(ShapeError, match="square"):
        merge_tiles(torch.zeros(3, 5, 8), "spatial", (56, 28), [(56, 28)], TILE_PX)


# ---- files -----------------------------------------------------------------------------------------------------------


def projector_state(prefix=""):
    return {f"{prefix}{key.removeprefix('splice.')}": value for key, value in G.items() if key.startswith("splice.")}


@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model.model."])
def test_projector_files(tmp_path, prefix, connector):
    state = {
        **projector_state(prefix),
        f"{prefix}image_newline": G["newline"],
        f"{prefix}embed_tokens.weight": G["embed"],
    }
    torch.save(state, tmp_path / llava_name(prefix))
    found = load_projector(tmp_path)
    for name, value in connector.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    assert set(split_state(state, "x").others) == {"embed_tokens.weight"}
    halves = {key: value.half() for key, value in state.items()}
    save_file(halves, tmp_path / "p.safetensors")
    assert load_projector(tmp_path / "p.safetensors").mm_projector[0].weight.dtype == torch.float32


def llava_name(prefix):
    return "non_lora_trainables.bin" if prefix.startswith("base") else "mm_projector.bin"


def test_other_files_are_refused(tmp_path):
    with pytest.raises(MissingInputError, match=r"mm_projector\.bin"):
        load_projector(tmp_path)
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(print))
    with pytest.raises(WeightsError):
        load_projector(tmp_path / "evil.bin")
    torch.save({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "other.bin")
    with pytest.raises(WeightsError, match="no mm_projector in it, but lm_head"):
        load_projector(tmp_path / "other.bin")
    broken = projector_state()
    broken["mm_projector.2.weight"] = torch.zeros(24, 23)
    torch.save(broken, tmp_path / "broken.bin")
    with pytest.raises(WeightsError, match=r"2\.weight \(24, 23\)"):
        load_projector(tmp_path / "broken.bin")


@pytest.fixture
def llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def write_lora(folder, llama, rank=4, alpha=8, **config):
    names = [name.removesuffix(".weight") for name, _ in llama.named_parameters() if "_proj." in name]
    torch.manual_seed(1)
    state = {}
    for name in names:
        out, wide = llama.get_parameter(f"{name}.weight").shape
        state[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, wide) / 8
        state[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, rank) / 8
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"r": rank, "lora_alpha": alpha, **config}), encoding="utf-8"
    )
    return state


def test_lora_is_merged_with_its_scale(tmp_path, llama):
    state = write_lora(tmp_path, llama)
    x = torch.randn(3, 24)
    name = "model.layers.1.self_attn.v_proj"
    with torch.no_grad():
        before = llama.get_submodule(name)(x)
        side = x @ state[f"base_model.model.{name}.lora_A.weight"].T @ state[f"base_model.model.{name}.lora_B.weight"].T
        assert merge_lora(llama, tmp_path) == 14
        torch.testing.assert_close(llama.get_submodule(name)(x), before + 2 * side, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_lora_of_several_ranks_and_scales(tmp_path, llama, rslora):
    state = write_lora(tmp_path, llama, rank=4, alpha=8)
    config = {"r": 4, "lora_alpha": 8, "use_rslora": rslora}
    config["rank_pattern"] = {"v_proj": 2}
    config["alpha_pattern"] = {r"layers\.1\..*q_proj": 3, "model.layers.0.mlp.up_proj": 5}
    for key in [key for key in state if ".v_proj." in key]:
        state[key] = state[key][:2].clone() if "lora_A" in key else state[key][:, :2].clone()
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    before = {name: value.clone() for name, value in llama.named_parameters()}
    assert merge_lora(llama, tmp_path) == 14
    for layer, part, alpha, rank in (
        (0, "self_attn.v_proj", 8, 2),
        (1, "self_attn.q_proj", 3, 4),
        (0, "self_attn.q_proj", 8, 4),
        (0, "mlp.up_proj", 5, 4),
        (1, "mlp.up_proj", 8, 4),
    ):
        name = f"model.layers.{layer}.{part}"
        a, b = (state[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
        change = llama.get_parameter(f"{name}.weight").detach() - before[f"{name}.weight"]
        torch.testing.assert_close(change, alpha / (rank**0.5 if rslora else rank) * (b @ a), atol=1e-5, rtol=1e-5)


def test_lora_whose_ranks_are_told_wrongly_is_refused(tmp_path, llama):
    before = {name: value.clone() for name, value in llama.named_parameters()}
    for config, error, words in (
        ({"rank_pattern": {"v_proj": 2}}, MismatchError, r"v_proj: expected rank 2, the term has 4"),
        ({"rank_pattern": {"(v_proj": 4}}, InputError, r"rank_pattern: '\(v_proj' is no regular expression"),
        ({"alpha_pattern": {"v_proj": "much"}}, InputError, r"alpha_pattern: expected an object of names and numbers"),
        ({"rank_pattern": {"v_proj": 0}}, InputError, r"rank_pattern: expected an object of names and numbers"),
        ({"alpha_pattern": ["v_proj"]}, InputError, r"alpha_pattern: expected an object of names and numbers"),
    ):
        write_lora(tmp_path, llama, **config)
        with pytest.raises(error, match=words):
            merge_lora(llama, tmp_path)
    assert all(torch.equal(before[name], value) for name, value in llama.named_parameters())


def test_lora_that_does_not_fit_changes_nothing(tmp_path, llama):
    state = write_lora(tmp_path, llama)
    key = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    state[key] = torch.zeros(23, 4)
    save_file(state, tmp_path / "adapter_model.safetensors")
    before = {name: value.clone() for name, value in llama.named_parameters()}
    with pytest.raises(MismatchError, match=r"down_proj is \(23, 32\), in the Llama \(24, 32\)"):
        merge_lora(llama, tmp_path)
    assert all(torch.equal(before[name], value) for name, value in llama.named_parameters())
    state[key] = torch.zeros(24, 3)
    save_file(state, tmp_path / "adapter_model.safetensors")
    with pytest.raises(MismatchError, match=r"down_proj has factors of shapes \(4, 32\), \(24, 3\)"):
        merge_lora(llama, tmp_path)
    write_lora(tmp_path, llama, use_dora=True)
    with pytest.raises(UnsupportedError, match="use_dora"):
        merge_lora(llama, tmp_path)


# ---- on a stock Llama ------------------------------------------------------------------------------------------------


def test_one_vector_goes_where_the_tag_stands(llama):
    torch.manual_seed(2)
    connector = LlavaConnector("mlp2x_gelu", 16, 24)
    vectors = torch.randn(2, 16)
    ids = torch.tensor([[1, 5, IMAGE_ID, 6, 7], [0, 0, 1, IMAGE_ID, 9]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    with torch.no_grad(), connector.connect(llama) as connection, connection.inject(vectors):
        arguments = connection.inputs(ids, mask)
        positions = (arguments["attention_mask"].cumsum(1) - 1).clamp(min=0)
        logits = llama(**arguments, position_ids=positions).logits
        made = llama.generate(**arguments, max_new_tokens=4, do_sample=False)
    with torch.no_grad():
        for row, text in enumerate(([1, 5, IMAGE_ID, 6, 7], [1, IMAGE_ID, 9])):
            pieces = [
                connector(vectors[row][None])[0][None]
                if each == IMAGE_ID
                else llama.model.embed_tokens.weight[each][None]
                for each in text
            ]
            alone = llama(inputs_embeds=torch.cat(pieces)[None]).logits[0]
            torch.testing.assert_close(logits[row, -len(text) :], alone, atol=1e-5, rtol=1e-4)
    assert made.shape == (2, 4)


def test_greedy_answers_of_a_ragged_batch_are_those_of_its_prompts(llama):
    from bindsearch.llm.generate import Sampling, generate

    torch.manual_seed(3)
    connector = LlavaConnector("linear", 16, 24)
    vectors = torch.randn(2, 16)
    prompts = [[1, 5, IMAGE_ID, 6, 7, 8], [1, IMAGE_ID, 9]]
    sampling = Sampling(max_new_tokens=5, temperature=0)
    with connector.connect(llama) as connection:
        both = generate(connection, vectors, prompts, sampling, 2)
        alone = [generate(connection, vectors[[row]], [prompts[row]], sampling, 2)[0] for row in range(2)]
        other = generate(connection, vectors.flip(0) * 50, prompts, sampling, 2)
    assert both == alone
    assert all(1 <= len(answer) <= 5 for answer in both)
    assert other != both


def test_connections_refuse_what_nobody_would_read(llama):
    connector = LlavaConnector("linear", 16, 24)
    with pytest.raises(MismatchError, match="width 25; this one has 24"):
        LlavaConnector("linear", 16, 25).connect(llama)
    ids, mask = torch.tensor([[1, 5, 6]]), torch.ones(1, 3)
    with connector.connect(llama) as connection:
        with pytest.raises(InputError, match="nothing is injected"):
            connection.inputs(ids, mask)
        with connection.inject(torch.ones(1, 16)), pytest.raises(InputError, match="without <image>"):
            connection.inputs(ids, mask)
        for bad, error in ((torch.ones(1, 15), ShapeError), (torch.full((1, 16), torch.nan), InputError)):
            with pytest.raises(error), connection.inject(bad):
                pass
    assert llava.PROJECTORS[2] == "mlp2x_gelu"


# ---- a loaded model --------------------------------------------------------------------------------------------------


def projector_folder(folder, **more):
    """Write a projector for the tiny Llama of the goldens."""
    torch.manual_seed(5)
    width = golden.figures("full_forward")["image_feature"].shape[1]
    hidden = json.loads(next(golden.LLAMA.rglob("params.json")).read_text(encoding="utf-8"))["dim"]
    state = LlavaConnector("linear", width, hidden).mm_projector.state_dict()
    torch.save(
        {**{f"model.mm_projector.{key}": value for key, value in state.items()}, **more}, folder / "mm_projector.bin"
    )
    return folder


def test_logits_of_a_llava_read_the_embedding(tmp_path):
    of = golden.model(projector_folder(tmp_path))
    rows = torch.randn(2, of.connector.dim, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([of.prompt("What is it?")]).expand(2, -1)
    scores = of.logits(rows, ids)
    assert scores.shape == (2, ids.shape[1], of.llama.config.vocab_size)
    assert float((scores[0, -1] - scores[1, -1]).abs().max()) > 0.1
    with of.connection.inject(rows), torch.no_grad():
        expected = of.llama(**of.connection.inputs(ids, torch.ones_like(ids))).logits
    assert torch.equal(scores, expected)
    assert torch.equal(of.logits(rows.numpy(), ids, attention_mask=torch.ones_like(ids)), expected)
    with pytest.raises(InputError, match="a prompt without <image>"):
        of.logits(rows, torch.tensor([[1, 5]]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantize": "8bit"}, "quantize='8bit'"),
        ({"quantize": "2bit"}, "quantize='2bit'"),
        ({"visual_heads": 4}, "visual_heads=4"),
        ({"merge_lora": False}, "merge_lora=False"),
    ],
)
def test_what_llava_does_not_take_is_refused(tmp_path, options, said):
    (projector_folder(tmp_path) / "adapter_config.json").write_text('{"r": 4}', encoding="utf-8")
    with pytest.raises(UnsupportedError, match=said):
        golden.model(tmp_path, **options)


def test_trained_word_embeddings_beside_a_projector_are_refused(tmp_path):
    words = {"model.embed_tokens.weight": torch.zeros(4, 2), "model.vision_tower.x": torch.zeros(2)}
    with pytest.raises(UnsupportedError, match=r"trained word embeddings \(embed_tokens\.weight\)"):
        golden.model(projector_folder(tmp_path, **words))
    with pytest.raises(UnsupportedError, match=r"lm_head\.weight"):
        golden.model(projector_folder(tmp_path, **{"lm_head.weight": torch.zeros(4, 2)}))
    del words["model.embed_tokens.weight"]
    assert golden.model(projector_folder(tmp_path, **words)).connector.dim == 32
