"""What stands in a scene's files: values rounded as the formats hold them, and the bytes of each format.

A source without files gives the same rounded values, so that both are embedded alike.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.errors import InputError, UnknownNameError
from bindsearch.sources import Source
from bindsearch.world.scene import Scenes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

SUFFIXES = {
    "image": ".png",
    "video": ".mp4",
    "text": ".txt",
    "audio": ".wav",
    "depth": ".depth.png",
    "thermal": ".thermal.png",
    "imu": ".imu.csv",
    "points": ".ply",
}
"""What a scene's files end in, by modality; the names by which a listing knows them again."""
LANGUAGE_SUFFIXES = {"english": ".txt", "german": ".de.txt"}
COLDEST_C, HOTTEST_C = -40.0, 120.0
"""Degrees Celsius of the levels 0 and 65535 of a thermal picture."""
FARTHEST_M = 65.535
"""Largest distance of a 16-bit picture in millimetres; what is farther stands there."""
IMU_STEPS = 100_000
"""Inertial values are rounded to a hundred-thousandth of m/s^2 and rad/s."""
IMU_HEADER = "time_s,accel_x (m/s^2),accel_y (m/s^2),accel_z (m/s^2),gyro_x (rad/s),gyro_y (rad/s),gyro_z (rad/s)"
RATES = {"video": 8, "audio": 16_000, "imu": 200}
"""Frames or samples a second."""
_TOP = 65535


def render_values(scenes: Scenes, modality: str, size_px: int, language: str = "english") -> Sequence[Any]:
    """Render scenes in one modality and round what comes as its files hold it.

    Args:
        scenes: n scenes.
        modality: a key of SUFFIXES.
        size_px: side of pictures and frames; others do without it.
        language: of texts.

    Returns:
        n values: image (H, W, 3) uint8 | video (T, H, W, 3) uint8 | text a str | audio (T,) int16 | depth (H, W) uint16
        millimetres | thermal (H, W) uint16 levels | imu (6, T) int64 steps | points (P, 3) float32 metres.

    Raises:
        UnknownNameError: no such modality or language.
    """
    if modality not in SUFFIXES:
        raise UnknownNameError("modality of the world", modality, SUFFIXES)
    values: Sequence[Any] = _RENDER[modality](scenes, size_px, language)
    return values


def bytes_each(modality: str, size_px: int) -> int:
    """Give about how many bytes one rendered value takes, and rendering it needs beside."""
    pictures = {"image": 3, "video": 16 * 3, "depth": 4, "thermal": 4}
    return pictures[modality] * size_px**2 if modality in pictures else 128_000


def _images(scenes: Scenes, size_px: int, _language: str) -> Any:
    from bindsearch.world.image import render_images

    return render_images(scenes, size_px)


def _videos(scenes: Scenes, size_px: int, _language: str) -> Any:
    from bindsearch.world.video import render_videos

    return render_videos(scenes, size_px)


def _texts(scenes: Scenes, _size_px: int, language: str) -> Any:
    from bindsearch.world.text import write_captions

    return write_captions(scenes, language).texts


def _waves(scenes: Scenes, _size_px: int, _language: str) -> Any:
    from bindsearch.world.audio import render_waves

    return to_pcm(render_waves(scenes))


def _depths(scenes: Scenes, size_px: int, _language: str) -> Any:
    from bindsearch.world.depth import render_depths

    return to_millimetres(render_depths(scenes, size_px))


def _thermals(scenes: Scenes, size_px: int, _language: str) -> Any:
    from bindsearch.world.thermal import render_thermals

    return to_levels(render_thermals(scenes, size_px))


def _imus(scenes: Scenes, _size_px: int, _language: str) -> Any:
    from bindsearch.world.imu import render_imus

    return to_imu_steps(render_imus(scenes))


def _points(scenes: Scenes, _size_px: int, _language: str) -> Any:
    from bindsearch.world.points import render_points

    return render_points(scenes)


_RENDER = {
    "image": _images,
    "video": _videos,
    "text": _texts,
    "audio": _waves,
    "depth": _depths,
    "thermal": _thermals,
    "imu": _imus,
    "points": _points,
}


# ---- values, rounded as the files hold them --------------------------------------------------------------------------


def to_millimetres(metres: ArrayLike) -> NDArray[np.uint16]:
    """Round distances to whole millimetres.

    Args:
        metres: (...) float32, 0 where nothing came back. Not modified.

    Returns:
        (...) uint16, at most 65535; 0 stays 0, and only 0 becomes 0.
    """
    array = np.asarray(metres, dtype=np.float64)
    return np.where(array > 0, np.clip(np.rint(array * 1000), 1, _TOP), 0).astype(np.uint16)


