"""Captions to ids: known, unknown and too many words, and the warnings about them."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.conditions.vocabulary import Vocabulary, build_words, split_words, summarise

VOCABULARY = Vocabulary(("a", "left", "moving", "red", "three"), length=6)


def test_ids_follow_the_order_of_the_words():
    np.testing.assert_array_equal(VOCABULARY.encode("a red three moving left"), [2, 5, 6, 4, 3, 0])
    assert VOCABULARY.encode("").dtype == np.int32 and VOCABULARY.size == 7


@pytest.mark.parametrize("caption", ["A Red three, moving left.", "a  red\nthree - moving; LEFT!"])
def test_case_and_punctuation_do_not_matter(caption):
    np.testing.assert_array_equal(VOCABULARY.encode(caption), VOCABULARY.encode("a red three moving left"))


def test_words_keep_apostrophes_digits_and_other_alphabets():
    assert split_words("It's 3 Ölfässer, n'est-ce pas?") == ["it's", "3", "ölfässer", "n'est", "ce", "pas"]


def test_unknown_words_become_one_id_and_long_captions_are_cut():
    np.testing.assert_array_equal(VOCABULARY.encode("a purple red"), [2, 1, 5, 0, 0, 0])
    np.testing.assert_array_equal(VOCABULARY.encode("a " * 9), [2] * 6)


def test_prompts_warn_once_per_caption_and_name_the_words(caplog):
    with caplog.at_level(logging.WARNING):
        ids = VOCABULARY.encode_prompts(["a red three", "a purple red whale", "a a a a a a left"])
    np.testing.assert_array_equal(ids[:, :4], [[2, 5, 6, 0], [2, 1, 5, 1], [2, 2, 2, 2]])
    unknown, long = (record.getMessage() for record in caplog.records)
    assert re.search(r"'a purple red whale' has unknown words: purple, whale .*known words: a left moving red three",
                     unknown)
    assert "'a a a a a a left' has 7 words; only the first 6 are read" in long


def test_words_are_the_most_frequent_sorted():
    captions = ["b a", "b c", "b a d"]
    assert build_words(captions) == ("a", "b", "c", "d")
    assert build_words(captions, limit=2) == ("a", "b")
    assert build_words(captions, limit=3) == ("a", "b", "c")  # equally frequent ones in alphabetical order


def test_no_words_is_an_error():
    with refused("vocabulary.build_words"):
        build_words(["", " ..."])


def test_summary_is_cut():
    assert summarise(("x", "y")) == "x y"
    assert summarise(("x",) * 70) == " ".join("x" * 60) + " ... (70 in all)"
