"""Classes as text: vocabularies, users' own prompts, and the class matrix of eq. (2)."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_clip import tiny_clip

from histoclip_lib.clip.registry import ENCODERS
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.html import as_typed
from histoclip_lib.data.histoseg import BCSS_CLASSES, LUAD_CLASSES
from histoclip_lib.data.pannuke.arrays import CLASSES as PANNUKE_CLASSES
from histoclip_lib.data.synthetic.patches import load_synthetic
from histoclip_lib.prompting import vocabulary as prompts
from histoclip_lib.prompting.vocabulary import (
    TextEncoder,
    Vocabulary,
    class_embeddings,
    load_vocabulary,
    prompt_sets,
    prompts_of_encoder,
)

STATED_CLASSES = {"bcss_wsss": BCSS_CLASSES, "luad_histoseg": LUAD_CLASSES, "pannuke": PANNUKE_CLASSES}


class CountingCLIP:
    """A CLIP that gives each prompt a vector and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def encode_text(self, texts):
        self.asked.extend(texts)
        return torch.nn.functional.normalize(torch.tensor([[len(text), hash(text) % 7 + 1.0] for text in texts]))


@pytest.fixture
def own_file(tmp_path):
    def write(text):
        path = tmp_path / "prompts.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# Vocabularies that are shipped


def stored_names(dataset):
    return yaml.safe_load((prompts.FOLDER / f"{dataset}.yaml").read_text())["classes"]


@pytest.mark.parametrize("dataset", STATED_CLASSES)
def test_each_class_has_a_name_and_no_name_is_left_over(dataset):
    classes = list(STATED_CLASSES[dataset])
    assert list(stored_names(dataset)) == classes
    names = load_vocabulary(dataset, classes).names
    assert names == list(stored_names(dataset).values())
    assert len(set(names)) == len(classes)
    assert not any("_" in name for name in names)


@pytest.mark.parametrize("dataset", [*STATED_CLASSES, "synthetic"])
def test_each_class_has_synonyms_and_no_word_stands_for_two_classes(dataset):
    classes = list(stored_names(dataset))
    vocabulary = load_vocabulary(dataset, classes)
    assert list(yaml.safe_load((prompts.FOLDER / f"{dataset}.yaml").read_text())["synonyms"]) == classes
    assert all(3 <= len(listed) <= 4 for listed in vocabulary.synonyms)
    words = vocabulary.names + [text for listed in vocabulary.synonyms for text in listed]
    assert len(set(words)) == len(words)


def test_each_class_of_the_synthetic_set_has_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path))
    assert list(stored_names("synthetic")) == load_synthetic(2).classes


def test_templates_each_take_the_name_once():
    vocabulary = load_vocabulary("pannuke", list(PANNUKE_CLASSES))
    assert len(set(vocabulary.templates)) == len(vocabulary.templates) > 1
    assert all(template.count("{}") == 1 for template in vocabulary.templates)
    assert vocabulary.negative_prompt == "a photo with nothing in it."


def test_classes_without_an_entry_are_named_after_their_column():
    vocabulary = load_vocabulary("folder", ["Signet_ring cells", "mitosis"])
    assert vocabulary.names == ["Signet ring cells", "mitosis"]
    assert load_vocabulary("bcss_wsss", ["lymphocyte", "fat_cell"]).names == ["lymphocytic infiltrate", "fat cell"]


# Your own prompts


def test_own_prompts_replace_names_templates_and_negative_prompt(own_file):
    path = own_file("classes: {b: blood}\ntemplates: ['{} here', 'see {}']\nnegative_prompt: glass\n")
    assert load_vocabulary("folder", ["a", "b"], path) == Vocabulary(
        ["a", "blood"], ["{} here", "see {}"], "glass", [[], []]
    )


