"""Recipes of the preprocessing goldens' inputs, checked against the recorded SHA-256, and files by other writers."""

import hashlib
import json
import math
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "imagebind"
PREPROCESS = GOLDEN / "preprocess"
SEED = 404


def read_json(name):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def _generator(name):
    return np.random.default_rng([SEED, zlib.crc32(name.encode())])


def audio_wave(case, facts):
    """Give (C, n) float32 of one audio case."""
    n, channels = facts["n"], facts["channels"]
    if case == "silence_2s":
        wave = np.zeros((channels, n), np.float32)
    elif case == "dc_2s":
        wave = np.full((channels, n), 0.5, np.float32)
    else:
        wave = np.stack([_channel(case, number, n) for number in range(channels)])
    if case == "quiet_2s":
        wave = wave * np.float32(1e-5)
    if case == "int16_scale_2s":
        wave = np.round(wave * np.float32(32767))
    assert hashlib.sha256(wave.tobytes()).hexdigest() == facts["input_sha256"], f"{case}: numpy's stream has changed"
    return wave


def _channel(case, number, n):
    rng = _generator(f"audio/{case}/ch{number}")
    low = np.repeat(rng.standard_normal(math.ceil(n / 40), np.float32), 40)[:n]
    envelope = np.repeat(np.abs(rng.standard_normal(math.ceil(n / 1600), np.float32)), 1600)[:n]
    fine = rng.standard_normal(n, np.float32)
    return np.float32(0.1) * low * envelope + np.float32(0.02) * fine + np.float32(0.1 if number == 0 else -0.05)


def video_frames(case, facts):
    """Give (n, h, w, 3) uint8 of one video case."""
    n, h, w = facts["n"], facts["h"], facts["w"]
    blocks = _generator(f"video/{case}").integers(0, 256, (n, math.ceil(h / 8), math.ceil(w / 8), 3), np.uint8)
    video = np.ascontiguousarray(blocks.repeat(8, 1).repeat(8, 2)[:, :h, :w])
    assert hashlib.sha256(video.tobytes()).hexdigest() == facts["input_sha256"], f"{case}: numpy's stream has changed"
    return video


def ffmpeg_grey16(array, codec):
    """Encode (H, W) uint16 as a 16-bit PNG or TIFF with FFmpeg's own writer."""
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = array.shape
    context.pix_fmt, context.time_base = {"png": "gray16be", "tiff": "gray16le"}[codec], Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="gray16le").reformat(format=context.pix_fmt)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
