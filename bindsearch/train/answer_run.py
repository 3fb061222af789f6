"""A whole run: tokenizer and Llama, pictures and conversations, then one stage after another."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bindsearch.config import canonical_json, to_json_dict
from bindsearch.errors import InputError, MissingInputError
from bindsearch.llm.conversations import Chat, Conversation, read_conversations, write_conversations
from bindsearch.llm.llama_files import find_llama, linear_sizes, load_llama
from bindsearch.llm.llava import IMAGE_ID
from bindsearch.llm.tiny import build_llama, need_extra, train_tokenizer
from bindsearch.llm.tokenizer import Tokenizer
from bindsearch.store.files import commit_bytes
from bindsearch.train.answer_config import AnswerConfig, AnswerStageConfig, ConnectorConfig
from bindsearch.train.answer_measure import measure_answers
from bindsearch.train.answers import AnswerStage, Talk, train_answers
from bindsearch.train.checkpoint import finished_notes, hash_weights, load_checkpoint
from bindsearch.train.picture_rows import PictureRows, embed_scenes, named_rows, read_pictures, reader_ids
from bindsearch.world.address import parse
from bindsearch.world.instructions import ask, every_text, write_instructions, write_readings
from bindsearch.world.scene import Scenes, sample, split_seeds
from bindsearch.world.text import vocabulary, write_captions

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import LlamaConfig, LlamaForCausalLM

    from bindsearch.llm.base import Connection, Connector
    from bindsearch.llm.lora import LoraTerms
    from bindsearch.models.spaces import Space

Say = Callable[[str], None]
LEDGER = "bad.jsonl"
_NAMED = 10
"""Pictures that cannot be read are named in the log, so many of them."""
_DESCRIPTIONS = 3
_BLOCK = 5000
_LLAMA_SETTINGS = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_parameters")
"""What a Llama that exists says of itself and its weights do not."""
_LARGE_BYTES = 4 << 30
"""A Llama of larger files is kept in bfloat16 while its connector is trained."""


@dataclass(frozen=True)
class AnswerSources:
    """What a run takes instead of the world's and of a new Llama.

    Attributes:
        llama: folder of a Llama that exists.
        data: conversations in LLaVA's JSON.
        images: folder that names in the data start at; None: the data's own.
    """

    llama: Path | None = None
    data: Path | None = None
    images: Path | None = None


@dataclass
class Ready:
    """What stages share.

    Attributes:
        config: of the run.
        folder: of checkpoints, data and embeddings.
        llama, connector, lora, connection, tokenizer, chat: the model, and what writes its prompts.
        space: whose image embeddings are read.
        sources: see there.
    """

    config: AnswerConfig
    folder: Path
    llama: LlamaForCausalLM
    connector: Connector
    lora: LoraTerms | None
    connection: Connection
    chat: Chat
    space: Space
    sources: AnswerSources
    say: Say

    def features(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Give (n, d) embeddings as the connector reads them: V2's as sequences of one token."""
        return rows[:, None, :] if self.config.connector.kind == "llama-adapter-v2" else rows


def build_connector(config: ConnectorConfig, dim: int, llama: LlamaConfig) -> Connector:
    """Build a connector with random weights, for embeddings of unit length.

    Args:
        config: which one.
        dim: d of the embeddings.
        llama: sizes of the Llama.
    """
    width, layers, heads = llama.hidden_size, llama.num_hidden_layers, llama.num_attention_heads
    if config.kind == "llava":
        from bindsearch.llm.llava import LlavaConnector

        llava = LlavaConnector(config.projector, dim, width)
        first = next(module for module in llava.modules() if isinstance(module, nn.Linear))
        return _for_unit_rows(llava, first)
    if config.kind == "llama-adapter-v2":
        from bindsearch.llm.adapter_v2 import AdapterV2Connector, VisualConfig

        visual = VisualConfig(dim, config.hidden, config.depth, config.heads, config.tokens)
        attending = layers - 1 if config.query_layers is None else config.query_layers
        return AdapterV2Connector(visual, width, heads, layers, attending)
    from bindsearch.llm.bind_network import BindConnector

    bind = BindConnector(dim, width, config.hidden, layers, heads)
    return _for_unit_rows(bind, bind.network.proj)


