"""Images that are damaged, cut or of another version are refused; what is taken all the same is harmless."""

from __future__ import annotations

import random

import pytest
from ledger._probe import LoadedImage

from tests.rules import fuzz_images

GOOD = fuzz_images.image()


def test_the_image_itself_is_taken():
    assert fuzz_images.harmless(GOOD)


def test_every_byte_that_changes_is_noticed():
    for at in range(len(GOOD)):
        data = bytearray(GOOD)
        data[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match="damaged"):
            LoadedImage(bytes(data))


def test_every_byte_that_changes_under_a_hash_that_holds_is_refused_or_harmless():
    found = fuzz_images.each_byte(GOOD, random.Random(7))
    assert found["refused"] > 0.3 * len(GOOD) and found["taken"] > 0, "many bytes are amounts and names, which may be others"


def test_an_image_cut_anywhere_is_refused():
    for size in range(0, len(GOOD), 7):
        assert not fuzz_images.harmless(GOOD[:size])
        assert not fuzz_images.harmless(fuzz_images.sealed(GOOD[:size]))
    assert not fuzz_images.harmless(fuzz_images.sealed(GOOD + bytes(8)))


def test_mutants_of_all_kinds_are_refused_or_harmless():
    found = fuzz_images.fuzz(3000, 11)
    assert found["refused"] > 1000 and found["taken"] > 100


def test_an_image_of_another_version_is_refused():
    for version in (0, 1, 3):
        assert not fuzz_images.harmless(fuzz_images.sealed(GOOD[:4] + version.to_bytes(4, "little") + GOOD[8:]))
