"""From numbers to a pair: run the stages, write curves, and the folder that `bindsearch ask` reads."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bindsearch.config import to_json_dict
from bindsearch.errors import InputError, UnknownNameError
from bindsearch.llm.pair import LLAMA, PairManifest, pair_bytes, save_pair
from bindsearch.models.manifest import FILE as SPACE_FILE
from bindsearch.models.spaces import Space, load_space
from bindsearch.train.answer_config import AnswerConfig
from bindsearch.train.answer_run import AnswerSources, Ready, prepare_run, train_pair
from bindsearch.train.curves import plot_curves
from bindsearch.train.run_lock import lock_run

CURVES = "curves.json"


def make_pair(
    config: AnswerConfig,
    folder: Path,
    sources: AnswerSources,
    output: Path,
    only: str | None = None,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train, or go on, and write the pair.

    Args:
        config: numbers of the run.
        folder: of checkpoints, data, embeddings, log and curves.
        sources: a Llama and conversations of one's own, where there are any.
        output: folder of the pair.
        only: stop after this stage, and write no pair.
        threads: of torch; None leaves them.
        say: where lines go; they go into the folder's train.log as well.

    Returns:
        What came out, for people and JSON.

    Raises:
        UnknownNameError: no stage of that name.
        InputError: a stage trains a Llama that exists.
        MissingExtraError: transformers or sentencepiece is not installed.
        MismatchError: the folder holds a run of other numbers.
        BindSearchError: another run trains in the folder.
    """
    if only is not None and only not in [stage.name for stage in config.stages]:
        raise UnknownNameError("stage", only, [stage.name for stage in config.stages])
    _refuse_to_train(config, sources.llama)
    if threads is not None:
        torch.set_num_threads(threads)
    began = time.monotonic()
    with lock_run(folder), (folder / "train.log").open("a", encoding="utf-8") as log:

        def note(line: str) -> None:
            say(line)
            log.write(f"{time.strftime('%H:%M:%S', time.gmtime())} {line}\n")
            log.flush()

        ready = prepare_run(config, folder, load_space(config.space), sources, note)
        stages = train_pair(ready, only)
        written = {"config": to_json_dict(config), "stages": stages, "seconds": round(time.monotonic() - began)}
        (folder / CURVES).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        plot_curves(stages, (folder / CURVES).with_suffix(".svg"))
        report: dict[str, Any] = {
            "folder": str(folder),
            "stages": {name: one["curve"][-1:] for name, one in stages.items()},
        }
        report["seconds"] = {name: one["seconds"] for name, one in stages.items()}
        if only is None:
            manifest = write_pair(ready, output)
            report |= {"pair": str(output), "bytes": pair_bytes(output), "space_id": manifest.space_id}
            note(f"wrote {output}: {pair_bytes(output)} bytes, reads {manifest.space_id}")
    return report


def _refuse_to_train(config: AnswerConfig, llama: Path | None) -> None:
    """Refuse stages that train the weights of a Llama that exists: its folder is not written to, the pair names it.

    Raises:
        InputError: naming the stage.
    """
    for stage in config.stages:
        if llama is not None and "llama" in stage.trains:
            kept = dict.fromkeys([*(part for part in stage.trains if part != "llama"), "norms", "lora"])
            raise InputError(
                f"stage {stage.name}: trains llama, but {llama} stays as it is and the pair names that folder: what is "
                f'trained there would be lost. Train terms beside it: "trains": {json.dumps(list(kept))} with '
                '"lora_rank": 16 in the connector; or leave out --llama, for a new one.'
            )


def write_pair(ready: Ready, output: Path) -> PairManifest:
    """Write what was trained."""
    config = ready.config
    counted = {"llama": ready.llama, "connector": ready.connector}
    source = {
        "made_by": "bindsearch train-llm",
        "seed": config.seed,
        "stages": [f"{stage.name}: {stage.steps} steps of {stage.batch}" for stage in config.stages],
        "parameters": {name: sum(value.numel() for value in part.parameters()) for name, part in counted.items()},
    }
    own = ready.sources.llama
    manifest = PairManifest(
        name=output.resolve().name,
        space=_place_of(config.space, ready.space),
        space_id=ready.space.space_id,
        connector=config.connector.kind,
        llama=LLAMA if own is None else str(own.resolve()),
        source=source,
    )
    tokenizer = ready.chat.tokenizer.path if own is None else None
    return save_pair(output, manifest, ready.connector, ready.llama, ready.lora, tokenizer)


def _place_of(name: str, space: Space) -> str:
    """Give what opens the pair's space from every working folder: where its folder lies, or the name that it has."""
    return space.location if (Path(name).expanduser() / SPACE_FILE).is_file() else name