def to_levels(degrees_c: ArrayLike) -> NDArray[np.uint16]:
    """Spread temperatures over 16 bits: COLDEST_C is 0 and HOTTEST_C 65535, whatever the picture holds.

    Args:
        degrees_c: (...) float32 degrees Celsius; what lies outside is cut. Not modified.
    """
    share = (np.asarray(degrees_c, dtype=np.float64) - COLDEST_C) / (HOTTEST_C - COLDEST_C)
    return np.rint(np.clip(share, 0, 1) * _TOP).astype(np.uint16)


def from_levels(levels: ArrayLike) -> NDArray[np.float32]:
    """Undo `to_levels`, to 0.0013 degrees."""
    share = np.asarray(levels, dtype=np.float64) / _TOP
    return (COLDEST_C + share * (HOTTEST_C - COLDEST_C)).astype(np.float32)


def to_pcm(wave: ArrayLike) -> NDArray[np.int16]:
    """Round a wave in [-1, 1] to 16 bits."""
    return np.rint(np.clip(np.asarray(wave, dtype=np.float64), -1, 1) * 32767).astype(np.int16)


def to_imu_steps(signal: ArrayLike) -> NDArray[np.int64]:
    """Round inertial values to IMU_STEPS a unit; `steps / IMU_STEPS` is what reading the CSV gives, bit for bit."""
    return np.rint(np.asarray(signal, dtype=np.float64) * IMU_STEPS).astype(np.int64)


def to_source(value: Any, modality: str, name: str) -> Source:
    """Make the source of a rendered value: decoding it gives what decoding its lossless file gives."""
    if modality == "text":
        return Source.literal(value, name)
    if modality == "audio":
        return Source.of(value[None], name, RATES["audio"])
    if modality == "imu":
        return Source.of(value / IMU_STEPS, name, RATES["imu"])
    return Source.of(value, name, RATES.get(modality))


# ---- bytes -----------------------------------------------------------------------------------------------------------


def encode(value: Any, modality: str) -> bytes:
    """Write a rendered value in its modality's format."""
    if modality == "text":
        return f"{value}\n".encode()
    if modality == "audio":
        return encode_wav(value, RATES["audio"])
    if modality == "video":
        return encode_mp4(value, RATES["video"])
    if modality == "imu":
        return encode_imu_csv(value, RATES["imu"])
    if modality == "points":
        return encode_ply(value)
    notes = {"depth": {"unit": "mm"}, "thermal": {"unit": f"0 is {COLDEST_C:g} C, 65535 is {HOTTEST_C:g} C"}}
    return encode_png(value, **notes.get(modality, {}))


def encode_png(picture: NDArray[Any], **notes: str) -> bytes:
    """Write a picture as PNG.

    Args:
        picture: (H, W, 3) uint8, or (H, W) uint16. Not modified.
        notes: text chunks of the file, such as its unit.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, words in notes.items():
        info.add_text(name, words)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, "PNG", compress_level=3, pnginfo=info)
    return stream.getvalue()


def encode_wav(pcm: NDArray[np.int16], rate_hz: int) -> bytes:
    """Write a wave (T,) as 16-bit WAV."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, pcm, rate_hz, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def encode_mp4(frames: NDArray[np.uint8], rate_fps: int) -> bytes:
    """Write frames as H.264 in MP4, as a browser plays it; the encoder may give other bytes for the same frames.

    Args:
        frames: (T, H, W, 3) uint8, H and W even. Not modified.
        rate_fps: frames a second.

    Raises:
        InputError: an odd side, which this format's halved colours cannot have.
    """
    import av

    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise InputError(f"a video of {width} x {height} pixels: both sides must be even. Type another --size.")
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4", options={"fflags": "+bitexact"}) as container:  # no time of writing
        track = container.add_stream("libx264", rate=rate_fps, options={"crf": "17", "preset": "veryfast"})
        track.width, track.height, track.pix_fmt, track.thread_count = width, height, "yuv420p", 1
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(track.encode())
    return stream.getvalue()


def encode_imu_csv(steps: NDArray[np.int64], rate_hz: int) -> bytes:
    """Write an inertial recording as CSV with its times and units.

    Args:
        steps: (6, T) from `to_imu_steps`. Not modified.
        rate_hz: samples a second; times are written to the millisecond or finer.
    """
    count = steps.shape[1]
    table = np.empty((count, 7), dtype=np.float64)
    table[:, 0] = np.arange(count) / rate_hz
    table[:, 1:] = steps.T / IMU_STEPS
    row = "%.6g,%.5f,%.5f,%.5f,%.5f,%.5f,%.5f\n"
    text: str = row * count % tuple(table.ravel().tolist())
    return f"{IMU_HEADER}\n{text}".encode("ascii")


def encode_ply(points: NDArray[np.float32]) -> bytes:
    """Write points (P, 3) in metres as binary little-endian PLY."""
    head = ["ply", "format binary_little_endian 1.0", "comment unit metre", f"element vertex {len(points)}"]
    head += [f"property float {axis}" for axis in "xyz"] + ["end_header", ""]
    return "\n".join(head).encode("ascii") + np.ascontiguousarray(points, dtype="<f4").tobytes()
