import numpy as np
import pytest
from drawing import HOSTILE, draw

from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.localisation import best_and_worst, class_means, score_maps
from histoclip_lib.models.attention import MAP_LABELS, enlarge
from histoclip_lib.report import figures
from histoclip_lib.report.figures import patches as galleries

PLAIN = ["tumor", "stroma", "lymphocyte", "necrosis"]


class Source:
    def image(self, index):
        return np.random.default_rng(index).integers(0, 255, (40, 48, 3), dtype=np.uint8)

    def mask(self, index):
        mask = np.zeros((40, 48), dtype=np.uint8)
        mask[:20, :24], mask[20:, 24:] = 1, 2
        return mask


@pytest.fixture(params=[PLAIN, HOSTILE, PLAIN[:2], PLAIN + HOSTILE * 3], ids=["plain", "hostile", "two", "sixteen"])
def case(request):
    """Ten masked patches; the masks show the first two classes only."""
    classes = (
        request.param
        if len(set(request.param)) == len(request.param)
        else [f"{i} {c}" for i, c in enumerate(request.param)]
    )
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (10, len(classes))).astype(np.uint8)
    patches = PatchDataset("made", classes, [f"{i}$_.png" for i in range(10)], labels, Source(), has_masks=True)
    maps = {name: generator.random((10, len(classes), 5, 5)).astype(np.float32) for name in MAP_LABELS}
    return patches, maps, score_maps(maps, patches, np.arange(10))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_agreement_draws_and_says_the_numbers(case):
    patches, _, scores = case
    figure = figures.map_agreement(scores, patches.classes)
    alternative = draw(figure)
    means = class_means(scores.ap)[:, 0]
    said = ", ".join(f"{label.lower()} {v:.2f}" for label, v in zip(MAP_LABELS.values(), means, strict=True))
    assert f"per-pixel AP, {patches.classes[0]}: {said}" in alternative
    assert "nan" not in alternative
    dots = {line.get_label(): line.get_xdata() for line in figure.axes[2].lines}
    np.testing.assert_allclose(dots["Text similarity"][:2], class_means(scores.ap)[2, :2])
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert ticks[0].endswith(f"({(~np.isnan(scores.area[:, 0])).sum()})")


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_cases_show_patch_attention_and_similarity_with_their_scores(case):
    patches, maps, scores = case
    probabilities = np.random.default_rng(1).random(scores.area.shape)
    best, worst = best_and_worst(scores.gain(), 2)
    for cases in (best, worst):
        figure = galleries.attention_cases(patches, np.arange(10), maps, scores, probabilities, cases)
        assert len(figure.axes) == 3 * len(cases)
        alternative = draw(figure)
        for number, shown in ((1, "trained"), (2, "similarity")):
            i, k = cases[0]
            drawn = figure.axes[number].images[1].get_array()
            np.testing.assert_allclose(drawn, enlarge(maps[shown][i, k], 40))
            assert figure.axes[number].get_title().startswith(MAP_LABELS[shown].lower())
        for i, k in cases:
            assert f"{patches.files[i]}, {figures.short(patches.classes[k])}: 25% of the patch" in alternative
            assert f"p = {probabilities[i, k]:.2f}" in alternative
            assert (
                f"text similarity, AP {scores.ap[2, i, k]:.2f}, {scores.mass[2, i, k]:.0%} in the mask" in alternative
            )


def test_without_cases_there_is_no_gallery(case):
    patches, maps, scores = case
    assert galleries.attention_cases(patches, np.arange(10), maps, scores, scores.area, []) is None