def _for_unit_rows(connector: Connector, first: nn.Linear) -> Connector:
    """Enlarge the first linear's weights: a unit row's components are 1/sqrt(d), torch's initial weights expect 1."""
    with torch.no_grad():
        first.weight.mul_(first.in_features**0.5)
    return connector


def prepare_run(config: AnswerConfig, folder: Path, space: Space, sources: AnswerSources, say: Say) -> Ready:
    """Make or load tokenizer, Llama and connector.

    Raises:
        MissingExtraError: transformers or sentencepiece is not installed.
        InputError: a stage of reading or LoRA terms that these sources cannot have.
    """
    need_extra("Training a language model")
    folder.mkdir(parents=True, exist_ok=True)
    if sources.llama is None:
        path = folder / "tokenizer.model"
        if not path.is_file():
            train_tokenizer(tokenizer_texts(), config.llama.pieces, path)
        tokenizer = Tokenizer(path)
        llama, context = build_llama(config.llama, tokenizer.size, config.seed), config.llama.context_tokens
    else:
        files = find_llama(sources.llama)
        if files.tokenizer is None:
            raise MissingInputError(f"{files.folder}: no tokenizer.model beside the weights or one level up. Bring it.")
        tokenizer = Tokenizer(files.tokenizer)
        large = sum(path.stat().st_size for path in files.weights) > _LARGE_BYTES
        llama, context = load_llama(files, False, torch.bfloat16 if large else torch.float32), 512
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        connector = build_connector(config.connector, space.dim, llama.config)
        lora = _build_lora(config.connector.lora_rank, llama)
    if lora is not None:
        lora.attach(llama)
    llama.set_attn_implementation("eager")  # quicker to train on a processor: docs/adr/0067
    tag = IMAGE_ID if config.connector.kind == "llava" else None
    chat = Chat(tokenizer, tag, context)
    return Ready(config, folder, llama, connector, lora, connector.connect(llama, lora), chat, space, sources, say)


def _build_lora(rank: int, llama: LlamaForCausalLM) -> LoraTerms | None:
    if not rank:
        return None
    from bindsearch.llm.lora import LoraTerms

    terms = LoraTerms(linear_sizes(llama.config), llama.config.num_hidden_layers, rank)
    with torch.no_grad():
        for name, value in terms.named_parameters():
            if name.endswith("up.weight"):
                value.zero_()
    return terms


def tokenizer_texts(scenes: int = 4000) -> Iterator[str]:
    """Give what the tiny Llama's tokenizer is made of: words of the world, captions, questions and answers."""
    yield from vocabulary("english")
    yield from every_text()
    some = sample(split_seeds("train", scenes), "mixed")
    yield from write_captions(some).texts
    for one in write_instructions(some, None):
        yield from itertools.chain.from_iterable(one.turns)


