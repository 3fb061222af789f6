"""Three connectors, one Llama, one training: what each makes of the joint vector, and what patches add.

python -m benchmarks.bench_connectors              # benchmarks/results/connectors.json; about 15 min a row and seed

A tiny Llama learns to read on text once a seed (stage "reading"); every connector then starts from that same Llama and
is trained on the same captions and instructions, step by step the same batches. Rows: ImageBind-LLM's bind network into
every layer, LLaMA-Adapter V2's ten visual tokens, LLaVA's projected token, all reading the one joint vector; the first
two once more at about the size of LLaVA's ("small"); and, on images alone, V2 reading the image tower's patch tokens
with query_len 1, 4 and 10. Figures: right answers about unseen scenes (split test) by kind of question and modality,
parameters, tokens a second when answering, seconds of training.
Every row is resumable and kept in --folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_answers import embedded, figure
from benchmarks.record import write_result, write_score
from bindsearch.llm.tiny import TinyConfig, save_llama
from bindsearch.models.spaces import load_space
from bindsearch.train.answer_config import AnswerConfig, AnswerStageConfig, ConnectorConfig
from bindsearch.train.answer_measure import answer_all, read_back
from bindsearch.train.answer_run import AnswerSources, Ready, prepare_run, train_pair
from bindsearch.train.picture_rows import embed_scenes
from bindsearch.world.instructions import ask
from bindsearch.world.scene import ABSENT, Scenes

COMMAND = "python -m benchmarks.bench_connectors"
LLAMA = TinyConfig(width=128, layers=4, heads=4, inner=352)
ROWS: dict[str, tuple[ConnectorConfig, bool]] = {
    "imagebind-llm": (ConnectorConfig("imagebind-llm", hidden=512), False),
    "llama-adapter-v2": (ConnectorConfig("llama-adapter-v2", hidden=128, depth=3, heads=4), False),
    "llava mlp2x_gelu": (ConnectorConfig("llava"), False),
    "imagebind-llm, small": (ConnectorConfig("imagebind-llm", hidden=16), False),
    "llama-adapter-v2, small": (ConnectorConfig("llama-adapter-v2", hidden=32, depth=3, heads=4), False),
    "v2, patches, query_len 1": (ConnectorConfig("llama-adapter-v2", hidden=128, depth=3, heads=4, tokens=1), True),
    "v2, patches, query_len 4": (ConnectorConfig("llama-adapter-v2", hidden=128, depth=3, heads=4, tokens=4), True),
    "v2, patches, query_len 10": (ConnectorConfig("llama-adapter-v2", hidden=128, depth=3, heads=4), True),
}
MODALITIES = ("image", "audio", "depth", "thermal")
KINDS = ("subject", "colour", "count", "place", "setting", "motion", "is_subject", "is_colour")


def numbers(row: str, seed: int, steps: int, scenes: int) -> AnswerConfig:
    """Give the numbers of a row's training."""
    shared = {"batch": 64, "warmup_steps": 100, "noise": 0.03, "shortest": 0.5, "learning_rate": 0.002}
    captions = AnswerStageConfig("captions", "captions", steps // 8, turns=1, trains=("connector",), **shared)
    asking = AnswerStageConfig("asking", "instructions", steps, turns=3, trains=("connector", "llama"), **shared)
    return AnswerConfig(
        (captions, asking), seed=seed, llama=LLAMA, connector=ROWS[row][0], scenes=scenes, measure_every=1000
    )


def base_llama(folder: Path, space: Any, seed: int, steps: int, scenes: int) -> Path:
    """Train the Llama that every row starts from, on text alone; give its folder."""
    output = folder / f"llama-{seed}"
    if not (output / "model.safetensors").is_file():
        reading = AnswerStageConfig(
            "reading",
            "reading",
            min(600, steps),
            batch=64,
            turns=3,
            trains=("llama",),
            learning_rate=0.002,
            final_rate=0.1,
        )
        config = AnswerConfig((reading,), seed=seed, llama=LLAMA, scenes=scenes, validation=0)
        ready = prepare_run(config, folder / f"reading-{seed}", space, AnswerSources(), say)
        train_pair(ready)
        output.mkdir(parents=True, exist_ok=True)
        (output / "tokenizer.model").write_bytes(ready.chat.tokenizer.path.read_bytes())
        save_llama(ready.llama, output, torch.float32)
    return output


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


class Patches:
    """A space whose "embeddings" of images are the image tower's tokens, class token first: (n, L * D) rows.

    What is not said here is as the space has it.

    Attributes:
        space: whose towers are used.
        length: L.
        dim: D.
    """

    def __init__(self, space: Any) -> None:
        self.space = space
        self.tower = space._towers._load("vision", torch.float32, torch.device("cpu"))
        self.length, self.dim = self._tokens([np.zeros((64, 64, 3), dtype=np.uint8)]).shape[1:]
        self.space_id = f"{space.space_id}+patches"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.space, name)

    def tower_id(self, modality: str) -> str:
        """Give the tower's id, marked."""
        return f"{self.space.tower_id(modality)}+patches"

    def embed(self, modality: str, sources: list[Any]) -> np.ndarray:
        """Give the tokens of pictures as rows."""
        assert modality == "image"
        return self._tokens(sources).reshape(len(sources), -1)

    def _tokens(self, sources: list[Any]) -> np.ndarray:
        kind, config = self.space.modality("image"), self.space.config("image")
        clips = [kind.preprocess(kind.decode(kind.source_of(each), config), config)[:1] for each in sources]
        with torch.inference_mode():
            pictures = torch.from_numpy(np.concatenate(clips)).unsqueeze(2)  # (n, 3, 1, H, W)
            return np.asarray(self.tower.trunk(self.tower.stem(pictures)).numpy())


