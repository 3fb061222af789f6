import hashlib
import io
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bindsearch import members
from bindsearch.errors import DecodeError, InputError
from bindsearch.sources import Source, describe_head
from bindsearch.types import Item


def make_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_every_way_to_name_the_same_bytes(tmp_path):
    data = bytes(range(256)) * 40
    file = tmp_path / "a b.bin"
    file.write_bytes(data)
    make_tar(tmp_path / "t.tar", {"first.bin": b"x" * 700, "in/side.bin": data})
    import fsspec

    fsspec.filesystem("memory").pipe_file("/box/side.bin", data)
    with tarfile.open(tmp_path / "t.tar") as tar:
        offset = tar.getmember("in/side.bin").offset_data
    sources = [
        Source.of(file),
        Source.of(str(file)),
        Source.of(file.as_uri()),
        Source.of(data),
        Source.of(bytearray(data)),
        Source.of("memory://box/side.bin"),
        Source.of(f"tar://{tmp_path}/t.tar!/in/side.bin"),
        Source.tar_member(tmp_path / "t.tar", "in/side.bin", offset, len(data)),
        Source.of_item(Item("k", "image", str(file))),
        Source.of_item(Item("k", "image", str(tmp_path / "t.tar"), member="in/side.bin")),
    ]
    for source in sources:
        assert source.read_bytes() == data, source
        assert source.sha256() == hashlib.sha256(data).hexdigest()
        with source.open() as opened:
            opened.seek(-3, os.SEEK_END)
            assert opened.read(10) == data[-3:]
            opened.seek(5)
            assert opened.read(4) == data[5:9]
    assert [source.suffix for source in sources[:3] + sources[5:8]] == [".bin"] * 6
    assert Source.of(Source.of(file)).location == str(file)


def test_a_tar_member_ends_where_it_ends(tmp_path):
    make_tar(tmp_path / "t.tar", {"a.txt": b"aaa", "b.txt": b"bbb"})
    source = Source.of(f"tar://{tmp_path}/t.tar!/a.txt")
    with source.open() as file:
        assert file.read() == b"aaa"
        assert file.read() == b""
    with pytest.raises(DecodeError, match=r"no such member"):
        Source.of(f"tar://{tmp_path}/t.tar!/c.txt").read_bytes()
    with pytest.raises(InputError, match=r"tar://PATH!/MEMBER"):
        Source.of("tar://t.tar")


def test_tar_sources_name_members_as_listings_do(tmp_path, monkeypatch):
    names = [os.fsdecode(b"caf\xe9.txt"), "soft.txt", "hard.txt", "last.txt"]
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, kind, target in zip(
            names, (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.REGTYPE),
            ("", names[0], "soft.txt", ""), strict=True,
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 0 if target else 3000
            tar.addfile(info, io.BytesIO(b"x" * 3000))
    for name in (*names, r"caf\udce9.txt"):
        assert Source.of(f"tar://{tmp_path}/t.tar!/{name}").read_bytes() == b"x" * 3000
    scans = []
    plain = members._headers
    monkeypatch.setattr(members, "_headers", lambda tar, troubles: scans.append(tar) or plain(tar, troubles))
    for name, passes in (("last.txt", 1), ("hard.txt", 3)):
        assert len(Source.of(f"tar://{tmp_path}/t.tar!/{name}").read_bytes()) == 3000
        assert len(scans) == passes, "links cost what is no link nothing"
        scans.clear()
    whole = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[: whole.index(b"last.txt") + 600])
    assert len(Source.of(f"tar://{tmp_path}/t.tar!/hard.txt").read_bytes()) == 3000  # what is whole is read
    with pytest.raises(DecodeError, match=r"cut: 3000 bytes from .*, but the tar ends at"):
        Source.of(f"tar://{tmp_path}/t.tar!/last.txt").read_bytes()
    (tmp_path / "t.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DecodeError, match="cannot be read as a tar"):
        Source.of(f"tar://{tmp_path}/t.tar!/last.txt").read_bytes()


def test_literals_and_items():
    source = Source.of_item(Item("captions#3", "text", "captions.jsonl", literal="ein Hund"))
    assert (source.kind, source.value, source.name) == ("text", "ein Hund", "captions#3")
    assert source.read_bytes() == b"ein Hund"
    assert source.size == 8


def test_arrays_and_pictures_hash_by_content():
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert Source.of(array).sha256() == Source.of(array.copy()).sha256()
    assert Source.of(array).sha256() != Source.of(array.reshape(4, 3, 1)).sha256()
    assert Source.of(array).sha256() != Source.of(array.view(np.int8)).sha256()
    picture = Image.fromarray(array)
    assert Source.of(picture).sha256() == Source.of(picture.copy()).sha256()
    assert Source.of((array, 8000)).rate_hz == 8000
    with pytest.raises(InputError, match="no bytes"):
        Source.of(array).open()


def test_what_is_no_source_is_said():
    with pytest.raises(InputError, match="not dict"):
        Source.of({})


@pytest.mark.timeout(20)
def test_special_files_are_refused_without_hanging(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    wanted = {
        "fifo": "a FIFO",
        "folder.jpg": "a directory",
        "loop": "loop of symbolic links",
        "zero": "a character device",
        "nothing": "no such file",
        "n" * 300: "too long",
        "nul\x00byte": "null byte",
    }
    for name, words in wanted.items():
        with pytest.raises(DecodeError, match=words) as caught:
            Source.of(str(tmp_path / name)).read_bytes()
        assert caught.value.stage == "read"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_file_without_permission():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        file = Path(folder, "secret.png")
        file.write_bytes(b"x")
        file.chmod(0)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # the superuser may read everything: become nobody
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                Source.of(file).read_bytes()
            except BaseException as error:
                os.write(writer, f"{type(error).__name__}: {error}".encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        with open(reader, "rb") as pipe:
            assert pipe.read().decode() == f"DecodeError: {file}: no permission to read it"


def test_limits(tmp_path):
    file = tmp_path / "big.bin"
    file.write_bytes(b"0123456789")
    assert Source.of(file).read_bytes(10) == b"0123456789"
    for source in (Source.of(file), Source.of(file.read_bytes())):
        with pytest.raises(DecodeError, match="10 bytes, over the limit of 9"):
            source.read_bytes(9)
    import fsspec

    fsspec.filesystem("memory").pipe_file("/box/big.bin", b"0123456789")
    with pytest.raises(DecodeError, match="more than the limit of 9"):
        Source.of("memory://box/big.bin").read_bytes(9)


def test_unknown_schemes_and_hosts_are_decode_errors():
    with pytest.raises(DecodeError) as caught:
        Source.of("nosuchscheme://a/b.png").read_bytes()
    assert caught.value.stage == "read"


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n", "a PNG picture"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt", "a WAV sound"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8", "a WebP picture"),
        (b'<?xml version="1.0"?><svg>', "an SVG drawing"),
        (b"\n<!DOCTYPE HTML><p>", "HTML"),
        (b"\x00\x00\x00\x18ftypmp42", "an MP4 or QuickTime file"),
        ("grün".encode(), "plain text"),
        (b"\x00\x01\x02\x03\x04", "unknown bytes 00 01 02 03"),
    ],
)
def test_heads_are_described(head, words):
    assert describe_head(head) == words
