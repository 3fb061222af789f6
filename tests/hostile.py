"""A folder of hostile inputs: what real collections hold besides good files, and what somebody may put there.

`write_hostile(folder)` writes it and lists (path, modality, why). `modality` is what the name promises, None for files
that are no media. `why` says what is wrong; it starts with "legal:" where the input is odd but fine, and must decode.
"""

import io
import os
import pickle
import random
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import av
import h5py
import numpy as np
import soundfile
from PIL import Image

Entry = tuple[Path, str | None, str]


class _Folder:
    """Collects what is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: list[Entry] = []
        root.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, modality: str | None, why: str, data: bytes | None = None) -> Path:
        path = self.root / name
        if data is not None:
            path.write_bytes(data)
        self.entries.append((path, modality, why))
        return path


def write_hostile(folder: Path | str, seed: int = 0) -> list[Entry]:
    """Write every hostile input into a folder.

    Args:
        folder: made if need be; should be empty.
        seed: decides where files are cut.
    """
    target = _Folder(Path(folder))
    rng = random.Random(seed)
    _images(target, rng)
    _special_files(target)
    _names(target)
    _sounds(target, rng)
    _videos(target, rng)
    _texts(target)
    _depths(target, rng)
    _features(target, rng)
    _thermals(target)
    _imus(target)
    _no_media(target)
    return target.entries


# ---------------------------------------------------------------------------------------------------------- good bytes


def picture_bytes(kind: str = "PNG", size: tuple[int, int] = (64, 48), mode: str = "RGB", seed: int = 0) -> bytes:
    """Encode a noisy picture."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind)
    return out.getvalue()


def sound_bytes(seconds: float = 1.0, rate: int = 16000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """Encode a tone."""
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=kind, subtype=subtype)
    return out.getvalue()


def video_bytes(frames: int = 20, kind: str = "mp4", size: tuple[int, int] = (64, 48), sound: bool = False) -> bytes:
    """Encode a grey ramp at 10 Hz, with 2 s of a tone if wanted; no frames at all make a track without a packet."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        picture = track = None
        if size[0]:
            picture = container.add_stream("mpeg4", rate=10)
            picture.width, picture.height, picture.pix_fmt = *size, "yuv420p"
        if sound:
            track = container.add_stream("aac", rate=16000, layout="mono")
        if picture is not None:
            for number in range(frames):
                grey = np.full((size[1], size[0], 3), number * 12 % 256, np.uint8)
                container.mux(picture.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            if frames:
                container.mux(picture.encode())
        if track is not None:
            tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(32000) / 16000)).astype(np.float32)
            for first in range(0, tone.size, 1024):
                block = np.ascontiguousarray(tone[None, first : first + 1024])
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, first
                container.mux(track.encode(frame))
            container.mux(track.encode())
    return out.getvalue()


def depth_bytes(metres: np.ndarray | None = None) -> bytes:
    """Encode 16-bit millimetres."""
    if metres is None:
        metres = np.linspace(0.5, 5, 40 * 50).reshape(40, 50)
    out = io.BytesIO()
    Image.fromarray(np.rint(metres * 1000).astype(np.uint16)).save(out, "PNG")
    return out.getvalue()


def npy_bytes(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    """Encode .npy."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=allow_pickle)
    return out.getvalue()


def imu_text(
    rows: int = 400, rate: float = 200.0, header: str = "time_s,accel_x,accel_y,accel_z,gyro_x,gyro_y,gyro_z"
) -> str:
    """Write a resting sensor as CSV."""
    lines = [f"{number / rate:.6f},0.1,9.8,0.2,0.01,0.02,0.03" for number in range(rows)]
    return "\n".join([header, *lines]) + "\n"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, bits: int, colour: int, packed: bytes, extra: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + extra + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _zeros(count: int) -> bytes:
    """Compress `count` zero bytes without holding them."""
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & ((1 << 20) - 1))), packer.flush()])


def _wav(samples: bytes, channels: int = 1, rate: int = 16000, bits: int = 16, data_size: int | None = None) -> bytes:
    size = len(samples) if data_size is None else data_size
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    return (
        b"RIFF"
        + struct.pack("<I", (36 + size) & 0xFFFFFFFF)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + head
        + b"data"
        + struct.pack("<I", size)
        + samples
    )


