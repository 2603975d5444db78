"""Variants of the zero-shot methods, each against its strategy called by hand."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from prompt_vectors import NAMES, NOTHING, SCALE, TEMPLATES, WIDTH, PromptVectors
from sklearn.metrics import average_precision_score
from tiny_clip import tiny_clip

from histoclip_lib.common.predictions import mean_accuracy
from histoclip_lib.prompting import sensitivity as prompt_sensitivity
from histoclip_lib.prompting.sensitivity import (
    AS_REPORTED,
    SINGLE_TEMPLATE,
    SYNONYMS,
    Variants,
    draw_names,
    ensembling_note,
    extremes_table,
    score_variants,
    spread_note,
)
from histoclip_lib.prompting.strategies import STRATEGIES, StrategyContext, score_zero_shot
from histoclip_lib.prompting.vocabulary import TextEncoder, Vocabulary

OTHERS = [["carcinoma", "cancer"], [], ["immune cells"], ["debris"], ["lipid"]]
HOSTILE = ["{}", "{0} {x}", "$x^{$\n<script>", "", "``"]


def vocabulary_of(n_classes, names=NAMES, synonyms=OTHERS):
    return Vocabulary(names[:n_classes], TEMPLATES, synonyms=synonyms[:n_classes])


def case(n_images=40, n_classes=3, width=WIDTH):
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, (n_images, n_classes))
    return generator.normal(size=(n_images, width)), labels


def context_of(n_classes, rule="sigmoid"):
    return StrategyContext(np.full(n_classes, 0.4), rule, 1 / SCALE)


def score(vocabulary, encode=None, pooled=None, labels=None, rule="sigmoid", **options):
    drawn = case(n_classes=len(vocabulary.names))
    pooled, labels = drawn[0] if pooled is None else pooled, drawn[1] if labels is None else labels
    encode = encode or TextEncoder(PromptVectors())
    return score_variants(pooled, encode, vocabulary, labels, context_of(labels.shape[1], rule), **options)


def by_hand(vocabulary, rule="sigmoid", encode=None, pooled=None):
    """Metrics of the strategies with one vocabulary, as `score_zero_shot` and scikit-learn give them."""
    drawn, labels = case(n_classes=len(vocabulary.names))
    pooled, encode = drawn if pooled is None else pooled, encode or TextEncoder(PromptVectors())
    methods = score_zero_shot(pooled, encode, vocabulary, context_of(labels.shape[1], rule))
    return {
        STRATEGIES[name].label: (
            mean_accuracy(labels, found.decisions),
            average_precision_score(labels, found.scores),
        )
        for name, found in methods.items()
    }


def assert_same(lines, expected):
    assert len(lines) == len(STRATEGIES.load())
    for line in lines.itertuples():
        assert (line.mAcc, line.mAP) == pytest.approx(expected[line.strategy], abs=1e-6)


# Each variant


@pytest.mark.parametrize("rule", ["sigmoid", "softmax", "prevalence"])
def test_the_methods_as_reported_come_first(rule):
    vocabulary = vocabulary_of(3)
    table = score(vocabulary, rule=rule).table
    assert list(table["strategy"][:4]) == ["Baseline", "One-vs-Rest", "Power-set", "Top-k"]
    assert set(table["prompt"][:4]) == {"tumor; stroma; lymphocytes"}
    assert_same(table[table["kind"] == AS_REPORTED], by_hand(vocabulary, rule))


def test_labels_that_are_not_known_are_left_out():
    pooled, labels = case()
    hidden = labels.astype(float)
    hidden[::3, 0], hidden[:, 2] = np.nan, np.nan
    reported = score(vocabulary_of(3), pooled=pooled, labels=hidden).table[: len(STRATEGIES.load())]
    methods = score_zero_shot(pooled, TextEncoder(PromptVectors()), vocabulary_of(3), context_of(3))
    for line, found in zip(reported.itertuples(), methods.values(), strict=True):
        known = [~np.isnan(hidden[:, k]) for k in (0, 1)]
        precisions = [average_precision_score(hidden[own, k], found.scores[own, k]) for k, own in enumerate(known)]
        assert line.mAP == pytest.approx(np.mean(precisions))


def test_a_single_template_is_used_by_every_strategy():
    vocabulary = vocabulary_of(3)
    table = score(vocabulary).table
    single = table[table["kind"] == SINGLE_TEMPLATE]
    assert list(single["prompt"].unique()) == TEMPLATES
    for template in TEMPLATES:
        expected = by_hand(replace(vocabulary, templates=[template], photo_of=template))
        assert_same(single[single["prompt"] == template], expected)
    assert single.groupby("strategy")["mAP"].nunique().eq(3).all()  # or the template would not matter


def test_synonyms_replace_names_and_keep_the_templates():
    vocabulary = vocabulary_of(3)
    drawn = score(vocabulary).table.query("kind == @SYNONYMS")
    assert len(drawn) == len(STRATEGIES.load()) * 5  # 3 x 1 x 2 choices, less the names themselves
    for prompt, lines in drawn.groupby("prompt"):
        assert_same(lines, by_hand(replace(vocabulary, names=prompt.split("; "))))


def test_an_ensemble_of_one_template_is_that_template():
    vocabulary = replace(vocabulary_of(3), templates=TEMPLATES[:1], photo_of=TEMPLATES[0])
    table = score(vocabulary, draws=0).table
    reported, single = (table[table["kind"] == kind] for kind in (AS_REPORTED, SINGLE_TEMPLATE))
    np.testing.assert_array_equal(reported[["mAcc", "mAP"]], single[["mAcc", "mAP"]])


def test_variants_of_a_real_text_tower():
    clip, vocabulary = tiny_clip(), vocabulary_of(3)
    pooled, labels = case(width=12)
    template, encode = TEMPLATES[1], TextEncoder(clip)
    table = score(vocabulary, encode, pooled, labels).table
    expected = by_hand(replace(vocabulary, templates=[template], photo_of=template), encode=encode, pooled=pooled)
    assert_same(table[table["prompt"] == template], expected)


@pytest.mark.parametrize("names", [HOSTILE, ["a"] * 5])
def test_any_names_are_scored(names):
    vocabulary = vocabulary_of(5, names, [["{} {}"], ["{"], [], ["a", "$"], []])
    variants = score(vocabulary, draws=3)
    assert variants.table[["mAcc", "mAP"]].notna().all(axis=None)
    assert_same(variants.table[variants.table["kind"] == AS_REPORTED], by_hand(vocabulary))


# Cost


def test_each_distinct_prompt_is_encoded_once():
    clip, vocabulary = PromptVectors(), vocabulary_of(4)
    encode = TextEncoder(clip)
    score(vocabulary, encode)
    assert len(clip.asked) == len(set(clip.asked)) > 200
    assert NOTHING in clip.asked
    score(vocabulary, encode)
    assert len(clip.asked) == len(encode.encoded)


def test_variants_with_too_many_new_prompts_are_left_out_and_counted(monkeypatch):
    vocabulary, clip = vocabulary_of(5), PromptVectors()
    # a power-set of 5 has 32 prompts; the negative one and the 5 of single classes are encoded before
    monkeypatch.setattr(prompt_sensitivity, "MAX_NEW_PROMPTS", 26)
    assert "Power-set" not in score(vocabulary, draws=0).left_out
    monkeypatch.setattr(prompt_sensitivity, "MAX_NEW_PROMPTS", 25)
    variants = score(vocabulary, TextEncoder(clip), draws=0)
    assert variants.left_out["Power-set"] == 3
    assert f"{TEMPLATES[0].replace('{}', ', '.join(NAMES))}" not in clip.asked
    counts = variants.table.groupby(["strategy", "kind"]).size()
    assert counts["Power-set", AS_REPORTED] == 1  # what the run reports is never left out
    assert ("Power-set", SINGLE_TEMPLATE) not in counts
    assert counts["Baseline", SINGLE_TEMPLATE] == 3
    assert "more than 25 prompts that no other variant needs: 3 of Power-set" in spread_note(variants)


def test_the_limit_counts_each_new_prompt_once_over_the_calls_of_a_variant():
    encode = TextEncoder(PromptVectors())
    encode(["old"])
    limited = prompt_sensitivity.limited_encoder(encode, 2)
    assert limited(["old", "a", "a"]).shape == (3, WIDTH)
    assert limited(["a", "b"]).shape == (2, WIDTH)
    with pytest.raises(prompt_sensitivity.TooManyPromptsError):
        limited(["a", "c"])
    assert set(encode.encoded) == {"old", "a", "b"}


# Draws


def test_draws_are_distinct_choices_and_never_the_names_themselves():
    vocabulary = vocabulary_of(5)
    everything = {
        choice
        for choice in product(*([name, *own] for name, own in zip(vocabulary.names, OTHERS, strict=True)))
        if list(choice) != vocabulary.names
    }
    some, all_of_them = draw_names(vocabulary, 7, 0), draw_names(vocabulary, 1000, 0)
    assert len({tuple(names) for names in some}) == len(some) == 7
    assert {tuple(names) for names in some} < everything
    assert {tuple(names) for names in all_of_them} == everything
    assert len(all_of_them) == len(everything) == 23
    assert draw_names(vocabulary, 7, 0) == some != draw_names(vocabulary, 7, 1)


def test_draws_among_more_choices_than_a_number_holds():
    vocabulary = Vocabulary([f"c{k}" for k in range(30)], TEMPLATES, synonyms=[list("abcdefghi")] * 30)
    assert len(draw_names(vocabulary, 12, 0)) == 12


@pytest.mark.parametrize("synonyms", [[], [[], [], []]])
def test_without_synonyms_none_are_tried(synonyms):
    variants = score(replace(vocabulary_of(3), synonyms=synonyms))
    assert set(variants.table["kind"]) == {AS_REPORTED, SINGLE_TEMPLATE}
    assert "No synonyms were tried" in spread_note(variants)


# Words


def made(reported, single, synonyms=()):
    """The Baseline's variants, from pairs (mAcc, mAP)."""
    lines = [("Baseline", AS_REPORTED, "a; b", *reported)]
    lines += [("Baseline", SINGLE_TEMPLATE, f"t{k} {{}}", *pair) for k, pair in enumerate(single)]
    lines += [("Baseline", SYNONYMS, f"s{k}", *pair) for k, pair in enumerate(synonyms)]
    return Variants(pd.DataFrame(lines, columns=["strategy", "kind", "prompt", "mAcc", "mAP"]), {})


