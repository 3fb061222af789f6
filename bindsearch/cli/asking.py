"""`bindsearch ask` and `bindsearch train-llm`: a language model that reads the joint space."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bindsearch.cli.disk import picture_to_write
from bindsearch.cli.options import (
    WEIGHED,
    DeviceOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SpaceOption,
    medium_options,
    open_space,
    print_json,
    say,
    with_options,
)
from bindsearch.errors import InputError, ShapeError, TooManyBadError

if TYPE_CHECKING:
    from bindsearch.cache import VisualCache
    from bindsearch.llm import AdapterLlama, Sampling
    from bindsearch.llm.pair import Pair
    from bindsearch.query import Embedding, TermSpec
    from bindsearch.types import FloatArray

_SEEN = ("image", "video")
"""What the image tower encodes: a model trained on pictures reads it as it is."""
_AS_IT_IS = "the model was trained on pictures, and reads pictures and videos as they are."


@dataclass(frozen=True)
class _Asked:
    """What a question is about: terms, their mixture as the model reads it, and the cached images that moved it."""

    specs: tuple[TermSpec, ...]
    parts: list[Embedding]
    vector: FloatArray
    neighbours: list[dict[str, Any]]

    def facts(self) -> dict[str, Any]:
        terms = [{"modality": spec.kind, "what": str(spec.value), "weight": spec.weight} for spec in self.specs]
        return {"space_id": self.parts[0].identity.space_id, "terms": terms, "cached": self.neighbours}


def ask(
    question: Annotated[str | None, typer.Argument(help="What to ask; with --chat the first question.")] = None,
    pair: Annotated[
        Path | None, typer.Option(help="Folder of a Llama with its connector.  [default: the bundled mini-talk]")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A released adapter instead, such as 7B.pth; with --llama and --space.")
    ] = None,
    llama: Annotated[Path | None, typer.Option(help="Folder of the Llama that --adapter was made for.")] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Visual cache that moves what is no picture or video.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Leave the embedding as it is.")] = False,
    cache_size: Annotated[int | None, typer.Option(min=1, help="Neighbours of the cache.")] = None,
    inverse_temperature: Annotated[float | None, typer.Option(min=0, help="Of the cache's softmax.")] = None,
    cache_weight: Annotated[float | None, typer.Option(min=0, max=1, help="Of what the cache adds.")] = None,
    show_cached: Annotated[bool, typer.Option("--show-cached", help="Say which cached images carried it.")] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            callback=picture_to_write,
            help="Picture (PNG, JPEG) of what was asked about and of those images.",
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Go on asking: one question a line of stdin.")] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of one answer, at most.")] = 256,
    seed: Annotated[int | None, typer.Option(help="Repeats an answer that is drawn.")] = None,
    space: SpaceOption = None,
    device: DeviceOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="auto (float32; with --adapter bfloat16 for the Llama), float32, bfloat16, float64, or fast: what the "
            "machine is quick at."
        ),
    ] = None,
    preset: PresetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    **terms: list[str],
) -> None:
    """Ask a language model about pictures, sounds, depth, heat or motion, or a mixture of them.

    A term may end in a weight: waves.wav@0.5. Extra: llm. Write-up: docs/llm.md.
    """
    from bindsearch.llm import Sampling

    wanted = [(name, text) for name, texts in terms.items() for text in texts or ()]
    if not wanted:
        raise InputError("Nothing to ask about: give at least one --image, --audio, --depth, --thermal, --imu, ...")
    if question is None and not chat:
        raise InputError('No question: bindsearch ask "What is it?" --image cat.jpg, or --chat to ask several.')
    if question is not None and not question.strip():
        raise InputError('The question is empty. Type one: bindsearch ask "What is it?" --image cat.jpg')
    if no_cache and cache is not None:
        raise InputError("--cache and --no-cache: say one of them.")
    sampling = Sampling(max_new_tokens, temperature, seed=seed)
    found, model = _load_model(pair, adapter, llama, device, dtype)
    blend = (cache_size, inverse_temperature, cache_weight)
    how = (space or (found.manifest.space if found else None), device, dtype, preset)
    opened = None if no_cache else _open_cache(cache, wanted, found)
    asked = _mixed(wanted, how, found, opened, blend)
    if show_cached and not quiet:
        _say_cached(asked)
    unanswered: list[str] | None = [] if chat else None
    answers = list(_answers(model, asked, _questions(question, chat), sampling, (as_json, quiet), unanswered))
    if sheet is not None:
        say(f"wrote {_write_sheet(asked, answers, sheet)}")
    if as_json:
        name = found.manifest.name if found else str(adapter)
        print_json({"pair": name, **asked.facts(), "answers": answers})
    if unanswered:
        raise TooManyBadError(f"{len(unanswered)} of {len(answers) + len(unanswered)} questions were not answered.")


def _load_model(
    pair: Path | None, adapter: Path | None, llama: Path | None, device: str | None, dtype: str | None
) -> tuple[Pair | None, AdapterLlama]:
    """Load the pair, or an adapter with its Llama."""
    from bindsearch.config import setting
    from bindsearch.llm.pair import load_pair
    from bindsearch.models.space import find_device, find_dtype

    where = find_device(setting("device", device))
    kind = setting("dtype", dtype)
    if kind == "auto":
        kind = "float32" if adapter is None else "bfloat16"
    kind = find_dtype(kind, where)
    if adapter is None and llama is None:
        loaded = load_pair(pair, kind, str(where))
        return loaded, loaded.model
    if adapter is None or llama is None or pair is not None:
        raise InputError("--adapter and --llama belong together, without --pair.")
    from bindsearch.llm import load

    return None, load(adapter, llama, kind, str(where))


def _mixed(
    wanted: list[tuple[str, str]],
    how: tuple[str | None, str | None, str | None, str | None],
    pair: Pair | None,
    cache: VisualCache | None,
    blend: tuple[int | None, float | None, float | None],
) -> _Asked:
    """Embed terms, mix them by weight, and move the mixture with a cache where there is one."""
    from bindsearch.cache import mix
    from bindsearch.query import parse_terms
    from bindsearch.search import Request, build_queries

    specs = parse_terms(wanted)
    parts = build_queries([Request((spec,)) for spec in specs], None, lambda: open_space(*how))
    for part in parts:
        if pair is not None:
            pair.check_space(str(part.identity.space_id))
        if cache is not None:
            cache.check(part)
    vector = mix([part.vector for part in parts], [spec.weight for spec in specs])
    if cache is None:
        return _Asked(specs, parts, vector, [])
    own = cache.enhancement
    size = min(own.cache_size if blend[0] is None else blend[0], len(cache) if blend[0] is None else sys.maxsize)
    sharpness = own.inverse_temperature if blend[1] is None else blend[1]
    weight = own.weight if blend[2] is None else blend[2]
    neighbours = cache.explain(vector, size, sharpness)[0]["neighbours"]
    return _Asked(specs, parts, cache.enhance(vector, size, sharpness, weight), neighbours)


def _open_cache(folder: Path | None, wanted: list[tuple[str, str]], pair: Pair | None) -> VisualCache | None:
    """Open the cache that moves what was asked about: the one that was named, else the bundled one of its own space.

    Pictures and videos alone are read as they are: None, with a note where a cache was named.
    """
    from bindsearch.cache import VisualCache
    from bindsearch.cache.bundled import SPACE, bundled_cache

    seen = all(name in _SEEN for name, _ in wanted)
    if folder is not None:
        named = VisualCache.open(folder)
        if seen:
            say(f"{folder}: not used: {_AS_IT_IS}")
        return None if seen else named
    return None if seen or pair is None or pair.manifest.space != SPACE else bundled_cache()


def _questions(first: str | None, chat: bool) -> Iterator[str]:
    """Give the questions: the first one, then the lines of stdin; of those, one that is not UTF-8 is left out."""
    from bindsearch.listing.collect import lines_of
    from bindsearch.listing.naming import is_utf8

    if first is not None:
        yield first
    lines: Iterable[str] = lines_of(sys.stdin) if chat else ()
    for line in map(str.strip, lines):
        if not is_utf8(line):
            say(f"{ascii(line)[:80]}: not in UTF-8. Type it again.")
        elif line:
            yield line


def _answers(
    model: AdapterLlama,
    asked: _Asked,
    questions: Iterator[str],
    sampling: Sampling,
    told: tuple[bool, bool],
    unanswered: list[str] | None,
) -> Iterator[dict[str, Any]]:
    """Answer one question after another, printing as the answer comes; give each with its time.

    Args:
        model: that answers.
        asked: what the questions are about.
        questions: one after another.
        sampling: how tokens are drawn.
        told: --json and --quiet.
        unanswered: gets the questions that cannot be answered, such as one that is too long; None: such a one ends it.

    Raises:
        ShapeError, InputError: as `Dialogue.ask`.
    """
    from bindsearch.llm import Dialogue

    as_json, quiet = told
    dialogue = Dialogue(model, asked.vector, sampling)
    for question in questions:
        began, pieces = time.monotonic(), []
        try:
            for piece in dialogue.ask(question):
                pieces.append(piece)
                if not as_json:
                    typer.echo(piece, nl=False)
                    sys.stdout.flush()
        except InputError as error:
            if unanswered is None or isinstance(error, ShapeError):
                raise
            unanswered.append(question)
            say(f"{question[:60]!r}: not answered: {error}")
            continue
        if not as_json:
            typer.echo("")
        seconds = time.monotonic() - began
        if not quiet and not as_json:
            say(f"(answered in {seconds:.1f} s, loading not counted)")
        yield {"question": question, "answer": "".join(pieces).strip(), "seconds": round(seconds, 3)}


def _say_cached(asked: _Asked) -> None:
    """Say which cached images carried an answer, the weightiest first."""
    if not asked.neighbours:
        seen = all(spec.kind in _SEEN for spec in asked.specs)
        say(f"no cached images: {_AS_IT_IS if seen else 'name a cache with --cache.'}")
    for each in asked.neighbours:
        say(f"{each['weight']:.3f}  {each['key']}")


def _write_sheet(asked: _Asked, answers: list[dict[str, Any]], path: Path) -> Path:
    """Draw what was asked about, and the cached images, under the questions and answers."""
    from bindsearch.carriers import save_carriers

    title = " · ".join(f"{one['question']} {one['answer']}" for one in answers)
    terms = [(part.terms[0], spec.weight) for part, spec in zip(asked.parts, asked.specs, strict=True)]
    presets = {name: preset for part in asked.parts for name, preset in part.identity.preset_ids.items()}
    foot = f"{len(asked.neighbours)} cached images; under each: its share of what was found" if asked.neighbours else ""
    return save_carriers(path, title, asked.neighbours, terms, presets, foot)


def train_llm(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; the same command goes on in it.")],
    config: Annotated[
        Path | None, typer.Option(help="Numbers of the run (.json).  [default: those of the bundled pair]")
    ] = None,
    llama: Annotated[
        Path | None, typer.Option(help="Train a connector for this Llama (a folder); it stays as it is.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Conversations in LLaVA's JSON, instead of the world's instructions.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of their images.  [default: that of --data]")] = None,
    pair: Annotated[Path | None, typer.Option(help="Where the pair is written.  [default: OUTPUT/pair]")] = None,
    stage: Annotated[str | None, typer.Option(help="Stop after this stage, write no pair.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights and batches.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch.  [default: one a core]")] = None,
    space: SpaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a language model to read the joint space, on images and text alone.

    Without --llama a tiny one is made from nothing, with its tokenizer. Kill it at any moment: the same command goes
    on, and ends with the same weights. Extra: llm. Write-up: docs/llm.md.
    """
    from bindsearch.train.answer_config import read_run_config
    from bindsearch.train.answer_pair import make_pair
    from bindsearch.train.answer_run import AnswerSources

    numbers = read_run_config(config, seed=seed, space=space, llama=llama is not None, data=data is not None)
    sources = AnswerSources(llama, data, images)
    note: Callable[[str], None] = (lambda line: None) if quiet else say  # noqa: ARG005
    report = make_pair(numbers, output, sources, pair or output / "pair", stage, threads, note)
    if as_json:
        print_json(report)
    elif not quiet:
        for name, value in report.items():
            typer.echo(f"{name}: {value}")


with_options(ask, medium_options(WEIGHED))
