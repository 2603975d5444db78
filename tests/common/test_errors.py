"""Errors: what a hostile name cannot do to whoever reads them."""

import logging
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoclip_lib.common.errors import HistoCLIPError, bullet_list, printable, shown, silenced


def test_a_long_list_says_how_many_it_left_out():
    assert bullet_list(["a", "b"]) == "  - a\n  - b"
    assert bullet_list(list("abcde"), limit=3).splitlines() == ["  - a", "  - b", "  - c", "  - ... and 2 more"]


def test_an_offender_is_one_line_whatever_it_is_called():
    assert bullet_list(["a\n  - b", "c"]) == "  - a\\n  - b\n  - c"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("肿瘤 ß.png", "肿瘤 ß.png"),
        ("a\x1b[2J", "a\\x1b[2J"),  # clears a terminal
        ("a\rb", "a\\rb"),
        ("gnp.\u202eexe", "gnp.\\u202eexe"),  # reads from right to left
        (b"gr\xfcn.png".decode(errors="surrogateescape"), "gr\\udcfcn.png"),
        ("a\0b", "a\\x00b"),
    ],
)
def test_unprintable_characters_are_escaped(name, text):
    assert printable(name) == text
    assert str(HistoCLIPError(f"{name}: bad")) == f"{text}: bad"


@given(st.text(st.characters()) | st.binary().map(lambda name: name.decode(errors="surrogateescape")))
def test_any_message_can_be_written_and_sent_to_another_process(text):
    error = HistoCLIPError(text)
    str(error).encode()
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert all(character.isprintable() or character == "\n" for character in str(error))


def test_a_value_is_cut_where_it_is_long():
    assert shown("a") == "'a'"
    assert shown(list(range(1000)), 20) == "[0, 1, 2, 3, 4, 5..."
    assert shown(10**10_000) == "one int too large to show"


def test_a_silenced_logger_is_heard_again_afterwards(caplog):
    logger = logging.getLogger("a library")
    with pytest.raises(KeyError), silenced("a library"):
        logger.error("what is told otherwise")
        raise KeyError
    logger.error("news")
    assert caplog.messages == ["news"]
