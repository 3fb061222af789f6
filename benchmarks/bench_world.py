"""How fast one core draws the world at bindsearch-mini's resolution, modality by modality.

python -m benchmarks.bench_world        # results/world.json; a minute on one quiet core

One process, every library on one thread; CPU time of the renderers that training calls, in batches as it asks for
them, the median of some rounds of other scenes each. A clip of two frames is what the mini is trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks.record import spread, write_result, write_score
from benchmarks.resources import Clock
from bindsearch.world.audio import render_waves
from bindsearch.world.depth import render_depths
from bindsearch.world.image import render_images
from bindsearch.world.imu import render_imus
from bindsearch.world.points import render_points
from bindsearch.world.scene import Scenes, sample, split_seeds
from bindsearch.world.text import write_captions
from bindsearch.world.thermal import render_thermals
from bindsearch.world.video import render_videos

COMMAND = "python -m benchmarks.bench_world"
ROUNDS = 5
SIZE_PX = 64
BAR_IMAGES_S = 1000
CLIP_S = (0.0, 0.125)
RENDERERS: dict[str, tuple[Callable[[Scenes], Any], int]] = {
    "image": (lambda scenes: render_images(scenes, SIZE_PX), 1536),
    "clip of two frames": (lambda scenes: render_videos(scenes, SIZE_PX, CLIP_S), 1536),
    "depth": (lambda scenes: render_depths(scenes, SIZE_PX), 1536),
    "thermal": (lambda scenes: render_thermals(scenes, SIZE_PX), 1536),
    "audio": (render_waves, 128),
    "imu": (render_imus, 256),
    "points": (render_points, 256),
    "text": (write_captions, 1536),
}
"""Modality -> its renderer, and scenes a batch."""


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Give the items a second of CPU time of one renderer; one round before the others warms up."""
    render, batch = RENDERERS[name]
    rates = []
    for number in range(rounds + 1):
        scenes = sample(split_seeds("train", batch, number * batch))
        with Clock() as clock:
            render(scenes)
        rates.append(batch / clock.cpu_s)
    return {"batch": batch, "items_s": spread(rates[1:])}


def main() -> None:
    """Measure, print, write JSON and the scoreboard's row."""
    from threadpoolctl import ThreadpoolController

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="fewer only try the script and write no result")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"size_px": SIZE_PX, "rounds": arguments.rounds, "renderers": {}}
    with ThreadpoolController().limit(limits=1):
        for name in RENDERERS:
            result["renderers"][name] = found = measure(name, arguments.rounds)
            print(f"{name}: {found['items_s']['median']:.0f} a second and core", flush=True)
    if arguments.rounds < ROUNDS:
        return
    write_result("world", result)
    images = result["renderers"]["image"]["items_s"]
    name = f"world: pictures of {SIZE_PX} px drawn a second and core"
    write_score(name, round(images["median"]), "images/s", f">= {BAR_IMAGES_S}", COMMAND, images)


if __name__ == "__main__":
    main()
