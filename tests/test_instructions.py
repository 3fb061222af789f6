"""Questions about scenes, their answers, and LLaVA's JSON."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from bindsearch.errors import InputError, MissingInputError, UnknownNameError
from bindsearch.llm.conversations import Conversation, Turn, read_conversations, write_conversations
from bindsearch.world.instructions import (
    ATTRIBUTES,
    CLOSED,
    KINDS,
    NO,
    UNKNOWN,
    YES,
    ask,
    first_words,
    read_answer,
    write_instructions,
    write_readings,
)
from bindsearch.world.scene import ABSENT, names, sample, split_seeds

SCENES = sample(split_seeds("train", 300), "mixed", 0.5)


@pytest.mark.parametrize("kind", [*ATTRIBUTES, *CLOSED])
@pytest.mark.parametrize("variant", [0, 7])
def test_right_answers_read_back_as_their_codes(kind, variant):
    question = ask(SCENES, kind, variant)
    read = [read_answer(kind, turn.answer) for turn in question.turns]
    assert read == question.codes.tolist()
    assert len(set(read)) > 1


@pytest.mark.parametrize("kind", ["subject_setting", "subject_colour"])
def test_answers_to_two_questions_hold_both(kind):
    question, other = ask(SCENES, kind), kind.split("_")[1]
    for turn, subject, second in zip(question.turns, SCENES.subject, getattr(SCENES, other), strict=True):
        assert read_answer("subject", turn.answer) == subject
        if second != ABSENT and (subject != ABSENT or other == "setting"):
            assert read_answer(other, turn.answer) == second


def test_closed_questions_are_balanced_and_true():
    full = sample(split_seeds("train", 2000))
    question = ask(full, "is_subject")
    assert 0.45 < (question.codes == YES).mean() < 0.55
    for turn, code, subject in zip(question.turns, question.codes, full.subject, strict=True):
        named = read_answer("subject", turn.question)
        assert (named == subject) == (code == YES) and turn.answer.endswith(", so yes.") == (code == YES)
    assert set(ask(sample(split_seeds("train", 50), "setting"), "is_subject").codes.tolist()) == {NO}


def test_plain_questions_name_nothing_of_the_scene():
    for kind in (*ATTRIBUTES, "subject_setting", "subject_colour", "describe"):
        assert len({turn.question for turn in ask(SCENES, kind, plain=True).turns}) == 1
    assert "{" not in "".join(turn.question for kind in KINDS for turn in ask(SCENES, kind, 3).turns)


def test_what_a_question_says_about_the_subject_is_true():
    several = 0
    for kind in ("colour", "count", "setting", "motion", "place"):
        for turn, code, count in zip(ask(SCENES, kind, 5).turns, SCENES.subject, SCENES.count, strict=True):
            named = read_answer("subject", turn.question)
            assert named in (code, UNKNOWN, ABSENT), turn
            several += named != UNKNOWN and count > 0
            if named >= 0 and kind != "count":
                assert count == 0, turn
    assert several > 0


def test_a_scene_depends_on_its_seed_and_variant_alone():
    some = write_instructions(SCENES, None)
    assert write_instructions(SCENES.rows(slice(40, 60)), None) == some[40:60]
    assert write_instructions(SCENES, None, variant=1)[3] != some[3]


def test_readings_tell_what_they_ask():
    full = sample(split_seeds("train", 100))
    for row, one in enumerate(write_readings(full)):
        told, first = one.turns[0].question.split("\n")
        assert one.image is None and first
        for attribute in ATTRIBUTES:
            if getattr(full, attribute)[row] != ABSENT:
                assert read_answer(attribute, told) == getattr(full, attribute)[row], (attribute, told)


@pytest.mark.parametrize(
    ("attribute", "text", "code"),
    [
        ("subject", "It is a puppy, I think.", "dog"),
        ("subject", "Two oxen.", "cow"),
        ("colour", "crimson", "red"),
        ("count", "There are three.", "three"),
        ("motion", "They hop up and down", "bounce"),
    ],
)
def test_synonyms_and_plurals_count(attribute, text, code):
    assert read_answer(attribute, text) == names(attribute).index(code)


@pytest.mark.parametrize(
    ("attribute", "text"),
    [("subject", "A dog and a cat."), ("colour", "Reddish."), ("is_subject", "Yes and no."), ("setting", "Somewhere.")],
)
def test_answers_that_name_none_or_several_are_unknown(attribute, text):
    assert read_answer(attribute, text) == UNKNOWN


def test_nothing_is_absent_and_unknown_kinds_are_refused():
    assert read_answer("subject", "Nothing.") == ABSENT
    assert read_answer("setting", "I cannot tell.") == ABSENT
    with pytest.raises(UnknownNameError, match="colour"):
        ask(SCENES, "color")
    with pytest.raises(UnknownNameError, match="light"):
        first_words("light")


def test_llava_json_goes_out_and_comes_back(tmp_path):
    images = [f"world:{n},kind=mixed#image" for n in range(len(SCENES))]
    some = [*write_instructions(SCENES, images), Conversation("tëxt", (Turn("Wäs?", "Nein 鳥."),))]
    path = tmp_path / "talk.json"
    write_conversations(path, some)
    assert read_conversations(path) == some
    record = json.loads(path.read_text(encoding="utf-8"))[0]
    assert record["image"] == "world:0,kind=mixed#image"
    assert record["conversations"][0]["from"] == "human" and record["conversations"][1]["from"] == "gpt"
    assert record["conversations"][0]["value"].startswith("<image>\n")
    assert sum("<image>" in one["value"] for one in record["conversations"]) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "no JSON"),
        ('{"a": 1}', "expected a list of records, got dict"),
        ('[{"id": 1, "conversations": []}]', "record 0: expected 'conversations'"),
        ('[{"conversations": [{"from": "human", "value": "x"}]}]', "by turns"),
        ('[{"conversations": [{"from": "gpt", "value": "x"}, {"from": "gpt", "value": "x"}]}]', "'human'"),
        ('[{"conversations": [{"from": "human", "value": 1}, {"from": "gpt", "value": "x"}]}]', "message 0"),
        (
            '[{"image": ["a"], "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "x"}]}]',
            "image",
        ),
        ("[7]", "record 0"),
    ],
)
def test_broken_conversations_are_refused_by_place(tmp_path, text, said):
    path = tmp_path / "talk.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(said)):
        read_conversations(path)


def test_missing_and_empty_conversations(tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        read_conversations(tmp_path / "talk.json")
    (tmp_path / "talk.json").write_text("[]", encoding="utf-8")
    with pytest.raises(MissingInputError, match="no conversation"):
        read_conversations(tmp_path / "talk.json")


def test_several_subjects_are_not_asked_for_a_position():
    for row, one in enumerate(write_instructions(SCENES, None)):
        asked = any(
            read_answer("place", turn.answer) >= 0 and turn.answer.startswith(("On", "In")) for turn in one.turns
        )
        assert asked == bool(SCENES.place[row] != ABSENT)
    assert np.any(SCENES.count > 0)
