"""What starting is measured on: imagebind-huge with random weights of which only the text tower is on disk, in bf16.

    python -m benchmarks.huge_text runs/start

708 MB and 410 MB, written once. The vision tower, whose hash names the space, is on record without a file: no text
query reads it. Weights follow the recipe of the full-size parity golden (seed 303).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

DTYPE = "bfloat16"
ITEMS = 100_000


def write_space(folder: Path) -> Path:
    """Write the space where it is not there yet; gives its folder."""
    import torch

    from bindsearch.models.architecture import load_architecture
    from bindsearch.models.bind import build_tower
    from bindsearch.models.keys import checkpoint_key
    from bindsearch.models.manifest import FILE, SpaceManifest, TowerRecord
    from bindsearch.models.recipe import Recipe, draw
    from bindsearch.models.tower_file import Getter
    from bindsearch.models.weights import save_space

    if (folder / FILE).is_file():
        return folder
    architecture = load_architecture("imagebind-huge")
    recipe = Recipe(303, logit_scales={"text": 100.0})

    def getter(key: str, shape: tuple[int, ...]) -> Getter:
        return lambda: torch.from_numpy(draw(recipe, checkpoint_key("text", key), shape))

    tensors = build_tower(architecture, "text").state_dict()
    vision = TowerRecord("vision.safetensors", 0, "", "recipe/1/303")
    manifest = SpaceManifest(
        "imagebind-huge", architecture, towers={"vision": vision}, modalities=("image", "text"), dtype=DTYPE
    )
    text = {key: getter(key, tuple(tensor.shape)) for key, tensor in tensors.items()}
    save_space(folder, manifest, {"text": text}, DTYPE)
    return folder


def write_index(folder: Path, space: str, items: int = ITEMS) -> Path:
    """Build an index of seeded random unit rows in a space, through the importer, where it is not there yet.

    Args:
        folder: gets index/, embeddings/ and query.npy, one of the rows.
        space: what `load_space` takes.
        items: rows.
    """
    from bindsearch.exchange import import_store
    from bindsearch.index.build import build_index
    from bindsearch.models.spaces import load_space

    if (folder / "index" / "index.json").is_file():
        return folder / "index"
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_space(space)
    rows = np.random.default_rng(7).standard_normal((items, loaded.dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(folder / "vectors.npy", rows)
    np.save(folder / "query.npy", rows[5])
    import_store(folder / "vectors.npy", folder / "embeddings", "npy", space_id=loaded.space_id, modality="image")
    build_index(folder / "embeddings", folder / "index")
    (folder / "vectors.npy").unlink()
    return folder / "index"


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print(write_index(folder, str(write_space(folder / "imagebind-huge-text"))))


if __name__ == "__main__":
    main()