def test_ensembling_is_compared_with_the_single_templates():
    note = ensembling_note(made((0.5, 0.6), [(0.4, 0.7), (0.3, 0.5), (0.5, 0.3)]))
    assert "mAP is 0.600 with all 3 templates" in note
    assert "0.500 on average (0.300 to 0.700)" in note
    assert "mean by +0.100 and is better than 2 of the 3 templates" in note
    assert "mAcc is 0.500 with all 3" in note
    assert "better than 2 of the 3 templates. Its mAcc" in note
    assert note.endswith("mean by +0.100 and is better than 2 of the 3 templates.")


def test_ensembling_note_says_what_does_not_move():
    note = ensembling_note(made((0.41, np.nan), [(0.41, np.nan), (0.41, np.nan)]))
    assert "mAcc is 0.410 with every template, alone or together" in note
    assert "mAP is not defined" in note
    assert "single template" in ensembling_note(made((0.5, 0.6), [(0.5, 0.6)]))


def test_positive_cosines_make_the_baselines_macc_constant_and_the_note_says_so():
    class Narrow(PromptVectors):
        def encode_text(self, prompts):  # a cone, as OpenAI's CLIP has it
            vectors = super().encode_text(prompts) * 0.1
            return torch.nn.functional.normalize(vectors + torch.eye(WIDTH)[0])

    pooled, labels = case()
    variants = score(vocabulary_of(3), TextEncoder(Narrow()), pooled * 0.1 + np.eye(WIDTH)[0] * 3, labels)
    assert f"mAcc is {labels.mean():.3f} with every template" in ensembling_note(variants)
    assert "mAP is" in ensembling_note(variants)


def test_spread_is_said_and_tabled():
    variants = made((0.5, 0.6), [(0.4, 0.7), (0.3, 0.65)], [(0.45, 0.2)])
    note = spread_note(variants)
    assert "- Baseline: mAcc 0.500 as reported, 0.300 to 0.400 over 2 single templates, 0.450 over 1 choices" in note
    assert "mAP 0.600 as reported, 0.650 to 0.700 over 2 single templates, 0.200 over" in note
    line = extremes_table(variants).loc["Baseline"]
    assert (line["lowest mAP"], line["words of the lowest"]) == ("0.200", "s0")
    assert (line["highest mAP"], line["words of the highest"]) == ("0.700", "t0 {}")


def test_labels_without_a_positive_leave_map_undefined():
    pooled, labels = case()
    variants = score(vocabulary_of(3), pooled=pooled, labels=np.zeros_like(labels))
    assert variants.table["mAP"].isna().all()
    assert "mAP" not in spread_note(variants)
    assert (extremes_table(variants) == "—").all(axis=None)
