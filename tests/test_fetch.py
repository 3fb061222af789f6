"""Downloads against a real server on loopback: cut, resumed, refused, doubled, offline, out of space."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bindsearch.errors import InputError, MissingInputError, UnknownNameError, WeightsError
from bindsearch.models import fetch
from bindsearch.models.download import Patience, Wanted, download, quoted
from bindsearch.models.manifest import FILE, load_manifest
from bindsearch.models.recipe import Recipe
from bindsearch.models.releases import Release
from bindsearch.models.spaces import bundled_folder, load_space
from bindsearch.models.weights import verify

ROOT = Path(__file__).parent.parent
QUICK = Patience(timeout_s=5.0, attempts=3, backoff_s=0.01)
BODY = bytes(hashlib.sha256(str(n).encode()).digest()[0] for n in range(1 << 16)) * 48  # 3 MiB
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Server:
    """What the server holds, how it misbehaves, and what it was asked."""

    body: bytes = BODY
    etag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)  # bytes after which connections end, one a request
    statuses: list[int] = field(default_factory=list)  # answers in place of the file, one a request
    ranges: bool = True
    sends_length: bool = True
    delay_s: float = 0.0
    asked: list[str | None] = field(default_factory=list)  # the Range header of each request
    sent: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/weights.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Listener

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        plan = self.server.plan
        wanted = self.headers.get("Range")
        plan.asked.append(wanted)
        if plan.statuses:
            self.send_error(plan.statuses.pop(0))
            return
        same = self.headers.get("If-Range") in (None, plan.etag)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and plan.ranges and same else 0
        if start >= len(plan.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(plan.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted and plan.ranges and same else 200)
        if wanted and plan.ranges and same:
            self.send_header("Content-Range", f"bytes {start}-{len(plan.body) - 1}/{len(plan.body)}")
        if plan.sends_length:
            self.send_header("Content-Length", str(len(plan.body) - start))
        if plan.etag:
            self.send_header("ETag", plan.etag)
        self.end_headers()
        end = min(len(plan.body), start + plan.cuts.pop(0)) if plan.cuts else len(plan.body)
        for at in range(start, end, 1 << 16):
            time.sleep(plan.delay_s)
            try:
                self.wfile.write(plan.body[at : min(at + (1 << 16), end)])
            except OSError:
                return
            plan.sent += min(at + (1 << 16), end) - at
        self.close_connection = True


class Listener(http.server.ThreadingHTTPServer):
    plan: Server
    daemon_threads = True


@pytest.fixture
def server() -> Iterator[Server]:
    plan = Server()
    with Listener(("127.0.0.1", 0), Handler) as listening:
        listening.plan = plan
        plan.port = listening.server_address[1]
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield plan
        listening.shutdown()
        thread.join()


@pytest.fixture
def told() -> list[str]:
    return []


def wanted(server: Server, folder: Path, **known: object) -> Wanted:
    facts = {"size_bytes": len(BODY), "sha256": SHA256, "origin": "the table", **known}
    return Wanted(server.url, folder / "weights.pth", **facts)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# one download


def test_a_file_arrives_whole_and_alone(server: Server, tmp_path: Path, told: list[str]) -> None:
    got = download(wanted(server, tmp_path), told.append, patience=QUICK)
    assert got.path.read_bytes() == BODY
    assert (got.size_bytes, got.sha256, got.origin) == (len(BODY), SHA256, "the table")
    assert names(tmp_path) == ["weights.pth"]
    assert server.asked == [None]
    download(wanted(server, tmp_path), told.append, patience=QUICK)
    assert server.asked == [None], "a file that is there is not downloaded again"


def test_cut_connections_are_resumed_where_they_broke(server: Server, tmp_path: Path, told: list[str]) -> None:
    server.cuts = [1_000_000, 7, 900_001]
    got = download(wanted(server, tmp_path), told.append, patience=QUICK)
    assert got.path.read_bytes() == BODY
    assert server.asked == [None, "bytes=1000000-", "bytes=1000007-", "bytes=1900008-"]
    assert server.sent == len(BODY), "no byte is sent twice"
    assert sum("trying again" in sentence for sentence in told) == 3


def test_a_later_run_resumes_what_an_earlier_one_left(server: Server, tmp_path: Path, told: list[str]) -> None:
    server.cuts = [2_000_000, 0, 0, 0]
    with pytest.raises(WeightsError, match=r"3 times in a row\. 2000000 bytes are kept; the same command resumes"):
        download(wanted(server, tmp_path), told.append, patience=QUICK)
    assert names(tmp_path) == ["weights.pth.part", "weights.pth.part.json"]
    server.cuts = []
    assert download(wanted(server, tmp_path), told.append, patience=QUICK).path.read_bytes() == BODY
    assert server.asked[-1] == "bytes=2000000-"
    assert server.sent == len(BODY)


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path, told: list[str]) -> None:
    server.cuts, server.ranges = [1_500_000], False
    assert download(wanted(server, tmp_path), told.append, patience=QUICK).path.read_bytes() == BODY
    assert any("1500000 bytes are dropped" in sentence for sentence in told)
    assert server.sent == 1_500_000 + len(BODY)


def test_a_server_without_ranges_that_always_cuts_is_given_up(server: Server, tmp_path: Path, told: list[str]) -> None:
    server.cuts, server.ranges = [1_500_000] * 9, False
    with pytest.raises(WeightsError, match="ended early, 3 times in a row"):
        download(wanted(server, tmp_path), told.append, patience=QUICK)
    assert len(server.asked) == 4


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Server, tmp_path: Path, told: list[str]) -> None:
    server.cuts = [1_000_000, 0, 0, 0]
    server.body = bytes(len(BODY))
    with pytest.raises(WeightsError):
        download(wanted(server, tmp_path), told.append, patience=QUICK)
    server.cuts, server.body, server.etag = [], BODY, '"two"'
    assert download(wanted(server, tmp_path), told.append, patience=QUICK).path.read_bytes() == BODY
    assert server.asked[-1] == "bytes=1000000-"
    assert server.sent == 1_000_000 + len(BODY)


def test_a_part_of_another_place_is_not_continued(server: Server, tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "weights.pth.part").write_bytes(b"x" * 1000)
    (tmp_path / "weights.pth.part.json").write_text(json.dumps({"url": "http://127.0.0.1/other"}))
    assert download(wanted(server, tmp_path), told.append, patience=QUICK).path.read_bytes() == BODY
    assert server.asked == [None]
    assert any("comes from another place" in sentence for sentence in told)


@pytest.mark.parametrize(("extra", "again"), [(0, False), (100, True)])
def test_416_is_whole_or_too_much(server: Server, tmp_path: Path, told: list[str], extra: int, again: bool) -> None:
    (tmp_path / "weights.pth.part").write_bytes(BODY + b"x" * extra)
    facts = {"url": server.url, "etag": server.etag, "total": len(BODY)}
    (tmp_path / "weights.pth.part.json").write_text(json.dumps(facts))
    assert download(wanted(server, tmp_path), told.append, patience=QUICK).path.read_bytes() == BODY
    assert server.sent == (len(BODY) if again else 0)
    assert server.asked[0] == f"bytes={len(BODY) + extra}-"


def test_statuses(server: Server, tmp_path: Path, told: list[str]) -> None:
    server.statuses = [503, 429]
    assert download(wanted(server, tmp_path), told.append, patience=QUICK).path.read_bytes() == BODY
    (tmp_path / "weights.pth").unlink()
    server.statuses = [404]
    with pytest.raises(WeightsError, match=r"the server answers 404 Not Found\. Bring weights\.pth"):
        download(wanted(server, tmp_path), told.append, patience=QUICK)
    server.statuses = [500] * 3
    with pytest.raises(WeightsError, match=r"the server answers 500 .*3 times in a row"):
        download(wanted(server, tmp_path), told.append, patience=QUICK)


def test_a_name_that_is_not_found_is_asked_for_twice(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    nobody = Wanted("http://nowhere.invalid/weights.pth", tmp_path / "weights.pth", name="tiny")
    with pytest.raises(WeightsError, match=r"Name or service not known, 2 times in a row") as caught:
        download(nobody, told.append, patience=QUICK)
    assert "Is there no network? Bring weights.pth" in str(caught.value)
    assert "or: bindsearch models fetch tiny --from weights.pth" in str(caught.value)
    assert len(told) == 1


def test_no_server_and_no_such_scheme(tmp_path: Path, told: list[str]) -> None:
    nobody = Wanted("http://127.0.0.1:9/weights.pth", tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"refused.*3 times in a row"):
        download(nobody, told.append, patience=QUICK)
    with pytest.raises(InputError, match="http or https"):
        download(replace(nobody, url="file:///etc/passwd"), told.append, patience=QUICK)


def test_a_stalled_connection_is_given_up_and_resumed(server: Server, tmp_path: Path, told: list[str]) -> None:
    server.delay_s = 0.6
    stalled = Patience(timeout_s=0.2, attempts=2, backoff_s=0.01)
    with pytest.raises(WeightsError, match="timed out, 2 times in a row"):
        download(wanted(server, tmp_path), told.append, patience=stalled)


# size and checksum


def test_another_size_is_refused_before_the_download(server: Server, tmp_path: Path, told: list[str]) -> None:
    with pytest.raises(WeightsError, match=rf"expected 1000 bytes, the server offers {len(BODY)}"):
        download(wanted(server, tmp_path, size_bytes=1000), told.append, patience=QUICK)
    assert names(tmp_path) == []


def test_a_wrong_checksum_is_refused_and_the_file_kept_apart(server: Server, tmp_path: Path, told: list[str]) -> None:
    other = "0" * 64
    with pytest.raises(
        WeightsError, match=rf"expected sha256 {other} \(the table\), got {SHA256}.*weights.pth.bad"
    ) as e:
        download(wanted(server, tmp_path, sha256=other), told.append, patience=QUICK)
    assert e.value.exit_code == 7
    assert names(tmp_path) == ["weights.pth.bad"]
    assert (tmp_path / "weights.pth.bad").read_bytes() == BODY
    assert download(wanted(server, tmp_path), told.append, patience=QUICK).path.read_bytes() == BODY


def test_an_unknown_checksum_is_recorded_when_first_seen(server: Server, tmp_path: Path, told: list[str]) -> None:
    unknown = wanted(server, tmp_path, size_bytes=None, sha256=None)
    got = download(unknown, told.append, patience=QUICK)
    assert got.sha256 == SHA256
    assert any("no checksum is known" in s and f"first seen, sha256 {SHA256}" in s for s in told)
    assert json.loads((tmp_path / "weights.pth.seen.json").read_text())["sha256"] == SHA256
    assert download(unknown, told.append, patience=QUICK).origin.startswith("first seen here on")
    got.path.unlink()
    server.body, server.etag = BODY[:-1] + b"!", '"two"'
    with pytest.raises(WeightsError, match=r"first seen here on \d{4}-\d\d-\d\d\), got "):
        download(unknown, told.append, patience=QUICK)
    assert (tmp_path / "weights.pth.bad").is_file()


def test_nothing_known_at_all_is_refused(server: Server, tmp_path: Path, told: list[str]) -> None:
    server.sends_length = False
    with pytest.raises(WeightsError, match="neither the size nor the checksum"):
        download(wanted(server, tmp_path, size_bytes=None, sha256=None), told.append, patience=QUICK)
    got = download(wanted(server, tmp_path, size_bytes=None), told.append, patience=QUICK)
    assert got.sha256 == SHA256


# out of space: the operating system's own refusal, in processes of their own

CODE = """
import resource, sys
from pathlib import Path
from bindsearch.errors import WeightsError
from bindsearch.models.download import Patience, Wanted, download
url, target, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    download(Wanted(url, target, None, sys.argv[4]), print, patience=Patience(5.0, 3, 0.01))
except WeightsError as error:
    print("WEIGHTS", error)