def test_each_key_may_be_left_out(own_file):
    default = load_vocabulary("folder", ["a"])
    assert default == Vocabulary(["a"], default.templates, prompts.NEGATIVE_PROMPT, [[]])
    for text, change in [
        ("negative_prompt: glass", {"negative_prompt": "glass"}),
        ("classes: {a: fat}", {"names": ["fat"]}),
        ("synonyms: {a: [fat, lard]}", {"synonyms": [["fat", "lard"]]}),
        ("templates: ['see {}']", {"templates": ["see {}"]}),
    ]:
        assert load_vocabulary("folder", ["a"], own_file(text)) == replace(default, **change)


def test_class_columns_that_yaml_reads_as_numbers(own_file):
    assert load_vocabulary("folder", ["1", "2"], own_file("classes: {1: fat, 2: 7}")).names == ["fat", "7"]


def test_synonyms_are_in_the_order_of_the_columns_and_leave_the_name_out(own_file):
    path = own_file("classes: {1: fat}\nsynonyms: {2: [blood, b, blood], 1: [lard, fat]}\n")
    assert load_vocabulary("folder", ["1", "0", "2"], path).synonyms == [["lard"], [], ["blood", "b"]]


def test_own_synonyms_go_before_those_that_are_shipped(own_file):
    path = own_file("classes: {necrosis: dead tissue}\nsynonyms: {tumor: [neoplasm]}\n")
    shipped, own = (load_vocabulary("bcss_wsss", ["tumor", "necrosis"], file) for file in ("", path))
    assert own.synonyms == [["neoplasm"], shipped.synonyms[1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("synonyms: [fat]", "may hold `classes`"),
        ("synonyms: {b: [fat]}", "b are not classes"),
        ("synonyms: {a: fat}", r"the synonyms of a are not a list of texts. Write them as \[one, other\]"),
        ("synonyms: {a: }", "synonyms of a are not a list"),
        ("synonyms: {a: []}", "synonyms of a are not a list"),
        ("synonyms: {a: [fat, 3]}", "synonyms of a are not a list"),
        ("synonyms: {a: [fat, ' ']}", "synonyms of a are not a list"),
        ("", "may hold `classes`"),
        ("- a\n- b", "may hold `classes`"),
        ("class: {a: fat}", "may hold `classes`"),
        ("classes: [fat]", "may hold `classes`"),
        ("templates: 'a {}'", "may hold `classes`"),
        ("negative_prompt: 3", "may hold `classes`"),
        ("classes: {a: fat", "is not YAML"),
        ("classes: {a: fat, a: lard}", "(?s)twice.*a: appears 2 times"),
        ("classes: {a: &x fat}", "(?s)more than plain YAML.*line 1: the anchor &x"),
        ("classes: {a: !!python/name:os.system }", "(?s)more than plain YAML.*python/name:os.system"),
        ("classes: {a: no}", "(?s)each name is a text.*a: False"),
        ("classes: {a: [fat]}", r"(?s)each name is a text.*a: \['fat'\]"),
        ("classes: {a: {b: c}}", "(?s)each name is a text"),
        ("classes: {a: 2024-01-01}", "(?s)each name is a text.*date"),
        ("negative_prompt: ' '", "negative_prompt is empty"),
        ("templates: []", "templates is empty"),
        ("templates: ['{0}']", "needs one {} for the class name"),
        ("classes: {tumour: tumor, a: fat}", r"tumour are not classes of this data set, which has \['a'\]"),
        ("classes: {1: fat}", "1 are not classes"),
        ("classes: {a: }", "a have no name"),
        ("classes: {a: ' '}", "a have no name"),
        ("templates: ['a photo']", r"one \{\} for the class name; these do not fit: \['a photo'\]"),
        ("templates: ['{} and {}']", "these do not fit: .*and"),
        ("templates: [3]", r"these do not fit: \[3\]"),
        ("templates:\n- {}", r"these do not fit: \[\{\}\]"),  # YAML reads this as an empty mapping
    ],
)
def test_wrong_prompts_files_are_refused_and_named(own_file, text, message):
    path = own_file(text)
    with pytest.raises(HistoCLIPError, match=message) as raised:
        load_vocabulary("folder", ["a"], path)
    assert path in str(raised.value)


