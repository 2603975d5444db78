"""The four strategies, each against a version that encodes every prompt for every image."""

import hashlib
from itertools import chain, combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from tiny_clip import tiny_clip

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.prompting import strategies as zero_shot
from histoclip_lib.prompting.strategies import (
    baseline,
    baseline_note,
    power_set,
    prefix_prompt,
    score_all,
    subset_prompt,
)
from histoclip_lib.prompting.vocabulary import TextEncoder, Vocabulary, class_embeddings

ROWS = ("baseline", "one_vs_rest", "power_set", "top_k")

NOTHING = "a photo with nothing in it."
NAMES = ["tumor", "stroma", "lymphocytes", "necrosis", "fat"]
TEMPLATES = ["an image of {}.", "{} under the microscope", "a slide with {}"]
WIDTH = 6
SCALE = 100.0


def vector_of(prompt):
    """A unit vector that stands for a prompt: as good as random, and the same in every process."""
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8])
    vector = np.random.default_rng(seed).normal(size=WIDTH)
    return vector / np.linalg.norm(vector)


class PromptVectors:
    """A CLIP whose text tower is `vector_of`; it remembers what it was asked."""

    def __init__(self):
        self.asked = []
        self.model = SimpleNamespace(logit_scale=torch.tensor(np.log(SCALE)))

    def encode_text(self, prompts):
        self.asked.extend(prompts)
        return torch.tensor(np.array([vector_of(prompt) for prompt in prompts]), dtype=torch.float32)


def vocabulary_of(n_classes):
    return Vocabulary(NAMES[:n_classes], TEMPLATES)


def pooled_of(n_images, seed=0):
    return np.random.default_rng(seed).normal(size=(n_images, WIDTH)).astype(np.float32) * 5


def cosine(image, prompt):
    return image @ vector_of(prompt) / np.linalg.norm(image)


def score(n_images, n_classes, seed=0, **options):
    clip = PromptVectors()
    rows = score_all(
        pooled_of(n_images, seed), TextEncoder(clip), vocabulary_of(n_classes), np.full(n_classes, 0.5), **options
    )
    return rows, clip.asked


# Each strategy for one image and one class at a time


def brute_baseline(image, names):
    scores = []
    for name in names:
        mean = np.mean([vector_of(template.replace("{}", name)) for template in TEMPLATES], axis=0)
        scores.append(image @ mean / np.linalg.norm(mean) / np.linalg.norm(image))
    return scores, [value >= 0 for value in scores]


def brute_one_vs_rest(image, names):
    scores = [cosine(image, f"a photo of a {name}") - cosine(image, NOTHING) for name in names]
    return scores, [value > 0 for value in scores]


def brute_candidates(image, candidates, names):
    """Take the best of the candidates, each a set of names and its prompt."""
    cosines = [cosine(image, prompt) for _, prompt in candidates]
    best = candidates[int(np.argmax(cosines))][0]
    scores = []
    for name in names:
        having = max(value for value, (chosen, _) in zip(cosines, candidates, strict=True) if name in chosen)
        lacking = max(value for value, (chosen, _) in zip(cosines, candidates, strict=True) if name not in chosen)
        scores.append(having - lacking)
    return scores, [name in best for name in names]


def brute_power_set(image, names):
    subsets = chain.from_iterable(combinations(names, size) for size in range(1, len(names) + 1))
    candidates = [((), NOTHING), *((subset, f"a photo of a {', '.join(subset)}") for subset in subsets)]
    return brute_candidates(image, candidates, names)


def brute_top_k(image, names):
    ranked = sorted(names, key=lambda name: -cosine(image, f"a photo of a {name}"))
    candidates = [((), NOTHING)]
    for k in range(1, len(names) + 1):
        candidates.append((tuple(ranked[:k]), ", ".join(f"a photo of a {name}" for name in ranked[:k])))
    return brute_candidates(image, candidates, names)


