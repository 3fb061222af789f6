"""The command line as a process: exit codes, stdout and stderr, documentation that cannot drift."""

from __future__ import annotations

import configparser
import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bindsearch import doctor
from bindsearch.doctor import EXTRAS

ROOT = Path(__file__).parent.parent


def bindsearch(*words: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, with nothing inherited that could choose a space or an index."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BINDSEARCH_")}
    clean["BINDSEARCH_TEXT_CACHE_MB"] = "0"  # nothing is left in the user's cache
    command = [sys.executable, "-m", "bindsearch", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**clean, **environment}, timeout=240)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embed and index a small folder in the seeded tiny space, by the commands themselves."""
    home = tmp_path_factory.mktemp("walk")
    media = home / "media"
    media.mkdir()
    rng = np.random.default_rng(5)
    for name in ("red", "green", "blue"):
        pixels = np.repeat(np.repeat(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), 10, axis=0), 10, axis=1)
        Image.fromarray(pixels).save(media / f"{name}.png")
        (media / f"about-{name}.txt").write_text(f"a {name} picture\n", encoding="utf-8")
    (media / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (media / "notes.xyz").write_text("no media", encoding="utf-8")
    made = bindsearch("embed", media, "-o", home / "embeddings", "--space", "tiny", "--max-bad", "0.5", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["embedded"] == {"image": 3, "text": 3}
    built = bindsearch("index", home / "embeddings", "-o", home / "index", "--json")
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["count"] == 6
    return home


def test_json_alone_on_stdout(walk: Path) -> None:
    done = bindsearch("query", walk / "index", "--text", "a red picture", "-k", "3", "--json")
    assert done.returncode == 0, done.stderr
    hits = json.loads(done.stdout)
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert hits[0]["key"] == "about-red.txt"
    assert hits[0]["score"] == pytest.approx(1.0, abs=2e-3)


def test_contributions_add_up_to_the_score(walk: Path) -> None:
    terms = ("--image", walk / "media" / "red.png@0.7", "--text", "green", "--minus-item", "blue.png@0.2")
    done = bindsearch("query", walk / "index", *terms, "--explain", "--json")
    assert done.returncode == 0, done.stderr
    for hit in json.loads(done.stdout):
        assert sum(hit["contributions"].values()) == pytest.approx(hit["score"], abs=1e-5)


def test_a_vector_or_an_item_needs_no_torch(walk: Path) -> None:
    code = (
        "import sys\nfrom bindsearch.cli import run\n"
        f"code = run(['query', {str(walk / 'index')!r}, '--item', 'red.png', '--json'])\n"
        "print(code, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 False"
    assert json.loads(done.stdout)[0]["key"] == "red.png"


def test_pages_and_sheets_are_written(walk: Path) -> None:
    page, sheet = walk / "answers.html", walk / "answers.png"
    done = bindsearch("query", walk / "index", "--text", "a <b>picture</b>", "--html", page, "--sheet", sheet)
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert "red.png" in text and "<b>picture</b>" not in text
    with Image.open(sheet) as picture:
        assert picture.format == "PNG" and min(picture.size) > 200


def test_too_many_bad_inputs_exit_4(walk: Path, tmp_path: Path) -> None:
    done = bindsearch("embed", walk / "media", "-o", tmp_path / "e", "--space", "tiny", "--max-bad", "0")
    assert done.returncode == 4
    assert "--max-bad" in done.stderr
    assert "broken.png" in (tmp_path / "e" / "bad.jsonl").read_text(encoding="utf-8")


def test_another_space_exits_5_and_names_both(walk: Path) -> None:
    done = bindsearch("query", walk / "index", "--text", "x", "--space", "tiny:8")
    assert done.returncode == 5
    assert "tiny:0@" in done.stderr and "tiny:8@" in done.stderr


def test_vectors_of_an_unknown_space_exit_5_and_say_how_to_name_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(4, 8, dtype=np.float32))
    words = ("--format", "npy", "--modality", "image")
    assert bindsearch("import", tmp_path / "x.npy", "-o", tmp_path / "e", *words).returncode == 0
    assert bindsearch("index", tmp_path / "e", "-o", tmp_path / "index").returncode == 0
    done = bindsearch("query", tmp_path / "index", "--text", "dog")
    assert done.returncode == 5
    assert "--space-id NAME@HASH" in done.stderr
    assert "--space unknown" not in done.stderr


def test_missing_things_exit_3(walk: Path, tmp_path: Path) -> None:
    assert bindsearch("embed", tmp_path / "nowhere", "-o", tmp_path / "e", "--space", "tiny").returncode == 3
    assert bindsearch("query", tmp_path / "nowhere", "--text", "x").returncode == 3
    assert bindsearch("query", walk / "index", "--item", "no-such-key").returncode == 3


def test_usage_exits_2(walk: Path) -> None:
    done = bindsearch("query", walk / "index")
    assert done.returncode == 2
    assert "--text" in done.stderr
    assert bindsearch("query", walk / "index", "--txt", "x").returncode == 2
    unknown = bindsearch("query", walk / "index", "--text", "x", "--where", "modalty == 'image'")
    assert unknown.returncode == 2
    assert "modality" in unknown.stderr
    assert bindsearch("embed", walk / "media", "-o", walk / "x", "--space", "bindsearch-mni").returncode == 2


def test_weights_that_are_not_there_exit_7(walk: Path, tmp_path: Path) -> None:
    words = ("embed", walk / "media", "-o", tmp_path / "e", "--space", "imagebind-huge")
    done = bindsearch(*words, BINDSEARCH_OFFLINE="1", BINDSEARCH_CACHE_DIR=str(tmp_path))
    assert done.returncode == 7
    assert "models fetch" in done.stderr


def test_the_index_comes_from_the_environment(walk: Path, tmp_path: Path) -> None:
    done = bindsearch("query", "--item", "red.png", "--json", cwd=tmp_path, BINDSEARCH_INDEX=str(walk / "index"))
    assert done.returncode == 0, done.stderr
    (tmp_path / "bindsearch.toml").write_text(f"index = {str(walk / 'index')!r}\n", encoding="utf-8")
    assert bindsearch("query", "--item", "red.png", cwd=tmp_path).returncode == 0
    shown = bindsearch("config", "show", "--json", cwd=tmp_path)
    assert json.loads(shown.stdout)["index"]["origin"] == "bindsearch.toml"


def test_many_queries_from_a_file(walk: Path) -> None:
    lines = [{"text": "a red picture"}, {"item": "blue.png", "k": 2}]
    path = walk / "queries.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    done = bindsearch("query", walk / "index", "--from", path, "--json")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) == 2


def test_doctor_reports_this_machine() -> None:
    done = bindsearch("doctor", "--json")
    assert done.returncode == 0, done.stderr
    findings = {(row["topic"], row["name"]): row["value"] for row in json.loads(done.stdout)}
    assert findings["wheel", "torch"].startswith("2.")
    assert ("openmp", "runtimes") in findings
    assert "tiny" in {name for topic, name in findings if topic == "space"}
    assert all(("wheel", name) in findings for name in EXTRAS)


def test_doctor_knows_which_extra_brings_what(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    brings = {
        extra: {re.split(r"[<>=]", line)[0] for line in lines.split()}
        for extra, lines in setup["options.extras_require"].items()
        if extra not in ("cpu", "gpu", "dev")
    }
    assert set().union(*brings.values()) == {*EXTRAS, "toml"}  # toml comes along with scalable-vs, which needs it
    assert {name: name in brings[extra] for name, extra in EXTRAS.items()} == dict.fromkeys(EXTRAS, True)
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    lines = {finding.name: finding.value for finding in doctor._wheels()}
    assert lines["duckdb"] == "not installed; where it is needed: pip install 'bindsearch[sql]'"


def examined(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[doctor.Finding]:
    """Examine this machine with a cache folder, but for what takes seconds."""
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(cache))
    for part in ("_wheels", "_devices", "_openmp"):
        monkeypatch.setattr(doctor, part, list)
    return doctor.examine()


def test_doctor_goes_on_where_a_part_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "space.json").write_text('{"format": ', encoding="utf-8")
    monkeypatch.setenv("BINDSEARCH_OFFLINE", "maybe")
    found = examined(monkeypatch, tmp_path)
    assert {"machine", "cache", "setting", "space"} <= {finding.topic for finding in found}
    said = doctor.problems(found)
    assert len(said) == 2
    assert said[0].startswith("BINDSEARCH_OFFLINE: expected true or false")
    assert f"{tmp_path}/broken/space.json: not valid JSON" in said[1]
    row = {"name": "old", "status": "damaged: /c/old/space.json: not valid JSON. Fetch it again.", "modalities": []}
    monkeypatch.setattr("bindsearch.models.spaces.list_spaces", lambda: [row])
    assert doctor.problems(list(doctor._spaces())) == [f"space old: {row['status']}"]


def test_doctor_says_that_a_file_is_no_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("words", encoding="utf-8")
    for cache in (file, file / "cache"):
        found = examined(monkeypatch, cache)
        said = f"{file}: is a file, the cache is a folder. Name a folder: set BINDSEARCH_CACHE_DIR"
        assert [each.partition(" (")[0] for each in doctor.problems(found)] == [said]
        assert {"texts", "free disk"} <= {finding.name for finding in found if finding.topic == "cache"}


def test_doctor_does_not_wait_for_a_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr("subprocess.run", hang)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = doctor.problems(doctor._devices())
    assert len(said) == 1 and said[0].startswith("there is a driver (nvidia-smi gives no answer in 20 s) but torch")


def test_settings_stand_below_each_other() -> None:
    lines = bindsearch("config", "show").stdout.splitlines()
    assert len(lines) > 8
    assert len({len(line) - len(line.split(maxsplit=1)[1]) for line in lines}) == 1


def test_docs_are_fresh() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "make_docs.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_an_interrupted_command_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    import bindsearch.embed
    from bindsearch.cli import run

    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(bindsearch.embed, "run_embed", stop)
    assert run(["embed", "world:0..4", "-o", str(tmp_path / "out")]) == 130
    assert "Run the same command again to go on." in capsys.readouterr().err


def test_an_interrupted_query_promises_nothing(monkeypatch, capsys):
    import bindsearch.search
    from bindsearch.cli import run

    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(bindsearch.search, "open_index", stop)
    assert run(["query", "idx", "--text", "a dog"]) == 130
    assert capsys.readouterr().err == "interrupted.\n"


@pytest.mark.parametrize(
    ("typed", "meant"), [("verfy", "verify"), ("upsert", "add"), ("delete", "remove"), ("inof", "info")]
)
def test_a_mistyped_subcommand_of_index_is_named(typed, meant, capsys, monkeypatch, tmp_path):
    from bindsearch.cli import run

    monkeypatch.chdir(tmp_path)
    assert run(["index", typed, "idx/e"]) == 2
    said = f"unknown command {typed!r}; did you mean {meant}? Type: bindsearch index {meant}"
    assert said in capsys.readouterr().err
    (tmp_path / typed).mkdir()  # a folder of that name is embeddings
    assert run(["index", typed, "-o", "idx"]) == 3
    assert "unknown command" not in capsys.readouterr().err


def test_what_needs_no_fetching_is_said(capsys, monkeypatch):
    from bindsearch.cli import run

    assert run(["models", "fetch", "bindsearch-mini"]) == 0
    assert "bundled, nothing to fetch" in capsys.readouterr().err
    assert run(["models", "fetch", "open_clip:ViT-B-32/laion2b_s34b_b79k"]) == 0
    assert "fetched at first use" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run(["models", "fetch", "imagebind-huge"]) == 2
    assert "--accept-licence" in capsys.readouterr().err


def test_an_empty_question_is_refused(capsys):
    from bindsearch.cli import run

    assert run(["ask", " ", "--image", "x.png"]) == 2
    assert "question is empty" in capsys.readouterr().err


def test_joining_says_at_the_start_that_it_waits(capsys, monkeypatch, tmp_path):
    import bindsearch.embed.run as running
    from bindsearch.cli import run

    monkeypatch.setattr(running, "JOIN_LIMIT_S", 0.2)
    assert run(["embed", "--join", "-o", str(tmp_path / "out"), "--space", "tiny", "--workers", "0"]) == 3
    assert "waits 0.2 s for one" in capsys.readouterr().err


def test_folders_that_are_mixed_up_are_called_what_they_are(tmp_path, capsys):
    from bindsearch.cli import run

    photos, rows, index = tmp_path / "photos", tmp_path / "run" / "embeddings", tmp_path / "indexes" / "run"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(np.full((40, 40, 3), 60 * number, dtype=np.uint8)).save(photos / f"{number}.png")
    assert run(["embed", str(photos), "-o", str(rows), "--workers", "0", "-q"]) == 0
    assert run(["index", str(rows), "-o", str(index), "-q"]) == 0
    capsys.readouterr()
    for words, said in (
        (
            ["query", str(rows), "--text", "x"],
            f"holds embeddings, no index. Make one of them: bindsearch index {rows} -o",
        ),
        (["query", str(photos), "--text", "x"], f"in two steps: bindsearch embed {photos} -o EMBEDDINGS, then"),
        (
            ["index", str(photos), "-o", str(tmp_path / "x")],
            f"holds no embeddings. Make them: bindsearch embed {photos} -o",
        ),
        (["index", str(index), "-o", str(tmp_path / "x")], "is an index, expected embeddings"),
    ):
        assert run(words) == 3
        assert said in capsys.readouterr().err


# ---- files and folders that cannot be written ------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--html", "--sheet"])
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_asked(tmp_path, capsys, monkeypatch, option):
    from bindsearch import search
    from bindsearch.cli import run

    monkeypatch.setattr(search, "open_index", lambda *_: pytest.fail("asked"))
    file = tmp_path / "file"
    file.write_text("words", encoding="utf-8")
    for path, said in ((tmp_path, f"{tmp_path}: is a folder"), (file / "page", f"{file}: is a file where a folder")):
        assert run(["query", str(tmp_path / "index"), "--text", "a dog", option, str(path)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {said}")
    assert file.read_text(encoding="utf-8") == "words"


def test_outputs_that_cannot_be_are_plain_errors(walk, tmp_path, capsys):
    from bindsearch.cli import run

    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    (folder / "inside").mkdir(parents=True)
    rows = str(walk / "embeddings")
    for words, said in (
        (["embed", str(walk / "media"), "-o", str(file), "--space", "tiny", "-q"], f"{file}: is a file where"),
        (["export", rows, "-o", str(folder)], f"{folder}: is a folder, expected a file."),
        (["export", rows, "-o", str(folder), "--format", "hdf5"], f"{folder}: is a folder, expected a file."),
        (["export", rows, "-o", str(file / "x.parquet")], f"{file}: is a file where a folder belongs."),
        (["world", "write", "1", "-o", str(file / "w"), "-q"], f"{file}: is a file where a folder belongs."),
        (["cache", "enhance", str(walk / "index"), "--text", "a", "-o", str(folder)], f"{folder}: is a folder"),
    ):
        assert run(words) == 2, words
        assert capsys.readouterr().err.startswith(f"error: {said}"), words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"], "drafts are left"


@pytest.mark.parametrize(
    ("number", "name", "code", "says"),
    [
        (errno.EACCES, "out/index.lock", 2, "out: no permission."),
        (errno.EROFS, "out/.draft-7", 2, "out: the place is read-only."),
        (errno.EACCES, ".rows.parquet.7.tmp", 2, "rows.parquet: no permission."),
        (errno.EACCES, "out/vectors.npy", 2, "out/vectors.npy: no permission."),
        (errno.ENOENT, "out/page.html", 3, "out/page.html: no such file or folder."),
        (errno.EEXIST, "out/shard", 2, "out/shard: is already there."),
        (errno.ENOSPC, "out/vectors.npy", 1, "out/vectors.npy: no room left."),
        (errno.EMFILE, "out/vectors.npy", 1, "out/vectors.npy: too many files are open. Raise the limit"),
        (errno.EIO, "out/vectors.npy", 1, "out/vectors.npy: Input/output error."),
    ],
)
def test_the_systems_errors_name_what_was_given(monkeypatch, tmp_path, capsys, number, name, code, says):
    """What the tests' user may write anywhere, others may not: the system's answer stands in."""
    from bindsearch import exchange
    from bindsearch.cli import run

    def refused(*_arguments, **_options):
        raise OSError(number, os.strerror(number), name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exchange, "export_store", refused)
    output = "rows.parquet" if "rows" in name else "out"
    assert run(["export", "embeddings", f"--output={output}"]) == code
    assert capsys.readouterr().err.startswith(f"error: {says}")


@pytest.mark.parametrize(
    "error",
    [
        OSError("nothing about a file"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "ffmpeg"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "out/index.lock"),
    ],
)
def test_other_errors_say_where_debug_stands(monkeypatch, capsys, error):
    from bindsearch import exchange
    from bindsearch.cli import run

    def broken(*_arguments, **_options):
        raise error

    monkeypatch.setattr(exchange, "export_store", broken)
    assert run(["export", "embeddings", "-o", "out"]) == 1
    assert "For the traceback: bindsearch --debug COMMAND ..." in capsys.readouterr().err
    with pytest.raises(OSError, match=re.escape(str(error))):
        run(["--debug", "export", "embeddings", "-o", "out"])


def test_moved_embeddings_are_where_it_says(walk, tmp_path, capsys):
    from bindsearch.cli import run

    rows = tmp_path / "rows.npy"
    np.save(rows, np.eye(1, json.loads((walk / "index" / "index.json").read_text())["dim"], dtype=np.float32))
    words = ["cache", "enhance", str(walk / "index"), "--vectors", str(rows), "-k", "1"]
    assert run([*words, "-o", str(tmp_path / "moved")]) == 0
    assert f"to {tmp_path / 'moved.npy'}" in capsys.readouterr().err
    assert np.load(tmp_path / "moved.npy").shape[0] == 1
