"""The four strategies, each against a version that encodes every prompt for every image, and a toy strategy."""

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_vectors import NAMES, NOTHING, SCALE, TEMPLATES, WIDTH, PromptVectors, vector_of
from scipy.special import softmax
from tiny_clip import tiny_clip

from histoclip_lib.common.arrays import unit
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.common.registry import METHODS
from histoclip_lib.prompting import strategies
from histoclip_lib.prompting.strategies import (
    STRATEGIES,
    StrategyContext,
    baseline,
    baseline_note,
    power_set,
    prefix_prompt,
    score_zero_shot,
    strategy,
    subset_prompt,
    top_k,
)
from histoclip_lib.prompting.vocabulary import TextEncoder, Vocabulary, class_embeddings

FOUR = ("baseline", "one_vs_rest", "power_set", "top_k")


def vocabulary_of(n_classes):
    return Vocabulary(NAMES[:n_classes], TEMPLATES)


def pooled_of(n_images, seed=0):
    return np.random.default_rng(seed).normal(size=(n_images, WIDTH)).astype(np.float32) * 5


def cosine(image, prompt):
    return image @ vector_of(prompt) / np.linalg.norm(image)


def context_of(n_classes, rule="sigmoid", prevalence=0.5):
    return StrategyContext(np.full(n_classes, prevalence), rule, 1 / SCALE)


def score(n_images, n_classes, seed=0, rule="sigmoid"):
    clip = PromptVectors()
    methods = score_zero_shot(
        pooled_of(n_images, seed), TextEncoder(clip), vocabulary_of(n_classes), context_of(n_classes, rule)
    )
    return methods, clip.asked


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


@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_each_strategy_equals_its_brute_force(n_classes):
    methods, _ = score(40, n_classes)
    assert tuple(methods)[:4] == FOUR
    for name in FOUR:
        found = methods[name]
        scores, decisions = zip(
            *(BRUTE[name](image.astype(np.float64), NAMES[:n_classes]) for image in pooled_of(40)), strict=True
        )
        np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found.decisions, decisions)
        assert found.decisions.dtype == bool
        assert found.scores.dtype == np.float32
        assert 0 < found.decisions.mean() < 1


@given(st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=30)
def test_a_positive_score_means_that_the_class_was_chosen(seed, n_classes):
    methods, _ = score(8, n_classes, seed)
    for name, found in methods.items():
        untied = np.abs(found.scores) > 1e-6
        np.testing.assert_array_equal((found.scores > 0)[untied], found.decisions[untied], err_msg=name)


def test_scores_do_not_depend_on_the_length_of_the_image_embeddings():
    encode, vocabulary = TextEncoder(PromptVectors()), vocabulary_of(4)
    long = score_zero_shot(100 * pooled_of(9), encode, vocabulary, context_of(4))
    short = score_zero_shot(pooled_of(9).astype(np.float64), encode, vocabulary, context_of(4))
    for name in FOUR:
        np.testing.assert_allclose(long[name].scores, short[name].scores, rtol=1e-4, atol=1e-5)


def test_strategies_run_on_a_real_text_tower():
    clip = tiny_clip()
    pooled = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    encode = TextEncoder(clip)
    methods = score_zero_shot(
        pooled, encode, Vocabulary(NAMES, TEMPLATES), StrategyContext(np.full(5, 0.5), "softmax", encode.temperature)
    )
    assert encode.temperature == pytest.approx(0.07)
    prompt, nothing = clip.encode_text(["a photo of a stroma", NOTHING]).numpy()
    np.testing.assert_allclose(
        methods["one_vs_rest"].scores[:, 1], unit(pooled) @ (prompt - nothing), rtol=1e-4, atol=1e-5
    )
    assert all(found.scores.shape == found.decisions.shape == (5, 5) for found in methods.values())


# The registry


def test_a_registered_strategy_is_scored_and_is_a_method(monkeypatch):
    for registry in (STRATEGIES, METHODS):
        monkeypatch.setattr(registry, "_entries", dict(registry.load()))

    @strategy("always", label="Always")
    def always(images, encode, vocabulary, context):
        scores = np.ones((len(images), len(vocabulary.names)))
        return Predictions(scores, scores > 0)

    methods, _ = score(3, 2)
    assert tuple(methods) == (*FOUR, "zero_shot_standardised", "zero_shot_transductive", "always")
    assert methods["always"].decisions.all()
    assert (METHODS["always"].label, METHODS["always"].family) == ("Zero-shot: Always", "zero-shot")
    with pytest.raises(HistoCLIPError, match="'always' is registered twice"):
        strategy("always", label="Always")(lambda *arguments: None)