BRUTE = {
    "baseline": brute_baseline,
    "one_vs_rest": brute_one_vs_rest,
    "power_set": brute_power_set,
    "top_k": brute_top_k,
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_each_strategy_is_its_brute_force(row, n_classes):
    rows, _ = score(60, n_classes)
    scores, decisions = zip(
        *(BRUTE[row](image.astype(np.float64), NAMES[:n_classes]) for image in pooled_of(60)), strict=True
    )
    np.testing.assert_allclose(rows[row].scores, scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(rows[row].decisions, decisions)
    assert rows[row].decisions.dtype == bool
    assert 0 < rows[row].decisions.mean() < 1


def test_the_order_of_rows():
    rows, _ = score(2, 3)
    assert tuple(rows) == ROWS


@given(st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_a_positive_score_means_that_the_class_was_chosen(seed, n_classes):
    rows, _ = score(8, n_classes, seed)
    for name, row in rows.items():
        untied = np.abs(row.scores) > 1e-6
        np.testing.assert_array_equal((row.scores > 0)[untied], row.decisions[untied], err_msg=name)


def test_scores_do_not_depend_on_the_length_of_the_image_embeddings():
    encode, vocabulary, prevalence = TextEncoder(PromptVectors()), vocabulary_of(4), np.full(4, 0.5)
    long = score_all(100 * pooled_of(9), encode, vocabulary, prevalence)
    short = score_all(pooled_of(9).astype(np.float64), encode, vocabulary, prevalence)
    for row in ROWS:
        np.testing.assert_allclose(long[row].scores, short[row].scores, rtol=1e-4, atol=1e-5)


def test_strategies_run_on_a_real_text_tower():
    clip = tiny_clip()
    pooled = np.random.default_rng(0).normal(size=(5, 12))
    rows = score_all(pooled, TextEncoder(clip), Vocabulary(NAMES, TEMPLATES), np.full(5, 0.5), "softmax")
    expected = (
        torch.nn.functional.normalize(torch.tensor(pooled, dtype=torch.float32))
        @ (clip.encode_text(["a photo of a stroma"]) - clip.encode_text([NOTHING])).T
    )
    np.testing.assert_allclose(rows["one_vs_rest"].scores[:, 1], expected[:, 0], rtol=1e-4, atol=1e-5)
    assert all(row.scores.shape == row.decisions.shape == (5, 5) for row in rows.values())


# Prompts


def test_every_distinct_prompt_is_encoded_once_over_all_strategies():
    n_images = 7
    _, asked = score(n_images, 5)
    expected = {NOTHING}
    expected |= {template.replace("{}", name) for template in TEMPLATES for name in NAMES}
    for size in range(1, 6):
        expected |= {f"a photo of a {', '.join(subset)}" for subset in combinations(NAMES, size)}
    for image in pooled_of(n_images):
        ranked = sorted(NAMES, key=lambda name: -cosine(image, f"a photo of a {name}"))
        expected |= {", ".join(f"a photo of a {name}" for name in ranked[:k]) for k in range(1, 6)}
    assert len(asked) == len(set(asked))
    assert set(asked) == expected


def test_top_k_encodes_only_the_prefixes_that_occur():
    clip = PromptVectors()
    image = torch.nn.functional.normalize(torch.from_numpy(pooled_of(1)))
    zero_shot.top_k(image.expand(50, -1), TextEncoder(clip), vocabulary_of(5))
    # 5 classes, the negative prompt, and the prefixes of 2 to 5 of one ranking
    assert len(clip.asked) == 5 + 1 + 4


def test_wording_of_prompts():
    vocabulary = vocabulary_of(3)
    assert subset_prompt((), vocabulary) == NOTHING
    assert subset_prompt((0, 2), vocabulary) == "a photo of a tumor, lymphocytes"
    assert prefix_prompt((2, 0), vocabulary) == "a photo of a lymphocytes, a photo of a tumor"


def test_another_template_is_used_by_the_three_strategies_that_have_one():
    clip, template = PromptVectors(), "{x} has {}."
    vocabulary = Vocabulary(["{}", "{0}"], TEMPLATES, NOTHING, photo_of=template)
    score_all(pooled_of(20), TextEncoder(clip), vocabulary, np.full(2, 0.5))
    of_the_baseline = {template.replace("{}", name) for template in TEMPLATES for name in vocabulary.names}
    power_set = {"{x} has {}.", "{x} has {0}.", "{x} has {}, {0}."}
    assert set(clip.asked) - of_the_baseline - power_set <= {
        NOTHING, "{x} has {}., {x} has {0}.", "{x} has {0}., {x} has {}."
    }  # fmt: skip
    assert power_set < set(clip.asked)
    assert prefix_prompt((1, 0), vocabulary) == "{x} has {0}., {x} has {}."
    assert "a photo of a {}" not in clip.asked


def test_own_negative_prompt_is_used_by_the_three_strategies_that_need_one():
    clip = PromptVectors()
    vocabulary = Vocabulary(NAMES[:2], TEMPLATES, "empty glass")
    score_all(pooled_of(4), TextEncoder(clip), vocabulary, np.full(2, 0.5))
    assert "empty glass" in clip.asked
    assert NOTHING not in clip.asked


def test_too_many_classes_for_the_power_set_are_refused_before_any_prompt_is_encoded(monkeypatch):
    clip = PromptVectors()
    vocabulary = Vocabulary([f"class {k}" for k in range(17)], TEMPLATES)
    with pytest.raises(HistoCLIPError, match=r"power-set: 17 classes have 2\^17 subsets.*at most 16"):
        power_set(torch.zeros(1, WIDTH), TextEncoder(clip), vocabulary)
    assert clip.asked == []
    monkeypatch.setattr(zero_shot, "MAX_POWER_SET", 3)
    assert power_set(torch.zeros(1, WIDTH), TextEncoder(clip), vocabulary_of(3)).scores.shape == (1, 3)
    with pytest.raises(HistoCLIPError, match="at most 3"):
        power_set(torch.zeros(1, WIDTH), TextEncoder(clip), vocabulary_of(4))


# Rules of the Baseline


def baseline_by(rule, n_images=30, train_prevalence=None):
    images = torch.nn.functional.normalize(torch.from_numpy(pooled_of(n_images)))
    return baseline(images, TextEncoder(PromptVectors()), vocabulary_of(4), rule, train_prevalence)


def test_every_rule_gives_the_same_cosines():
    expected = baseline_by("sigmoid").scores
    for rule in zero_shot.BASELINE_RULES[1:]:
        np.testing.assert_array_equal(baseline_by(rule, train_prevalence=np.full(4, 0.5)).scores, expected)


def test_sigmoid_is_eq_6_on_cosines_and_marks_a_cosine_of_zero():
    row = baseline_by("sigmoid")
    np.testing.assert_array_equal(row.decisions, 1 / (1 + np.exp(-row.scores.astype(np.float64))) >= 0.5)
    zeros = baseline(torch.zeros(2, WIDTH), TextEncoder(PromptVectors()), vocabulary_of(4))
    assert zeros.decisions.all()


def test_softmax_is_over_classes_at_the_models_temperature():
    row = baseline_by("softmax")
    np.testing.assert_array_equal(row.decisions, softmax(SCALE * row.scores, axis=1) > 0.25)
    assert (softmax(row.scores, axis=1) > 0.25).sum() != row.decisions.sum()  # the temperature matters


def test_argmax_marks_the_nearest_class_alone():
    row = baseline_by("argmax")
    assert (row.decisions.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(row.decisions.argmax(axis=1), row.scores.argmax(axis=1))


def test_prevalence_marks_the_nearest_patches_as_many_as_asked_for():
    row = baseline_by("prevalence", train_prevalence=np.array([0, 0.1, 0.52, 1]))
    assert row.decisions.sum(axis=0).tolist() == [0, 3, 16, 30]
    for k in (1, 2):
        assert row.scores[row.decisions[:, k], k].min() > row.scores[~row.decisions[:, k], k].max()


def test_score_all_hands_the_rule_and_the_prevalence_on():
    rows, _ = score(10, 3, baseline_rule="prevalence")
    assert rows["baseline"].decisions.sum(axis=0).tolist() == [5, 5, 5]


def test_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(HistoCLIPError, match=r"'top' is not known. Use one of sigmoid, softmax, argmax, prevalence"):
        baseline_by("top")


def test_scores_of_the_baseline_use_the_class_matrix_of_eq_2():
    encode, images = TextEncoder(PromptVectors()), torch.eye(WIDTH)
    matrix = class_embeddings(encode, vocabulary_of(4))
    np.testing.assert_allclose(baseline(images, encode, vocabulary_of(4)).scores, matrix.T, rtol=1e-6)


# What is said beside the Baseline


def test_note_says_when_the_baseline_is_a_constant():
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 0]])
    constant = baseline_note(Predictions(np.ones((4, 2)), np.ones((4, 2), bool)), labels, "sigmoid")
    assert "marks 100.0% of all labels" in constant
    assert "marking every label scores 0.5000" in constant
    assert "constant answer" in constant
    decisions = np.array([[1, 1], [1, 1], [1, 0], [0, 0]], bool)
    mixed = baseline_note(Predictions(np.zeros((4, 2)), decisions), labels, "sigmoid")
    assert "marks 62.5% of all labels" in mixed
    assert "constant answer" not in mixed


def test_note_says_when_the_rule_is_not_the_papers():
    note = baseline_note(Predictions(np.zeros((1, 1)), np.zeros((1, 1), bool)), np.ones((1, 1)), "argmax")
    assert "`argmax`, not by the paper's eq. (6)" in note