class PatchReady(Ready):
    """What stages share where the connector reads patches."""

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Give rows of tokens as sequences, (n, L, D)."""
        return rows.reshape(len(rows), self.space.length, self.space.dim)


def run_row(row: str, seed: int, space: Any, folder: Path, steps: int, scenes: int) -> tuple[Ready, dict[str, Any]]:
    """Train one row of the table, or read what an earlier run trained."""
    llama = base_llama(folder, space, seed, steps, scenes)
    config = numbers(row, seed, steps, scenes)
    reads = Patches(space) if ROWS[row][1] else space
    home = folder / f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"
    home.mkdir(parents=True, exist_ok=True)
    share_inputs(home, folder)
    ready = prepare_run(config, home, reads, AnswerSources(llama=llama), say)
    if ROWS[row][1]:
        ready = PatchReady(**{field.name: getattr(ready, field.name) for field in dataclasses.fields(ready)})
    notes = train_pair(ready)
    return ready, notes


def share_inputs(home: Path, folder: Path) -> None:
    """Let all rows read one set of conversations and embeddings."""
    for name in ("data", "embeddings"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        if not (home / name).exists():
            (home / name).symlink_to((folder / name).resolve())


def answer_rows(ready: Ready, rows: np.ndarray, scenes: Scenes, kind: str) -> tuple[np.ndarray, float, int]:
    """Ask one question a scene: (n,) int8 as `bench_answers`, seconds, and tokens that were read or written."""
    question = ask(scenes, kind, plain=True)
    there = np.flatnonzero(question.codes != ABSENT)
    questions = [question.turns[row].question for row in there]
    began = time.perf_counter()
    texts = answer_all(ready.connection, ready.chat, ready.features(rows[there]), questions)
    seconds = time.perf_counter() - began
    tokens = sum(len(ready.chat.prompt((), each)) for each in questions)
    tokens += sum(len(ready.chat.tokenizer.pieces(text)) + 1 for text in texts)
    return read_back(question, texts), seconds, tokens


def measure_row(row: str, seeds: list[int], space: Any, arguments: argparse.Namespace, tests: Any) -> dict[str, Any]:
    """Train and measure one row with every seed."""
    rights: dict[tuple[str, str], list[np.ndarray]] = {}
    out: dict[str, Any] = {"answers": {}}
    for seed in seeds:
        ready, notes = run_row(row, seed, space, arguments.folder, arguments.steps, arguments.scenes)
        seconds = tokens = 0.0
        modalities = ("image",) if ROWS[row][1] else MODALITIES
        for modality in modalities:
            rows = tests.rows[modality]
            if ROWS[row][1]:
                rows = embed_scenes(ready.space, "image", tests.scenes)
            for kind in KINDS:
                right, took, count = answer_rows(ready, rows, tests.scenes, kind)
                rights.setdefault((modality, kind), []).append(right)
                seconds, tokens = seconds + took, tokens + count
        out["parameters"] = sum(value.numel() for value in ready.connector.parameters())
        out["llama parameters"] = sum(value.numel() for value in ready.llama.parameters())
        out.setdefault("tokens a second, answering", []).append(round(tokens / seconds))
        trained = sum(note["seconds"] for note in notes.values())
        out.setdefault("seconds of training", []).append(round(trained))
    for (modality, kind), found in rights.items():
        out["answers"].setdefault(modality, {})[kind] = figure(found)
    return out


def main() -> None:
    """Train, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/connectors"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--steps", type=int, default=4000, help="of the instructions; captions take an eighth")
    parser.add_argument("--scenes", type=int, default=20000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few steps, 100 test scenes, nothing written")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.scenes, arguments.folder = 8, 300, arguments.folder.with_name("connectors-quick")
    torch.set_num_threads(arguments.threads)
    space = load_space("bindsearch-mini")
    tests = embedded(space, "test", 100 if arguments.quick else 1000, arguments.folder / "rows", MODALITIES)
    table = {}
    for row in arguments.rows:
        table[row] = measure_row(row, arguments.seeds, space, arguments, tests)
        image = {kind: each["value"] for kind, each in table[row]["answers"]["image"].items()}
        say(f"{row}: {table[row]['parameters']} parameters, image {image}")
    if arguments.quick:
        say(json.dumps(table.get("imagebind-llm", table))[:600])
        return
    result = {"space": space.space_id, "rows": table, "steps": arguments.steps, "scenes": arguments.scenes}
    write_result("connectors", {**result, "seeds": arguments.seeds})
    for row, found in table.items():
        subject = found["answers"]["image"]["subject"]
        write_score(f"connectors: {row}, image subject", subject["value"], "share right", "compared", COMMAND, subject)


if __name__ == "__main__":
    main()