def test_a_cell_that_is_executed_again_replaces_the_strategy_that_it_registered(monkeypatch):
    for registry in (STRATEGIES, METHODS):
        monkeypatch.setattr(registry, "_entries", dict(registry.load()))
    cell = {"__name__": "__main__", "strategy": strategy}
    for value in (1, 2):
        exec(f"@strategy('mine', label='Mine')\ndef mine(*arguments):\n    return {value}", cell)
    assert STRATEGIES["mine"].score() == 2
    with pytest.raises(HistoCLIPError, match="'top_k' is registered twice"):
        exec("@strategy('top_k', label='Mine')\ndef mine(*arguments):\n    return 3", cell)


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
    top_k(np.tile(unit(pooled_of(1)), (50, 1)), TextEncoder(clip), vocabulary_of(5), context_of(5))
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
    score_zero_shot(pooled_of(20), TextEncoder(clip), vocabulary, context_of(2))
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
    score_zero_shot(pooled_of(4), TextEncoder(clip), vocabulary, context_of(2))
    assert "empty glass" in clip.asked
    assert NOTHING not in clip.asked


def test_too_many_classes_for_the_power_set_are_refused_before_any_prompt_is_encoded(monkeypatch):
    clip = PromptVectors()
    vocabulary = Vocabulary([f"class {k}" for k in range(17)], TEMPLATES)
    with pytest.raises(HistoCLIPError, match=r"power-set: 17 classes have 2\^17 subsets.*at most 16"):
        power_set(np.zeros((1, WIDTH)), TextEncoder(clip), vocabulary, context_of(17))
    assert clip.asked == []
    monkeypatch.setattr(strategies, "MAX_POWER_SET", 3)
    assert power_set(np.zeros((1, WIDTH)), TextEncoder(clip), vocabulary_of(3), context_of(3)).scores.shape == (1, 3)
    with pytest.raises(HistoCLIPError, match="at most 3"):
        power_set(np.zeros((1, WIDTH)), TextEncoder(clip), vocabulary_of(4), context_of(4))


# Rules of the Baseline


def baseline_by(rule, prevalence=0.5):
    return baseline(
        unit(pooled_of(30)), TextEncoder(PromptVectors()), vocabulary_of(4), context_of(4, rule, prevalence)
    )


def test_every_rule_gives_the_cosines_with_the_class_matrix_of_eq_2():
    expected = unit(pooled_of(30)) @ class_embeddings(TextEncoder(PromptVectors()), vocabulary_of(4)).T
    for rule in strategies.BASELINE_RULES:
        np.testing.assert_allclose(baseline_by(rule).scores, expected, rtol=1e-6)


def test_sigmoid_is_eq_6_on_cosines_and_marks_a_cosine_of_zero():
    found = baseline_by("sigmoid")
    np.testing.assert_array_equal(found.decisions, 1 / (1 + np.exp(-found.scores.astype(np.float64))) >= 0.5)
    zeros = baseline(np.zeros((2, WIDTH)), TextEncoder(PromptVectors()), vocabulary_of(4), context_of(4))
    assert zeros.decisions.all()


def test_softmax_is_over_classes_at_the_models_temperature():
    found = baseline_by("softmax")
    np.testing.assert_array_equal(found.decisions, softmax(SCALE * found.scores, axis=1) > 0.25)
    assert (softmax(found.scores, axis=1) > 0.25).sum() != found.decisions.sum()  # the temperature matters


def test_argmax_marks_the_nearest_class_alone():
    found = baseline_by("argmax")
    assert (found.decisions.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(found.decisions.argmax(axis=1), found.scores.argmax(axis=1))


def test_prevalence_marks_the_nearest_patches_as_many_as_asked_for():
    found = baseline_by("prevalence", np.array([0, 0.1, 0.52, 1]))
    assert found.decisions.sum(axis=0).tolist() == [0, 3, 16, 30]
    for k in (1, 2):
        assert found.scores[found.decisions[:, k], k].min() > found.scores[~found.decisions[:, k], k].max()


def test_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(HistoCLIPError, match=r"'top' is not known. Use one of sigmoid, softmax, argmax, prevalence"):
        baseline_by("top")


# What is said beside the Baseline


def test_note_says_when_the_baseline_is_a_constant():
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 0]])
    constant = baseline_note(Predictions(np.ones((4, 2)), np.ones((4, 2), bool)), labels, "sigmoid")
    assert "marks 100.0% of all labels" in constant
    assert "marking every label scores 0.500" in constant
    assert "constant answer" in constant
    decisions = np.array([[1, 1], [1, 1], [1, 0], [0, 0]], bool)
    mixed = baseline_note(Predictions(np.zeros((4, 2)), decisions), labels, "sigmoid")
    assert "marks 62.5% of all labels" in mixed
    assert "constant answer" not in mixed


def test_note_says_when_the_rule_is_not_the_papers():
    note = baseline_note(Predictions(np.zeros((1, 1)), np.zeros((1, 1), bool)), np.ones((1, 1)), "argmax")
    assert "`argmax`, not by the paper's eq. (6)" in note