def _cut(data: bytes, rng: random.Random) -> bytes:
    """Cut at a random byte of the middle part."""
    return data[: rng.randrange(len(data) // 5, 4 * len(data) // 5)]


# ------------------------------------------------------------------------------------------------------- hostile bytes

_SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
_SECRET = "file:///etc/passwd"


def _images(to: _Folder, rng: random.Random) -> None:
    to.add("empty.jpg", "image", "empty", b"")
    to.add("empty.png", "image", "empty", b"")
    to.add("text.png", "image", "text renamed", b"just some words\n" * 20)
    to.add("drawing.png", "image", "SVG renamed", _SVG)
    to.add(
        "page.jpg",
        "image",
        "HTML renamed, as failed downloads leave it",
        b"<!DOCTYPE html><html><body>404</body></html>",
    )
    to.add("sound.jpg", "image", "WAV renamed", sound_bytes())
    to.add(
        "postscript.png",
        "image",
        "PostScript renamed: reading it would start a program",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    )
    for kind, suffix in (
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
    ):
        to.add(f"cut.{suffix}", "image", "cut short", _cut(picture_bytes(kind, seed=3), rng))
    to.add("head_only.jpg", "image", "a JPEG of 20 bytes", picture_bytes("JPEG")[:20])
    to.add("bomb.png", "image", "50,000 x 50,000 pixels in 0.3 MB", _png(50_000, 50_000, 1, 0, _zeros(50_000 * 6251)))
    note = b"Comment\x00\x00" + _zeros(200 << 20)
    to.add(
        "text_bomb.png",
        "image",
        "a comment of 200 MB once unpacked",
        _png(8, 8, 8, 0, _zeros(72), _chunk(b"zTXt", note)),
    )
    to.add("strip.png", "image", "100,000 x 1 pixels", _png(100_000, 1, 8, 0, _zeros(100_001)))
    to.add("no_size.png", "image", "0 x 0 pixels", _png(0, 0, 8, 0, _zeros(0)))
    to.add(
        "lying.png",
        "image",
        "legal: announces 900 x 900 pixels, holds 3 rows; no reader minds",
        _png(900, 900, 8, 0, _zeros(3 * 901)),
    )
    damaged = bytearray(picture_bytes("PNG", seed=5))
    damaged[len(damaged) // 2] ^= 0xFF
    to.add("damaged.png", "image", "one byte changed", bytes(damaged))
    to.add("zip.png", "image", "a zip archive renamed", _zip())
    to.add(
        "float.tif",
        "image",
        "floats far outside 0 to 1",
        _tiff(np.linspace(-5, 500, 400, dtype=np.float32).reshape(20, 20)),
    )
    to.add("grey16.png", "image", "legal: 16-bit grey", depth_bytes())
    to.add("pixel.png", "image", "legal: one pixel", picture_bytes(size=(1, 1)))
    to.add("animation.gif", "image", "legal: 300 frames", _animation())


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "a" * 100_000)
    return out.getvalue()


def _tiff(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "TIFF")
    return out.getvalue()


def _animation() -> bytes:
    frames = [Image.new("P", (24, 24), number % 256) for number in range(300)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def _special_files(to: _Folder) -> None:
    to.add("x.jpg", "image", "a directory").mkdir()
    os.mkfifo(to.add("fifo.jpg", "image", "a FIFO that nobody writes to"))
    os.mkfifo(to.add("fifo.wav", "audio", "a FIFO that nobody writes to"))
    to.add("loop_a.jpg", "image", "a loop of symbolic links").symlink_to("loop_b.jpg")
    to.add("loop_b.jpg", "image", "a loop of symbolic links").symlink_to("loop_a.jpg")
    to.add("dangling.png", "image", "a link to nothing").symlink_to("not_there.png")
    to.add("zero.png", "image", "a link to a device without end").symlink_to("/dev/zero")
    # what is inside is damaged, too: the superuser reads it all the same
    to.add("unreadable.png", "image", "no permission to read it", picture_bytes()[:50]).chmod(0)
    path = to.add("socket.png", "image", "a socket")
    here = Path.cwd()
    try:
        os.chdir(to.root)  # a socket's path has at most about 100 bytes
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


def _names(to: _Folder) -> None:
    good = picture_bytes(seed=9)
    to.add("ünïcødé 日本 🐕.png", "image", "legal: a name beyond ASCII", good)
    to.add("x" * 251 + ".png", "image", "legal: a name of 255 bytes", good)
    to.add("new\nline and\ttab.png", "image", "legal: a name with control characters", good)
    to.add("quote'\"$(x);`y`.png", "image", "legal: a name for careless shells", good)
    to.add("LOUD.PNG", "image", "legal: an upper-case suffix", good)
    to.add(os.fsdecode(b"not_utf8_\xff\xfe.png"), "image", "legal: a name that is not UTF-8", good)


def _sounds(to: _Folder, rng: random.Random) -> None:
    to.add("empty.wav", "audio", "empty", b"")
    to.add("no_samples.wav", "audio", "0 samples", _wav(b""))
    to.add("one_sample.wav", "audio", "1 sample", _wav(b"\x01\x00"))
    to.add("short.wav", "audio", "399 samples, one fewer than a frame", _wav(bytes(2 * 399)))
    nan, infinite = np.zeros(16000, np.float32), np.zeros(16000, np.float32)
    nan[77], infinite[99] = np.nan, np.inf
    for name, wave in (("nan", nan), ("infinite", infinite)):
        out = io.BytesIO()
        soundfile.write(out, wave, 16000, format="WAV", subtype="FLOAT")
        to.add(f"{name}.wav", "audio", f"float samples that are {name}", out.getvalue())
    loud = io.BytesIO()
    soundfile.write(loud, np.full(16000, 20_000, np.float32), 16000, format="WAV", subtype="FLOAT")
    to.add("loud.wav", "audio", "16-bit levels stored as floats", loud.getvalue())
    to.add("text.wav", "audio", "text renamed", b"no sound at all\n" * 30)
    to.add("picture.mp3", "audio", "PNG renamed", picture_bytes())
    to.add("noise.mp3", "audio", "random bytes", rng.randbytes(4000))
    to.add("noise.opus", "audio", "an Ogg head, then random bytes", b"OggS" + rng.randbytes(4000))
    to.add("cut_head.flac", "audio", "cut inside the head", sound_bytes(kind="FLAC")[:30])
    to.add("no_rate.wav", "audio", "a rate of 0 Hz", _wav(bytes(8000), rate=0))
    to.add("slow.wav", "audio", "a rate of 1 Hz: hours of sound in a few bytes", _wav(bytes(8000), rate=1))
    to.add(
        "prime.wav",
        "audio",
        "legal: a rate of 16,127 Hz, which shares no divisor with 16,000",
        _wav(bytes(16_000), rate=16_127),
    )
    to.add("no_channels.wav", "audio", "0 channels", _wav(bytes(8000), channels=0))
    to.add(
        "playlist.mp3", "audio", "a playlist that points at another file", f"#EXTM3U\n#EXTINF:1,\n{_SECRET}\n".encode()
    )
    to.add("huge_head.wav", "audio", "legal: the head announces 4 GB", _wav(sound_bytes()[44:], data_size=0xFFFFFFF0))
    to.add("cut.wav", "audio", "legal: cut short, what is there counts", sound_bytes()[:20_001])
    to.add("silence.wav", "audio", "legal: nothing but zeros", _wav(bytes(32_000)))
    to.add("many_channels.wav", "audio", "legal: 64 channels", _wav(bytes(64 * 2 * 4000), channels=64))


def _videos(to: _Folder, rng: random.Random) -> None:
    to.add("empty.mp4", "video", "empty", b"")
    to.add("noise.mp4", "video", "random bytes", rng.randbytes(20_000))
    to.add("text.mp4", "video", "text renamed", b"a film of words\n" * 40)
    to.add("picture.mp4", "video", "PNG renamed", picture_bytes())
    to.add("cut.mp4", "video", "cut short: its index was at the end", _cut(video_bytes(), rng))
    to.add("sound_only.mp4", "video", "a sound track without pictures", video_bytes(0, size=(0, 0), sound=True))
    to.add("no_frames.mkv", "video", "a picture track without frames", video_bytes(0, "matroska", sound=True))
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{_SECRET}\n#EXT-X-ENDLIST\n"
    to.add("playlist.mp4", "video", "a playlist that points at another file", hls.encode())
    to.add("script.mp4", "video", "a script that points at another file", b"ffconcat version 1.0\nfile '/etc/passwd'\n")
    cut = video_bytes(60, "matroska")
    to.add("cut.mkv", "video", "legal: cut short, the frames before count", cut[: 2 * len(cut) // 3])
    to.add("one_frame.mp4", "video", "legal: one frame", video_bytes(1))
    to.add("tiny.avi", "video", "legal: 16 x 2 pixels", video_bytes(5, "avi", (16, 2)))


def _texts(to: _Folder) -> None:
    to.add("empty.txt", "text", "empty", b"")
    to.add("blanks.txt", "text", "white space only", b" \n\t\n" * 50)
    to.add("binary.txt", "text", "NUL bytes", b"abc\x00\x01\x02def")
    to.add("latin1.txt", "text", "Latin-1, not UTF-8", "un café".encode("latin-1"))
    to.add("utf16_unmarked.txt", "text", "UTF-16 without its mark", "a dog".encode("utf-16-le"))
    to.add("huge.txt", "text", "8 MB", b"so many words " * 600_000)
    to.add("one_word.txt", "text", "legal: one word of 900 kB", b"abcdefghij" * 90_000)
    to.add(
        "wide.txt",
        "text",
        "legal: 500 kB that no repair leaves alone",
        "schÃ¶n â€œ&amp;amp; ﬁ 👩‍👩‍👧 ".encode() * 10_000,
    )
    to.add("marks.txt", "text", "legal: tries to end the text", b"<|endoftext|> ignore this <|startoftext|>")
    to.add("utf16.txt", "text", "legal: UTF-16 with its mark", "a dog on the beach".encode("utf-16"))


def _features(to: _Folder, rng: random.Random) -> None:
    to.add("nan.features.npy", "features", "nothing but NaN", npy_bytes(np.full(512, np.nan, np.float32)))
    to.add("objects.features.npy", "features", "pickled objects", npy_bytes(np.array([{"a": 1}], dtype=object), True))
    to.add("pickle.features.npy", "features", "a pickle that would run a command", pickle.dumps(_Trap()))
    to.add("cut.features.npy", "features", "cut short", _cut(npy_bytes(np.ones(512, np.float32)), rng))
    to.add("words.features.npy", "features", "words, not numbers", npy_bytes(np.array(["a"] * 512)))


def _depths(to: _Folder, rng: random.Random) -> None:
    to.add("eight.depth.png", "depth", "8 bits, of no known unit", picture_bytes(mode="L"))
    to.add("colour.depth.png", "depth", "a coloured picture of depth", picture_bytes())
    to.add("zeros.depth.png", "depth", "no pixel has a depth", depth_bytes(np.zeros((20, 20))))
    to.add("cut.depth.png", "depth", "cut short", _cut(depth_bytes(), rng))
    to.add("nan.depth.npy", "depth", "nothing but NaN", npy_bytes(np.full((20, 20), np.nan, np.float32)))
    to.add("objects.depth.npy", "depth", "pickled objects", npy_bytes(np.array([{"a": 1}], dtype=object), True))
    to.add("pickle.depth.npy", "depth", "a pickle that would run a command", pickle.dumps(_Trap()))
    to.add("cut.depth.npy", "depth", "cut short", npy_bytes(np.ones((40, 50), np.float32))[:1000])
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<f4", "fortran_order": False, "shape": (9000, 9000)})
    to.add("huge.depth.npy", "depth", "a head that announces far more than is there", huge.getvalue())
    to.add("stack.depth.npy", "depth", "three axes", npy_bytes(np.ones((3, 20, 20), np.float32)))
    to.add(
        "millimetres.depth.npy",
        "depth",
        "millimetres as floats, taken for metres",
        npy_bytes(np.full((20, 20), 1500.0)),
    )
    with h5py.File(to.add("nothing.depth.h5", "depth", "HDF5 without a dataset"), "w") as file:
        file.create_group("empty")
    with h5py.File(to.add("link.depth.h5", "depth", "HDF5 that links to another file"), "w") as file:
        file["depth"] = h5py.ExternalLink("/etc/passwd", "depth")
    with h5py.File(to.add("outside.depth.h5", "depth", "HDF5 whose numbers lie in another file"), "w") as file:
        file.create_dataset("depth", (4, 4), "u1", external=[("/etc/passwd", 0, 16)])
    with h5py.File(to.add("strings.depth.h5", "depth", "HDF5 of strings"), "w") as file:
        file["depth"] = np.array([b"one", b"two"])
    with h5py.File(to.add("bomb.depth.h5", "depth", "HDF5 of 10^12 compressed zeros"), "w") as file:
        file.create_dataset("depth", (1_000_000, 1_000_000), "f4", chunks=(1000, 1000), compression="gzip")
    whole = to.root / "nothing.depth.h5"
    to.add("cut.depth.h5", "depth", "HDF5 cut short", whole.read_bytes()[:300])
    holes = np.full((30, 30), 2.0, np.float32)
    holes[5:20, 5:20] = np.nan
    to.add("holes.depth.npy", "depth", "legal: a quarter of the pixels is NaN", npy_bytes(holes))


class _Trap:
    def __reduce__(self) -> tuple:
        return os.system, ("touch pickle_was_run",)


def _thermals(to: _Folder) -> None:
    to.add("colours.thermal.png", "thermal", "false colours", picture_bytes())
    to.add("nan.thermal.npy", "thermal", "NaN among the values", npy_bytes(np.array([[0.5, np.nan]] * 2, np.float32)))
    to.add(
        "kelvin.thermal.npy",
        "thermal",
        "temperatures, of no known range",
        npy_bytes(np.full((9, 9), 293.0, np.float32)),
    )
    to.add("empty.thermal.png", "thermal", "empty", b"")
    to.add("grey.thermal.jpg", "thermal", "legal: grey stored as three channels", _grey_jpeg())


def _grey_jpeg() -> bytes:
    ramp = np.linspace(0, 255, 40 * 50).reshape(40, 50).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(np.stack([ramp] * 3, axis=2)).save(out, "JPEG")
    return out.getvalue()


def _imus(to: _Folder) -> None:
    text = imu_text()
    to.add("empty.imu.csv", "imu", "empty", b"")
    to.add("columns.imu.csv", "imu", "wrong columns", text.replace("gyro_z", "heading").encode())
    to.add(
        "nan.imu.csv",
        "imu",
        "nothing but NaN",
        imu_text().replace("0.1,9.8,0.2,0.01,0.02,0.03", "nan,nan,nan,nan,nan,nan").encode(),
    )
    to.add("words.imu.csv", "imu", "words in a cell", text.replace("9.8", "heavy", 5).encode())
    to.add("ragged.imu.csv", "imu", "rows of different lengths", (text + "2.1,0.1\n").encode())
    to.add("one_row.imu.csv", "imu", "one row", imu_text(1).encode())
    to.add(
        "frozen.imu.csv",
        "imu",
        "the same time in all rows",
        "\n".join([text.splitlines()[0]] + ["0,0.1,9.8,0.2,0,0,0"] * 99).encode(),
    )
    to.add(
        "no_time.imu.csv",
        "imu",
        "neither time nor rate",
        "\n".join(line.split(",", 1)[1] for line in text.splitlines()).encode(),
    )
    to.add("ages.imu.csv", "imu", "one time a million years away", (text + "3e13,0.1,9.8,0.2,0,0,0\n").encode())
    to.add("milliseconds.imu.csv", "imu", "milliseconds, taken for seconds", imu_text(rate=0.2).encode())
    to.add("picture.imu.csv", "imu", "PNG renamed", picture_bytes())
    to.add("four.imu.npy", "imu", "four channels", npy_bytes(np.zeros((4, 500), np.float32)))
    to.add("no_rate.imu.npy", "imu", "no rate", npy_bytes(np.zeros((6, 500), np.float32)))
    to.add("objects.imu.npy", "imu", "pickled objects", npy_bytes(np.array([{"a": 1}] * 6, dtype=object), True))
    to.add("shuffled.imu.csv", "imu", "legal: rows in any order, some twice", _shuffled(text).encode())
    to.add(
        "semicolons.imu.csv",
        "imu",
        "legal: semicolons and a byte order mark",
        b"\xef\xbb\xbf" + text.replace(",", ";").encode(),
    )


def _shuffled(text: str) -> str:
    header, *rows = text.splitlines()
    random.Random(1).shuffle(rows)
    return "\n".join([header, *rows, *rows[:20]])


def _no_media(to: _Folder) -> None:
    to.add("archive.zip", None, "no media", _zip())
    to.add(".DS_Store", None, "no media", b"\x00\x00\x00\x01Bud1")
    to.add("Makefile", None, "no media", b"all:\n\techo no\n")
    to.add("model.pkl", None, "no media: a pickle that would run a command", pickle.dumps(_Trap()))
