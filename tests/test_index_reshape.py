"""merge, split and reindex as commands: exit codes, what they say, and that add says what it did."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_store import FakeStore
from test_store import row, write_generation
from typer.testing import CliRunner

from bindsearch.cli import app
from bindsearch.errors import BindSearchError
from bindsearch.index.build import build_index
from bindsearch.index.folder import IndexFolder
from bindsearch.store import commit_store


def run(*words):
    """Run a command in this process; an error is what it raises."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def index(tmp_path):
    return build_index(FakeStore(n=40), tmp_path / "index").path


def test_split_and_merge_by_command(index, tmp_path):
    code, _, said = run("index", "split", index, "-o", tmp_path / "parts", "--by-modality")
    assert code == 0
    assert [line.rpartition("/")[2] for line in said.splitlines()] == [
        "audio: 13 items.",
        "image: 14 items.",
        "text: 13 items.",
    ]
    parts = [tmp_path / "parts" / name for name in ("audio", "image", "text")]
    code, _, said = run("index", "merge", *parts, index, "-o", tmp_path / "whole")
    assert (code, said) == (0, f"{tmp_path / 'whole'}: 40 items of 4 indexes, 40 of them in several.\n")
    assert run("index", "split", index, "-o", tmp_path / "few", "--where", "size > 3000", "-q")[2] == ""
    assert IndexFolder.open(tmp_path / "few" / "passes").count == 9
    assert IndexFolder.open(tmp_path / "few" / "rest").count == 31
    code, _, said = run("index", "split", index, "-o", tmp_path / "two", "--parts", "2")
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize("words", [[], ["--by-modality", "--parts", "2"], ["--parts", "2", "--where", "size > 1"]])
def test_split_wants_one_way(index, tmp_path, words):
    with pytest.raises(BindSearchError, match="give one of --by-modality, --parts N and --where FILTER"):
        run("index", "split", index, "-o", tmp_path / "out", *words)


def test_merge_refuses_a_difference_and_takes_the_winner(index, tmp_path):
    other = build_index(FakeStore(n=10, seed=1), tmp_path / "other").path
    with pytest.raises(BindSearchError, match=r"item/0000.*--prefer first") as error:
        run("index", "merge", index, other, "-o", tmp_path / "out", "-q")
    assert error.value.exit_code == 2
    assert run("index", "merge", index, other, "-o", tmp_path / "out", "--prefer", "last", "-q") == (0, "", "")
    np.testing.assert_array_equal(
        IndexFolder.open(tmp_path / "out").snapshot.rows(FakeStore(n=10).ids), FakeStore(n=10, seed=1).units
    )


@pytest.mark.parametrize("how", [["--by-modality"], ["--parts", "2"], ["--where", "size > 3"]], ids=" ".join)
def test_an_emptied_index_is_not_split(index, tmp_path, how):
    folder = IndexFolder.open(index)
    folder.remove(folder.snapshot.ids())
    for compacted in (False, True):
        with pytest.raises(BindSearchError, match=r"index: holds no item.*bindsearch index add") as error:
            run("index", "split", index, "-o", tmp_path / f"parts{compacted}", *how)
        assert error.value.exit_code == 3
        folder.compact()


def test_add_and_reindex_say_what_they_did(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_generation(first, 1, [("image-00000", [row("a"), row("b"), row("c")], [])])
    write_generation(second, 1, [("image-00000", [row("b"), row("c")], [])])
    commit_store(first)
    commit_store(second)
    assert run("index", "build", second, "-o", tmp_path / "index", "-q") == (0, "", "")
    said = run("index", "add", tmp_path / "index", first)[2]
    assert said == f"{tmp_path / 'index'}: 1 added, 2 replaced, 0 unchanged; 3 items.\n"
    said = run("index", "add", tmp_path / "index", first)[2]
    assert said == f"{tmp_path / 'index'}: 0 added, 0 replaced, 3 unchanged; 3 items.\n"
    with pytest.raises(BindSearchError, match=r"1 of its 3 items are not in the new embeddings, such as 'a'"):
        run("index", "reindex", tmp_path / "index", second, "-q")
    code, _, said = run("index", "reindex", tmp_path / "index", second, "--drop-missing")
    assert code == 0
    assert "2 items in " in said and "before, 3 in " in said
    code, out, _ = run("index", "verify", tmp_path / "index", "--json")
    found = json.loads(out)
    assert (code, found["count"], [part["rows"] for part in found["segments"]]) == (0, 2, [2])


def test_reindex_of_a_plain_index_has_no_means_to_take(index, tmp_path):
    before = IndexFolder.open(index).manifest
    write_generation(tmp_path / "new", 1, [("image-00000", [row("a")], [])])
    commit_store(tmp_path / "new")
    said = r"is not centred.*Leave --centre-with away, or .* --force --centre"
    with pytest.raises(BindSearchError, match=said) as error:
        run("index", "reindex", index, tmp_path / "new", "--centre-with", tmp_path / "new", "-q")
    assert error.value.exit_code == 2
    assert IndexFolder.open(index).manifest == before
