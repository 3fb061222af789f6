"""Procedural worlds: one seed is one scene, and a scene renders into every modality, paired."""

from __future__ import annotations

from typing import Any

__all__ = [
    "Scenes",
    "render_depths",
    "render_images",
    "render_imus",
    "render_points",
    "render_thermals",
    "render_videos",
    "render_waves",
    "sample",
    "split_seeds",
    "view_scenes",
    "write_captions",
    "write_world",
]

_HOMES = {
    "Scenes": "scene",
    "sample": "scene",
    "split_seeds": "scene",
    "render_depths": "depth",
    "render_images": "image",
    "render_thermals": "thermal",
    "render_videos": "video",
    "render_imus": "imu",
    "render_points": "points",
    "render_waves": "audio",
    "write_captions": "text",
    "write_world": "write",
    "view_scenes": "view",
}


def __getattr__(name: str) -> Any:
    """Load a part when it is first asked for."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
