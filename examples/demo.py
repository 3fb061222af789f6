"""The whole walk on a world drawn for the purpose: write media, embed, index, ask by text, image, sound and a sum.

`python examples/demo.py FOLDER` (or `make demo`). Every step is a command that you can type yourself, printed first.
The scenes are from the split "demo": bindsearch-mini was never trained on them.
"""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

from bindsearch.world.scene import sample, split_seeds
from bindsearch.world.write import write_world

SCENES = 240


def run(*words: str) -> None:
    """Print a bindsearch command, then run it."""
    print(f"\n$ bindsearch {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "bindsearch", *words], check=True)


def write_question(folder: Path, name: str, modality: str, kind: str, start: int = 10_000, **wanted: str) -> Path:
    """Write one file of a scene that is not in the world, the first whose attributes are the wanted ones."""
    for number in range(start, start + 5_000):
        seed = split_seeds("demo", 1, number)
        label = sample(seed, kind).labels()[0]
        if all(label[attribute] == value for attribute, value in wanted.items()):
            scratch = folder / f".{name}"
            write_world(1, scratch, seed=int(seed[0]), size_px=256, kind=kind, modalities=(modality,))
            made = next(scratch.glob("scene-*"))
            target = folder / f"{name}{made.suffix}"
            made.replace(target)
            for rest in scratch.iterdir():
                rest.unlink()
            scratch.rmdir()
            return target
    raise SystemExit(f"no {kind} scene with {wanted} among 5000 seeds")


def can_ask() -> bool:
    """Say whether a language model is at hand: its packages, and the bundled pair."""
    from bindsearch.llm.pair import BUNDLED, FILE

    packages = all(importlib.util.find_spec(name) for name in ("transformers", "sentencepiece"))
    return packages and (BUNDLED / FILE).is_file()


def main() -> None:
    """Write the questions and the world, then walk."""
    home = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    world, embeddings, questions = home / "world", home / "embeddings", home / "questions"
    index = Path("indexes") / home.name
    questions.mkdir(parents=True, exist_ok=True)
    clear = {"count": "one", "motion": "still", "light": "day"}
    bird = write_question(questions, "bird", "image", "subject", subject="bird", **clear)
    dog = write_question(questions, "dog", "audio", "subject", subject="dog")
    beach = write_question(questions, "beach", "image", "setting", setting="beach")

    run("world", "write", str(SCENES), "-o", str(world), "--modalities", "image,text,audio")
    run("embed", str(world), "-o", str(embeddings))
    run("index", str(embeddings), "-o", str(index), "--centre", "--force")
    run("query", str(index), "--text", "a dog", "-k", "5")
    run("query", str(index), "--image", str(bird), "-k", "5")
    run("query", str(index), "--audio", str(dog), "-k", "5")
    page, sheet = home / "answers.html", home / "answers.png"
    both = ("--image", f"{beach}@0.6", "--audio", str(dog))
    run("query", str(index), *both, "-k", "12", "--html", str(page), "--sheet", str(sheet))
    print(f"\nA picture of an empty beach plus the bark of a dog: open {page} or {sheet}")
    if not can_ask():
        print("To ask a language model about the sound: pip install 'bindsearch[llm]', then run the demo again.")
        return
    carried = home / "carried.png"
    run("ask", "What is making this sound?", "--audio", str(dog), "--show-cached", "--sheet", str(carried))
    print(f"\nThe model was trained on pictures and words alone. The pictures that carried its answer: open {carried}")


if __name__ == "__main__":
    main()
