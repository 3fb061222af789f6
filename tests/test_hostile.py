"""The hostile folder, decoded: a DecodeError with a reason or, where legal, media; never another error or a hang."""

import os
import resource
import time

import pytest
from hostile import write_hostile

from bindsearch.errors import DecodeError
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source

SECONDS = 15  # 0.7 s is the longest on a quiet machine; an embed run allows 30
MEGABYTES = 700


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return write_hostile(tmp_path_factory.mktemp("hostile"))


def test_the_folder_is_large_and_of_every_kind(entries):
    bad = [why for _, modality, why in entries if modality and not why.startswith("legal:")]
    assert len(bad) >= 80
    assert {modality for _, modality, _ in entries} == {*MODALITIES, None}
    assert len({path for path, _, _ in entries}) == len(entries)
    assert all(os.path.lexists(path) for path, _, _ in entries)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", list(MODALITIES))
def test_each_is_refused_with_a_reason_or_read(entries, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    modality = MODALITIES[name]
    config = modality.config()
    wrong = []
    for path, of, why in entries:
        if of != name:
            continue
        before, memory = time.monotonic(), _peak_megabytes()
        try:
            modality.preprocess(modality.decode(Source.of(path), config), config)
            outcome = "legal"
        except DecodeError as error:
            outcome = "bad"
            assert error.what, path
            assert error.stage in ("read", "decode", "preprocess")
        if (outcome == "legal") != why.startswith("legal:"):
            wrong.append(f"{path.name!r} ({why}) came out {outcome}")
        assert time.monotonic() - before < SECONDS, path
        assert _peak_megabytes() - memory < MEGABYTES, path
    assert not wrong
    assert not list(tmp_path.iterdir())  # what a pickle would have written


def _peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_names_stand_in_the_reasons(entries):
    for path, modality, why in entries:
        if modality == "image" and why == "empty":
            with pytest.raises(DecodeError) as caught:
                MODALITIES["image"].decode(Source.of(path), MODALITIES["image"].config())
            assert str(caught.value) == f"{path}: is empty"