"""


def test_a_write_that_the_system_refuses_keeps_what_arrived(server: Server, tmp_path: Path, told: list[str]) -> None:
    target = tmp_path / "weights.pth"
    run = [sys.executable, "-c", CODE, server.url, str(target), str(1_100_000), SHA256]
    said = subprocess.run(run, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert "WEIGHTS" in said
    assert f"no space left: {len(BODY) - 1_100_000} more bytes are needed" in said
    assert " are free. 1100000 bytes are kept" in said
    assert (tmp_path / "weights.pth.part").stat().st_size == 1_100_000
    assert download(wanted(server, tmp_path), told.append, patience=QUICK).path.read_bytes() == BODY
    assert server.asked[-1] == "bytes=1100000-"


def namespace() -> list[str]:
    """Give the command that runs another one where it may mount, or skip and say why."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    pytest.skip("this system lets nobody mount a small disk (no unshare); the refused write above was tested")


@pytest.mark.parametrize("tells", [True, False], ids=["told before", "found out"])
def test_a_full_disk(server: Server, tmp_path: Path, tells: bool) -> None:
    server.sends_length = tells
    disk = tmp_path / "disk"
    disk.mkdir()
    inner = [sys.executable, "-c", CODE, server.url, str(disk / "weights.pth"), "0", SHA256]
    script = 'mount -t tmpfs -o size=2m none "$0" && "$@"; ls -s --block-size=1 "$0"'
    run = [*namespace(), "sh", "-c", script, str(disk), *inner]
    result = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    assert "WEIGHTS" in result.stdout, result
    assert "no space left: " in result.stdout
    if tells:
        assert f"{len(BODY)} more bytes are needed" in result.stdout
        assert "weights.pth.part\n" not in result.stdout
    else:
        kept = (2 << 20) - 4096  # one page of the small disk holds .part.json
        assert f"more bytes are needed, 0 are free. {kept} bytes are kept" in result.stdout
        assert f"{kept} weights.pth.part\n" in result.stdout