def train_pair(ready: Ready, only: str | None = None, stopped: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Run every stage from wherever it stands.

    Args:
        ready: from `prepare_run`; its modules are overwritten.
        only: stop after this stage.
        stopped: asked after each step; True leaves with a checkpoint.

    Returns:
        Notes by stage: seconds and curve.
    """
    done: dict[str, Any] = {}
    measured: list[Callable[[], dict[str, float]]] = []
    for stage in ready.config.stages:
        made = _stage(ready, stage, measured)
        notes = finished_notes(made.path, made.facts, stage.steps)
        if notes is None:
            notes = train_answers(made, say=ready.say, stopped=stopped)
        else:
            load_checkpoint(made.path, made.parts, None, made.facts)
            ready.say(f"{stage.name}: done before")
        done[stage.name] = {"seconds": notes["seconds"], "curve": notes["curve"]}
        path = ready.folder / f"{stage.name}.json"
        path.write_text(json.dumps(done[stage.name], indent=1) + "\n", encoding="utf-8")
        if notes["step"] < stage.steps or stage.name == only:
            break
    for module in (ready.llama, ready.connector, ready.lora):
        if module is not None:
            module.requires_grad_(False)
            module.eval()
    return done


def _stage(ready: Ready, stage: AnswerStageConfig, measured: list[Callable[[], dict[str, float]]]) -> AnswerStage:
    config = ready.config
    talk = _talk(ready, stage)
    if not measured:
        measured.append(_measure(ready))
    parts = trained_parts(ready, stage.trains)
    times = (config.checkpoint_every_s, config.measure_every, config.log_every)
    measure = dict if stage.task == "reading" else measured[0]
    return AnswerStage(
        stage, config.seed, ready.connection, parts, talk, measure, ready.folder, _model_facts(ready), times
    )


def _model_facts(ready: Ready) -> dict[str, Any]:
    """Say what connector and Llama are: what their weights do not tell, and hashes of those at the start of a stage."""
    config = ready.config
    weights = {"llama": ready.llama, "connector": ready.connector, "lora": ready.lora}
    own = {name: ready.llama.config.to_dict().get(name) for name in _LLAMA_SETTINGS}
    return {
        "connector": to_json_dict(config.connector),
        "llama": to_json_dict(config.llama) if ready.sources.llama is None else own,
        "context_tokens": ready.chat.context_tokens,
        "tokenizer": _digest(ready.chat.tokenizer.path),
        "start": {name: hash_weights(part) for name, part in weights.items() if part is not None},
    }


def trained_parts(ready: Ready, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """Give what a stage trains, by name.

    Raises:
        InputError: LoRA terms of rank 0.
    """
    parts: dict[str, nn.Module] = {}
    for name in names:
        if name == "lora" and ready.lora is None:
            raise InputError("A stage trains lora, but the connector's lora_rank is 0. Set it, 16 for example.")
        known = {"connector": ready.connector, "llama": ready.llama, "lora": ready.lora}
        parts[name] = known.get(name) or Some(ready.llama, ("norm", "bias"))
    return parts


class Some(nn.Module):
    """Some parameters of a module, themselves: those whose names contain one of some words."""

    def __init__(self, module: nn.Module, words: tuple[str, ...]) -> None:
        super().__init__()
        for name, parameter in module.named_parameters():
            if any(word in name for word in words):
                self.register_parameter(name.replace(".", "/"), parameter)


def _measure(ready: Ready) -> Callable[[], dict[str, float]]:
    """Prepare questions about scenes of the validation split; nothing to measure where the data are a user's own."""
    if ready.sources.data is not None or not ready.config.validation:
        return dict
    scenes = sample(split_seeds("validation", ready.config.validation))
    rows = ready.features(embed_scenes(ready.space, "image", scenes))
    return lambda: measure_answers(ready.connection, ready.chat, rows, scenes)


def _talk(ready: Ready, stage: AnswerStageConfig) -> Talk:
    """Give the conversations of a stage, and the embeddings of their pictures."""
    if ready.sources.data is not None:
        return _own_talk(ready, stage)
    path = ready.folder / "data" / f"{stage.task}-{ready.config.scenes}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_conversations(path, world_conversations(stage.task, ready.config.scenes))
        ready.say(f"wrote {path.name}: {ready.config.scenes} conversations, {path.stat().st_size >> 20} MiB")
    conversations = _answered(ready, read_conversations(path), path, shuffled=True)
    facts, rows = {"file": path.name, "sha256": _digest(path)}, None
    if stage.task != "reading":
        names = [one.image or "" for one in conversations]
        rows = ready.features(named_rows(ready.space, ready.folder / "embeddings", names, ready.say))
        facts |= reader_ids(ready.space)
    return Talk(conversations, rows, ready.chat, True, facts)


def _own_talk(ready: Ready, stage: AnswerStageConfig) -> Talk:
    data = ready.sources.data
    assert data is not None  # noqa: S101 - tells the type
    if stage.task == "reading":
        raise InputError(
            f"stage {stage.name}: reading is made from the world. Leave it out with conversations of yours."
        )
    conversations = [one for one in read_conversations(data) if one.image is not None]
    if not conversations:
        raise MissingInputError(f"{data}: no conversation has an image. Training a connector needs them.")
    conversations = _answered(ready, conversations, data, shuffled=False)
    home = ready.sources.images or data.parent
    names = [name if parse_or_none(name) else str(home / name) for name in (one.image or "" for one in conversations)]
    found = read_pictures(ready.space, ready.folder / "embeddings", names, ready.say)
    (ready.folder / LEDGER).unlink(missing_ok=True)
    if found.bad:
        _say_bad(ready, found, names, data)
        kept = [name not in found.bad for name in names]
        conversations, names = list(itertools.compress(conversations, kept)), list(itertools.compress(names, kept))
    rows = found.of(names)
    facts = {"file": data.name, "sha256": _digest(data), "embeddings": hashlib.sha256(rows.tobytes()).hexdigest()}
    return Talk(conversations, ready.features(rows), ready.chat, False, {**facts, **reader_ids(ready.space)})


def _say_bad(ready: Ready, found: PictureRows, names: list[str], data: Path) -> None:
    """Say which pictures cannot be read, with the reasons in the run's ledger.

    Args:
        ready: of the run.
        found: what could be read, and what not.
        names: of the conversations' pictures.
        data: file of the conversations, for messages.

    Raises:
        MissingInputError: none of the pictures can be read.
    """
    ledger = ready.folder / LEDGER
    lines = (canonical_json({"image": name, "reason": reason}) + "\n" for name, reason in found.bad.items())
    commit_bytes(ledger, "".join(lines).encode("ascii"))
    lost = sum(name in found.bad for name in names)
    first = list(found.bad)[:_NAMED]
    more = f" and {len(found.bad) - _NAMED} more" if len(found.bad) > _NAMED else ""
    why = f"{data}: {len(found.bad)} of {len(found.bad) + len(found.places)} pictures cannot be read"
    if not found.places:
        raise MissingInputError(f"{why}: {first[0]}: {found.bad[first[0]]}; all reasons: {ledger}. Right --images?")
    ready.say(f"{why}, {lost} conversations are left out: {', '.join(first)}{more}; the reasons: {ledger}")


def _answered(ready: Ready, conversations: list[Conversation], path: Path, shuffled: bool) -> list[Conversation]:
    """Leave out conversations whose question fills the context: nothing of an answer would be left to learn.

    Args:
        ready: of the run; its log says how many were left out.
        conversations: of the file. Not modified.
        path: of the file, for messages.
        shuffled: any turn may come first, not the first one alone.

    Raises:
        InputError: none is left.
    """
    firsts = ((one.turns if shuffled else one.turns[:1]) for one in conversations)
    kept = [any(map(ready.chat.has_room, turns)) for turns in firsts]
    if all(kept):
        return conversations
    why = f"{path}: {len(kept) - sum(kept)} of {len(kept)} conversations ask more than the context of "
    why += f"{ready.chat.context_tokens} tokens holds, so that nothing of an answer is left to learn"
    first = f"the first is that of id {conversations[kept.index(False)].id!r}"
    if not any(kept):
        longer = ', or raise "context_tokens" of the llama' if ready.sources.llama is None else ""
        raise InputError(f"{why}; {first}. Shorten the questions{longer}.")
    ready.say(f"{why}: left out; {first}")
    return list(itertools.compress(conversations, kept))


def parse_or_none(name: str) -> bool:
    """Say whether a name is an address of the world."""
    try:
        return bool(parse(name))
    except InputError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def world_conversations(task: str, scenes: int) -> Iterator[Conversation]:
    """Make the conversations of a task about the first scenes of the training split, a record a scene."""
    for at in range(0, scenes, _BLOCK):
        count = min(_BLOCK, scenes - at)
        some = sample(split_seeds("train", count, at), "mixed")
        images = [f"world:{number},kind=mixed#image" for number in range(at, at + count)]
        if task == "reading":
            yield from write_readings(some)
        elif task == "captions":
            yield from _described(some, images)
        else:
            yield from write_instructions(some, images)


def _described(scenes: Scenes, images: list[str]) -> Iterator[Conversation]:
    asked = [ask(scenes, "describe", variant) for variant in range(_DESCRIPTIONS)]
    for row, image in enumerate(images):
        yield Conversation(str(int(scenes.seed[row])), tuple(one.turns[row] for one in asked), image)


def run_facts(ready: Ready) -> dict[str, Any]:
    """Say what was trained, for the pair's manifest."""
    counts = {"llama": ready.llama, "connector": ready.connector}
    sizes = {name: sum(value.numel() for value in part.parameters()) for name, part in counts.items()}
    return {"config": to_json_dict(ready.config), "parameters": sizes, "pieces": ready.chat.tokenizer.size}
