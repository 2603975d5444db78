"""YAML from users: what is plain comes back, what is not is listed, and nothing is run, built or waited for."""

import re
from datetime import date

import pytest

from histoclip_lib.common import yaml_files
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.yaml_files import MAX_BYTES, MAX_DEPTH, MAX_NODES, read_yaml


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "some.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(path):
    with pytest.raises(HistoCLIPError) as raised:
        read_yaml(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_plain_data_comes_back(file):
    text = "a: 1\nb: [x, 0.5, true, null, '7']\nc: {d: 2024-01-01}\n# said\ne: !!str 12\n"
    value = {"a": 1, "b": ["x", 0.5, True, None, "7"], "c": {"d": date(2024, 1, 1)}, "e": "12"}
    assert read_yaml(file(text)) == (value, [])
    assert read_yaml(file("")) == (None, [])


@pytest.mark.parametrize("text", ["a: \u8089\n", "a: \u8089\r\n", "a: \u8089"])
def test_a_byte_order_mark_and_any_line_end_are_taken(file, text):
    assert read_yaml(file(b"\xef\xbb\xbf" + text.encode()))[0] == {"a": "\u8089"}


def test_keys_that_stand_there_twice_are_listed_at_every_level(file):
    text = "a: 1\nb: {c: 1, c: 2, c: 3}\na: 2\nd: [{e: 1, e: 1}]\n"
    assert read_yaml(file(text))[1] == [
        "a: appears 2 times", "c: appears 3 times", "e: appears 2 times"
    ]  # fmt: skip


# Code


@pytest.mark.parametrize(
    "payload",
    [
        "!!python/object/apply:os.mkdir ['{}']",
        "!!python/object/new:os.mkdir ['{}']",
        "!!python/object/apply:os.system ['mkdir {}']",
        "[!!python/name:os.system , '{}']",
        "!!python/module:os ",
        "!<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{}']",
    ],
)
def test_tags_that_name_python_are_refused_by_name_and_not_run(file, tmp_path, payload):
    message = refusal(file("a: " + payload.format(tmp_path / "made")))
    assert re.search(r"line 1: the tag tag:yaml\.org,2002:python/[a-z/]+:os", message)
    assert not (tmp_path / "made").exists()


def test_all_that_is_not_plain_is_listed_with_its_line(file):
    message = refusal(file("a: &one [1]\nb: *one\nc: !mine x\nd: !!binary aGk=\ne: !!set {x}\n"))
    assert re.findall(r"- line (\d): the (\w+) (\S+)", message) == [
        ("1", "anchor", "&one"),
        ("2", "alias", "*one"),
        ("3", "tag", "!mine"),
        ("4", "tag", "tag:yaml.org,2002:binary"),
        ("5", "tag", "tag:yaml.org,2002:set"),
    ]


# What is small and becomes large


def test_a_billion_laughs_are_refused_before_one_is_built(file, monkeypatch):
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    monkeypatch.setattr(yaml_files.yaml.SafeLoader, "construct_document", lambda *_: pytest.fail("it was built"))
    message = refusal(file("\n".join(lines)))
    assert "line 1: the anchor &a0" in message
    assert "line 2: the alias *a0" in message


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "[{a: "])
@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 5000])
def test_what_is_nested_too_deep_is_refused(file, opening, levels):
    assert f"more than {MAX_DEPTH} levels" in refusal(file(opening * levels))


def test_as_many_levels_and_entries_as_are_allowed_pass(file):
    assert read_yaml(file("[" * MAX_DEPTH + "]" * MAX_DEPTH))[0] is not None
    assert len(read_yaml(file("- 1\n" * (MAX_NODES - 1)))[0]) == MAX_NODES - 1


def test_too_many_entries_are_refused(file):
    assert f"{MAX_NODES:,} keys and values" in refusal(file("- 1\n" * (MAX_NODES + 1)))


def test_a_file_that_is_too_large_is_not_read_to_its_end(file):
    path = file("")
    with path.open("wb") as sparse:
        sparse.truncate(2**40)
    assert f"more than {MAX_BYTES:,} bytes" in refusal(path)


# What is no YAML


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: b\0", "is not YAML: unacceptable character #x0000"),
        (b'a: "\\0"', "line 1: a text with a null character"),
        (b'a: "\\ud800"', "line 1: a text with a null character or invalid Unicode"),
        (b'a: "\\UFFFFFFFF"', "is not YAML"),
        ("a: 1".encode("utf-16"), "is UTF-16, not UTF-8. Save it as UTF-8"),
        (b"a: 1\nb: gr\xfcn\n", "line 2: the byte 0xfc is not UTF-8"),
        (b"a:\n\tb: 1\n", "Indent with spaces"),
        (b"\x80\x04\x95", "is not UTF-8"),
        (b"a: [1", "is not YAML"),
        (b"a: !!int ''", "is not YAML"),
        (b"a: !!float ''", "is not YAML"),
        (b"a: !!bool maybe", "is not YAML"),
        (b"a: 2024-13-45", "is not YAML"),
        (b"a: 1\n---\na: 2\n", "is not YAML: expected a single document"),
        (b"a: " + b"9" * 5000, "is not YAML: Exceeds the limit"),
        (b"a: " + b"59:" * 300 + b"59.5", "is not YAML"),
    ],
)
def test_invalid_yaml_is_refused_with_place_and_reason(file, content, reason):
    assert reason in refusal(file(content))


def test_unreadable_files_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "gone.yaml", tmp_path / ("x" * 300)):
        assert "cannot be read" in refusal(path)