# whole releases


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("write_huge_checkpoint", ROOT / "tools" / "write_huge_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = tmp_path_factory.mktemp("release") / "weights.pth"
    scales = {"text": 100.0, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
    tool.write(path, "tiny", Recipe(7, 2.0, logit_scales=scales))
    return path


@pytest.fixture
def release(server: Server, checkpoint: Path) -> Release:
    server.body = checkpoint.read_bytes()
    digest = hashlib.sha256(server.body).hexdigest()
    return Release("weights.pth", server.url, "CC0", size_bytes=len(server.body), sha256=digest, sha256_origin="a test")


def test_a_release_becomes_a_space(server: Server, release: Release, tmp_path: Path, told: list[str]) -> None:
    server.cuts = [1_000_000]
    folder = fetch.fetch_release("tiny", release, tmp_path / "tiny", say=told.append, patience=QUICK)
    assert load_space(folder).embed("text", ["a dog"]).shape == (1, 32)
    source = load_manifest(folder).source
    assert (source["sha256"], source["url"], source["sha256_compared_with"]) == (release.sha256, server.url, "a test")
    assert not (tmp_path / "downloads" / "weights.pth").exists()
    asked = len(server.asked)
    fetch.fetch_release("tiny", release, folder, say=told.append, patience=QUICK)
    assert len(server.asked) == asked
    assert "is here already" in told[-1]
    with pytest.raises(InputError, match=r"is here in float32\. Make bfloat16 .*models convert"):
        fetch.fetch_release("tiny", release, folder, dtype="bfloat16", patience=QUICK)
    assert len(server.asked) == asked


@pytest.mark.parametrize("damage", ["a missing tower", "a short tower", "a broken record"])
def test_a_damaged_space_is_fetched_again(server: Server, release: Release, tmp_path: Path, damage: str) -> None:
    folder = fetch.fetch_release("tiny", release, tmp_path / "tiny", dtype="bfloat16", patience=QUICK)
    if damage == "a broken record":
        (folder / FILE).write_text("{")
    elif damage == "a missing tower":
        (folder / "text.safetensors").unlink()
    else:
        (folder / "text.safetensors").write_bytes(b"short")
    told: list[str] = []
    fetch.fetch_release("tiny", release, folder, say=told.append, patience=QUICK)
    assert str(folder) in told[0]
    assert "again" in told[0]
    assert verify(folder)["dtype"] == ("float32" if damage == "a broken record" else "bfloat16")
    assert len(server.asked) == 2


def test_what_cannot_be_converted_is_refused_before_the_download(
    server: Server, release: Release, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"unknown dtype 'fp32' for converted weights. Known: float32, bfloat16"):
        fetch.fetch_release("tiny", release, tmp_path / "tiny", dtype="fp32", patience=QUICK)
    folder = tmp_path / "imagebind-huge"
    shutil.copytree(bundled_folder("bindsearch-mini"), folder)
    with pytest.raises(InputError, match="holds the space 'bindsearch-mini', which 'imagebind-huge' would replace"):
        fetch.fetch_release("imagebind-huge", release, folder, patience=QUICK)
    assert server.asked == []
    assert load_manifest(folder).name == "bindsearch-mini"


def test_urls_are_quoted_and_malformed_ones_refused_at_once(server: Server, tmp_path: Path, told: list[str]) -> None:
    assert quoted("http://h:80/a%20b/c d/ö.pth?k=v w&l=%2F") == "http://h:80/a%20b/c%20d/%C3%B6.pth?k=v%20w&l=%2F"
    assert quoted("https://bücher.example/x#part") == "https://xn--bcher-kva.example/x"
    odd = replace(wanted(server, tmp_path), url=server.url.replace("weights", "größe und gewichte"))
    assert download(odd, told.append, patience=QUICK).path.read_bytes() == BODY
    for url in ("http:///x.pth", "http://[::1/x.pth", "http://host:port/x.pth", "http://my host/x.pth", "weights.pth"):
        with pytest.raises(InputError, match="expected an http or https URL"):
            download(replace(odd, url=url, target=tmp_path / "none.pth"), told.append, patience=QUICK)
    assert told == []


def test_a_file_at_hand_is_checked_converted_and_left(
    release: Release, checkpoint: Path, tmp_path: Path, told: list[str], server: Server
) -> None:
    folder = fetch.fetch_release("tiny", release, tmp_path / "tiny", source=checkpoint, dtype="bfloat16")
    assert load_manifest(folder).dtype == "bfloat16"
    assert server.asked == []
    assert checkpoint.is_file()
    other = tmp_path / "other.pth"
    other.write_bytes(checkpoint.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"not the released weights\.pth.*models convert"):
        fetch.fetch_release("tiny", release, tmp_path / "x", source=other)
    other.write_bytes(checkpoint.read_bytes()[:-1] + b"\1")
    with pytest.raises(WeightsError, match=r"\(a test\), got [0-9a-f]{64}.*--sha256 [0-9a-f]{64}"):
        fetch.fetch_release("tiny", release, tmp_path / "x", source=other)
    with pytest.raises(MissingInputError, match="no such file"):
        fetch.fetch_release("tiny", release, tmp_path / "x", source=tmp_path / "none.pth")
    assert other.is_file()


def test_offline_names_the_file_its_size_its_checksum_and_its_place(
    server: Server, release: Release, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BINDSEARCH_OFFLINE", "1")
    place = tmp_path / "downloads" / "weights.pth"
    with pytest.raises(WeightsError) as caught:
        fetch.fetch_release("tiny", release, tmp_path / "tiny")
    command = "bindsearch models fetch tiny --from weights.pth"
    for fact in (str(place), f"{release.size_bytes} bytes", f"sha256 {release.sha256}", server.url, command):
        assert fact in str(caught.value)
    assert server.asked == []
    shutil.copy(checkpoint, place)
    fetch.fetch_release("tiny", release, tmp_path / "tiny")
    assert server.asked == []
    assert load_space(tmp_path / "tiny").dim == 32


def test_no_room_for_download_and_conversion_is_said_first(server: Server, release: Release, tmp_path: Path) -> None:
    size = shutil.disk_usage(tmp_path).total
    vast = replace(release, size_bytes=size)
    with pytest.raises(WeightsError, match=rf"no space: {2 * size} bytes are needed .* \d+ are free"):
        fetch.fetch_release("tiny", vast, tmp_path / "tiny")
    with pytest.raises(WeightsError, match=rf"no space: {size + size // 2} bytes are needed"):
        fetch.fetch_release("tiny", vast, tmp_path / "tiny", dtype="bfloat16")
    assert server.asked == []


TWO = """
import sys
from pathlib import Path
from bindsearch.models.download import Patience
from bindsearch.models.fetch import fetch_release
from bindsearch.models.releases import Release
release = Release("weights.pth", sys.argv[1], "CC0", size_bytes=int(sys.argv[2]), sha256=sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
fetch_release("tiny", release, Path(sys.argv[4]), say=lambda s: print(s, flush=True), patience=Patience(5.0, 3, 0.01))
print("done", flush=True)
"""


def pair(release: Release, folder: Path) -> list[subprocess.Popen[str]]:
    run = [sys.executable, "-c", TWO, release.url, str(release.size_bytes), str(release.sha256), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(run, text=True, cwd=ROOT, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    return processes


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_processes_at_once_download_once(server: Server, release: Release, tmp_path: Path) -> None:
    server.delay_s = 0.02
    processes = pair(release, tmp_path / "tiny")
    for process in processes:
        go(process)
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert server.asked == [None]
    assert server.sent == len(server.body)
    together = "".join(out for out, _ in said)
    assert together.count("another process is fetching it; waiting.") == 1
    assert together.count("is here already") == 1
    assert load_space(tmp_path / "tiny").embed("text", ["a dog"]).shape == (1, 32)


def test_the_second_process_takes_over_when_the_first_is_killed(
    server: Server, release: Release, tmp_path: Path
) -> None:
    server.delay_s = 0.03
    first, second = pair(release, tmp_path / "tiny")
    go(first)
    wait_for(lambda: server.sent > 1_200_000)
    go(second)
    assert second.stdout is not None
    assert "waiting" in second.stdout.readline()
    first.kill()
    first.communicate(timeout=60)
    out, problems = second.communicate(timeout=120)
    assert second.returncode == 0, problems
    assert "done" in out
    assert len(server.asked) == 2
    assert server.asked[1] is not None, "the second one resumed what the first one had fetched"
    assert int(server.asked[1].removeprefix("bytes=").rstrip("-")) >= 1 << 20
    assert load_space(tmp_path / "tiny").dim == 32


def test_the_packaged_release_and_its_licence() -> None:
    text = fetch.licence_of("imagebind-huge")
    for fact in ("CC BY-NC-SA 4.0", "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth", "4.8 GB"):
        assert fact in text
    assert "this project has not checked it" in text
    with pytest.raises(UnknownNameError, match="Did you mean 'imagebind-huge'"):
        fetch.licence_of("imagebind-hug")


def test_the_packaged_release_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINDSEARCH_OFFLINE", "1")
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path))
    with pytest.raises(WeightsError, match=r"imagebind_huge.pth \(4803584173 bytes, sha256 d6f6c22b"):
        fetch.fetch_space("imagebind-huge")
    with pytest.raises(WeightsError, match=r"size not known, sha256 abc"):
        fetch.fetch_space("imagebind-huge", sha256="ABC")
    assert os.listdir(tmp_path) == ["downloads"]
