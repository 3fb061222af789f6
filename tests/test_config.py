"""Settings: the file says the same as the environment, and a value of another type names its place."""

from __future__ import annotations

import json
import pwd
from pathlib import Path

import pytest

from bindsearch.config import cache_dir, config_files, readable_json, setting, setting_with_origin
from bindsearch.errors import InputError, MissingInputError
from bindsearch.search import open_index
from bindsearch.types import to_text


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write bindsearch.toml into an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    for name in ("WORKERS", "OFFLINE", "DEVICE", "TEXT_CACHE_MB", "INDEX", "SPACE", "CACHE_DIR"):
        monkeypatch.delenv(f"BINDSEARCH_{name}", raising=False)
    return lambda text: Path("bindsearch.toml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ('workers = "2"', "workers", 2),
        ("workers = 0", "workers", 0),
        ('text_cache_mb = "64"', "text_cache_mb", 64),
        ('offline = "false"', "offline", False),
        ('offline = "yes"', "offline", True),
        ("offline = true", "offline", True),
        ('device = "cpu"', "device", "cpu"),
    ],
)
def test_a_file_says_the_same_as_the_environment(written, monkeypatch, line, name, value):
    written(line)
    found, origin = setting_with_origin(name)
    assert (found, type(found), origin) == (value, type(value), "bindsearch.toml")
    monkeypatch.setenv(f"BINDSEARCH_{name.upper()}", str(value))
    assert setting(name) == value


@pytest.mark.parametrize(
    ("line", "name", "words"),
    [
        ('workers = "many"', "workers", r"bindsearch\.toml: workers: expected a whole number, got 'many'"),
        (
            "workers = 1.5",
            "workers",
            r"workers: expected a whole number, got 1\.5\. Write: workers = 2",
        ),
        ("workers = true", "workers", "workers: expected a whole number, got True"),
        ("offline = 1", "offline", "offline: expected true or false, got 1"),
        ("device = 0", "device", "device: expected text, got 0"),
        ("space = ['a']", "space", r"space: expected text, got \['a'\]"),
    ],
)
def test_a_value_of_another_type_names_file_key_and_both_types(written, line, name, words):
    written(line)
    with pytest.raises(InputError, match=words):
        setting(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ofline = true", r"Unknown setting in bindsearch\.toml 'ofline'\. Did you mean 'offline'\?"),
        ("[embed]\nworkers = 2", r"setting in bindsearch\.toml 'embed'.*under no \[heading\]"),
        ('offline = "maybe"', "offline: expected true or false, got 'maybe'"),
    ],
)
def test_what_a_file_cannot_mean_is_refused(written, text, words):
    written(text)
    with pytest.raises(InputError, match=words):
        setting("offline")


@pytest.mark.parametrize(("word", "value"), [("n", False), ("No", False), ("off", False), ("Y", True), (" on ", True)])
def test_switches_of_the_environment_are_words(written, monkeypatch, word, value):
    monkeypatch.setenv("BINDSEARCH_OFFLINE", word)
    assert setting("offline") is value
    monkeypatch.setenv("BINDSEARCH_OFFLINE", "maybe")
    with pytest.raises(InputError, match="BINDSEARCH_OFFLINE: expected true or false, got 'maybe'"):
        setting("offline")


def test_a_blank_value_is_none(written, monkeypatch):
    written('index = ""\noffline = true\ntext_cache_mb = ""')
    for name in ("INDEX", "OFFLINE", "WORKERS", "CACHE_DIR"):
        monkeypatch.setenv(f"BINDSEARCH_{name}", " " if name == "WORKERS" else "")
    assert setting_with_origin("offline") == (True, "bindsearch.toml")
    assert [setting_with_origin(name) for name in ("index", "workers", "cache_dir")] == [(None, "default")] * 3
    assert setting_with_origin("text_cache_mb") == (256, "default")


def test_blanks_alone_in_a_file_are_none(written):
    written('index = "  "\nspace = "\t"')
    assert setting_with_origin("index") == (None, "default")
    assert setting_with_origin("space") == ("bindsearch-mini", "default")


def test_a_file_may_begin_with_the_mark_that_editors_write(written):
    written('\ufeffdevice = "cpu"')
    assert setting_with_origin("device") == ("cpu", "bindsearch.toml")


def test_folders_may_be_named_from_the_home_folder(written, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    written('index = "~/idx"\ncache_dir = "~/cache"')
    assert setting("index") == str(tmp_path / "home" / "idx")
    assert cache_dir() == tmp_path / "home" / "cache"
    with pytest.raises(MissingInputError, match=rf"{tmp_path}/home/idx: does not exist.*comes from bindsearch\.toml"):
        open_index()
    monkeypatch.setenv("BINDSEARCH_INDEX", "~nobody-of-this-name/idx")
    with pytest.raises(InputError, match=r"BINDSEARCH_INDEX: no home folder is known for '~nobody-of.*Write the whole"):
        setting("index")


def test_without_a_home_folder_the_users_file_is_left_out(written, monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    written('device = "cpu"')
    monkeypatch.setattr(Path, "home", fail)
    assert len(config_files()) == 2  # XDG_CONFIG_HOME names the place
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert config_files() == (Path("bindsearch.toml"),)
    assert setting("device") == "cpu"
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(InputError, match=r"no home folder is known.*BINDSEARCH_CACHE_DIR"):
        cache_dir()


def test_a_misspelt_variable_is_warned_of_once(written, monkeypatch, caplog):
    monkeypatch.setenv("BINDSEARCH_OFLINE", "1")
    assert [setting("offline"), setting("offline")] == [False, False]
    said = [each.message for each in caplog.records]
    assert len(said) == 1
    assert "'BINDSEARCH_OFLINE'. Did you mean 'BINDSEARCH_OFFLINE'?" in said[0]


def test_readable_json_fits_every_stream():
    name = "é\n\udcff.png"
    written = readable_json([name])
    assert "é" in written and json.loads(written.encode("utf-8")) == [to_text(name)]