def test_prompts_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "lost.yaml", tmp_path, tmp_path / "binary.yaml", "a\0b", "x" * 5000):
        with pytest.raises(HistoCLIPError, match=r"prompts_file: .* (cannot be read|is UTF-16)"):
            load_vocabulary("folder", ["a"], str(path))


# Words in the report


def test_about_shows_columns_names_and_templates():
    text = Vocabulary(["fat"], ["see {}"]).about(["a"])
    assert "` a ` is called ` fat `" in text
    assert "The 1 templates" in text
    assert "- ` see {} `" in text


@given(st.text())
def test_names_cannot_leave_their_code_span(text):
    line = Vocabulary([text], ["{}"]).about(["a"]).splitlines()[2]
    assert line == f"- ` a ` is called {as_typed(text)}"


# Embeddings


def test_each_distinct_prompt_is_encoded_once():
    clip = CountingCLIP()
    encode = TextEncoder(clip)
    first, second = encode(["a", "b", "a"]), encode(["b", "ccc"])
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(first[1], second[0])
    assert np.array_equal(encode(["ccc"]), second[1:])
    assert clip.asked == ["a", "b", "ccc"]


@pytest.mark.parametrize("backbone", ["vit", "lite0"])
def test_class_matrix_is_open_clips_zero_shot_classifier(backbone, lite0):
    """Eq. (2): Norm(mean over templates of unit embeddings)."""
    clip = lite0 if backbone == "lite0" else tiny_clip(backbone)
    vocabulary = load_vocabulary("pannuke", list(PANNUKE_CLASSES))
    expected = open_clip.build_zero_shot_classifier(
        clip.model, clip.tokenizer, vocabulary.names, vocabulary.templates, num_classes_per_batch=2
    )
    matrix = class_embeddings(TextEncoder(clip), vocabulary)
    np.testing.assert_allclose(matrix, expected.T.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, rtol=1e-6)


def test_braces_in_names_and_templates_are_text():
    clip = CountingCLIP()
    class_embeddings(TextEncoder(clip), Vocabulary(["{x}", "{0}"], ["{} {y}"]))
    assert clip.asked == ["{x} {y}", "{0} {y}"]


# Sets of prompts


@pytest.mark.parametrize("name", prompt_sets())
def test_every_set_of_prompts_can_be_used(name):
    vocabulary = load_vocabulary("folder", ["tumor"], prompts=name)
    assert all(template.count("{}") == 1 for template in [*vocabulary.templates, vocabulary.photo_of])
    assert vocabulary.negative_prompt.strip()


def test_the_paper_s_own_words_are_the_default():
    assert prompt_sets()[0] == "paper"
    assert load_vocabulary("folder", ["tumor"]) == Vocabulary(
        ["tumor"],
        load_vocabulary("folder", ["tumor"], prompts="paper").templates,
        "a photo with nothing in it.",
        [[]],
        "a photo of a {}",
    )


def test_every_encoder_names_a_set_that_exists_and_has_pathology_where_it_names_none():
    for entry in ENCODERS.load().values():
        assert prompts_of_encoder("encoder", entry.templates) in prompt_sets()
    assert prompts_of_encoder("encoder", "") == "pathology"
    with pytest.raises(HistoCLIPError, match=r"prompts: 'papr' is not a set of prompts. Use encoder or one of paper,"):
        load_vocabulary("folder", ["tumor"], prompts="papr")


def test_a_prompts_file_overrides_the_template_of_the_strategies(tmp_path):
    (tmp_path / "words.yaml").write_text('photo_of: "tissue with {}"\n')
    vocabulary = load_vocabulary("folder", ["tumor"], str(tmp_path / "words.yaml"), prompts="plip")
    assert (vocabulary.photo_of, vocabulary.templates) == ("tissue with {}", ["An H&E image patch of {}."])
    (tmp_path / "words.yaml").write_text('photo_of: "tissue"\n')
    with pytest.raises(HistoCLIPError, match=r"each template needs one \{\}"):
        load_vocabulary("folder", ["tumor"], str(tmp_path / "words.yaml"))
