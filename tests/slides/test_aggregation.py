"""Slides are summed up with honest intervals, and what they add to metadata is tested on held-out groups."""

import numpy as np
import pandas as pd
import pytest
from painted import ColourMeter, halved, picture, write_slide
from sklearn.metrics import roc_auc_score

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.slides import (
    aggregate_slides,
    aggregation,
    burdens_by_metadata,
    class_burdens,
    predict_slide,
    read_slide_table,
    read_tiles,
    study_target,
)


@pytest.fixture
def write(tmp_path):
    for name in ("a 1.svs", "b#.svs"):
        (tmp_path / name).touch()
    (tmp_path / "dicom").mkdir()

    def to_file(text):
        (tmp_path / "slides.csv").write_text(text)
        return tmp_path / "slides.csv"

    return to_file


def test_a_table_of_slides_is_read_as_it_is_meant(write, tmp_path):
    table = read_slide_table(
        write(f"slide;group;mpp;target;meta_site\na 1.svs;p1;0.5;yes;A\ndicom;p1;;0;\n{tmp_path / 'b#.svs'};p2;1;;B\n")
    )
    assert [path.name for path in table.paths] == ["a 1.svs", "dicom", "b#.svs"]
    assert table.paths[0] == tmp_path / "a 1.svs"
    assert table.groups.tolist() == ["p1", "p1", "p2"]
    np.testing.assert_array_equal(table.mpp, [0.5, np.nan, 1])
    np.testing.assert_array_equal(table.target, [1, 0, np.nan])
    assert table.metadata.meta_site.tolist() == ["A", "", "B"]
    alone = read_slide_table(write("slide\na 1.svs\ndicom\n"))
    assert len(set(alone.groups)) == 2 and np.isnan(alone.target).all() and alone.metadata.shape == (2, 0)


@pytest.mark.parametrize(
    "text, messages",
    [
        ("file\na.svs\n", ["'slide'", "optional"]),
        ("slide\n", ["no rows"]),
        ("slide,Target,site\na 1.svs,1,A\n", ["write 'target' for 'Target'", "'site': call it 'meta_site'"]),
        ("slide\nx.svs\na 1.svs\na 1.svs\n", ["line 2: 'x.svs' does not exist", "lines 3, 4: a 1.svs is named 2"]),
        ('slide,mpp\na 1.svs,0\nb#.svs,"0,5"\n', ["column mpp", "line 2: '0'", "line 3: '0,5'"]),
        ("slide,target\na 1.svs,2\nb#.svs,maybe\n", ["column target", "line 2: '2'", "line 3: 'maybe'"]),
        ("slide,group\na 1.svs,\n", ["column group", "line 2: ''"]),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_its_line(write, text, messages):
    path = write(text)
    with pytest.raises(HistoCLIPError) as raised:
        read_slide_table(path)
    for message in (str(path), *messages):
        assert message in str(raised.value)


def tile_table(present, x, y, tissue=1.0, scores=None):
    table = pd.DataFrame({"x": x, "y": y, "width": 100, "height": 100, "tissue": tissue})
    return table.assign(prob_tumor=present if scores is None else scores, present_tumor=present.astype(bool))


def test_the_share_counts_tissue_and_the_top_mean_the_highest_tiles():
    present = np.array([1, 1, 0, 0, 0])
    tissue, scores = [0.5, 0.5, 1, 1, 1], np.array([0.9, 0.8, 0.1, 0.2, 0.0])
    line = class_burdens(tile_table(present, range(5), 0, tissue, scores), ["tumor"]).iloc[0]
    assert line.share == pytest.approx(1 / 4)
    assert line["mean"] == pytest.approx((0.45 + 0.4 + 0.3) / 4)
    assert line.top_mean == pytest.approx(scores.mean())
    assert np.isnan(line.share_low)  # one block


def test_intervals_hold_the_share_where_neighbours_are_alike_and_where_it_is_zero():
    side, chance, draw = 64, 0.3, np.random.default_rng(0)
    x, y = (100 * each.ravel() for each in np.meshgrid(np.arange(side), np.arange(side)))
    held = []
    for _ in range(100):
        coarse = draw.random((side // 4, side // 4)) < chance  # 4 x 4 tiles are alike
        line = class_burdens(tile_table(np.kron(coarse, np.ones((4, 4))).ravel(), x, y), ["tumor"]).iloc[0]
        held.append(line.share_low <= chance <= line.share_high)
    assert 0.89 <= np.mean(held) <= 0.99
    none = class_burdens(tile_table(np.zeros(side**2), x, y), ["tumor"]).iloc[0]
    assert none.share_low == pytest.approx(0) and 0.01 < none.share_high < 0.1


def slides_of(target, groups, **columns):
    about = {"slide": [f"{n}.svs" for n in range(len(target))], "group": groups, "target": target, "error": ""}
    return pd.DataFrame({**about, **columns})


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch):
    monkeypatch.setattr(aggregation, "REPEATS", 2)


@pytest.fixture(scope="module")
def cohort():
    """Return 120 slides of 60 patients; age and the tumor burden each carry a part of the target, site none."""
    draw = np.random.default_rng(1)
    groups = np.repeat([f"p{n}" for n in range(60)], 2)
    age, tumor = np.repeat(draw.normal(size=60), 2), draw.normal(size=120)
    target = (age + 1.5 * tumor + draw.normal(size=120) > 0).astype(float)
    site = draw.choice(["A", "B", ""], 120)
    return slides_of(
        target,
        groups,
        meta_age=[f"{60 + 9 * value:.1f}" for value in age],
        meta_site=site,
        share_tumor=1 / (1 + np.exp(-tumor)),
        share_stroma=draw.random(120),
    )


def test_what_the_image_adds_to_the_metadata_is_found(cohort):
    study = study_target(cohort, ["tumor", "stroma"])
    scores, tests = study.scores.set_index("model"), study.tests.set_index(["model", "against"])
    assert 0.6 < scores.auroc["metadata"] < scores.auroc["class burdens"] < scores.auroc["metadata and class burdens"]
    assert (scores.low < scores.auroc).all() and (scores.auroc < scores.high).all()
    added = tests.loc[("metadata and class burdens", "metadata")]
    assert added.low > 0 and added.p < 0.01
    assert added.difference == pytest.approx(
        scores.auroc["metadata and class burdens"] - scores.auroc["metadata"], abs=1e-9
    )
    assert (study.n_slides, study.n_groups) == (120, 60)
    assert study.scores.equals(study_target(cohort, ["tumor", "stroma"]).scores)


def test_an_image_that_adds_nothing_is_not_found_to_add(cohort):
    tests = study_target(cohort, ["stroma"]).tests.set_index(["model", "against"])
    assert tests.loc[("metadata and class burdens", "metadata")].p > 0.05


def test_a_slide_is_never_predicted_from_others_of_its_group():
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 10).astype(str)
    target = np.repeat(np.arange(12) % 2, 10).astype(float)
    mark = np.repeat(draw.random(12), 10)  # tells the group, and nothing of others
    study = study_target(
        slides_of(target, groups, share_tumor=mark, meta_ward=[f"w{group}" for group in groups]), ["tumor"]
    )
    assert (study.scores.auroc < 0.75).all()


def test_aurocs_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    target, scores = draw.integers(0, 2, 50), draw.integers(0, 9, (4, 50)) / 9
    expected = [roc_auc_score(target, line) for line in scores]
    np.testing.assert_allclose(aggregation._auroc(target, scores), expected)


@pytest.mark.parametrize(
    "target, groups, reason",
    [
        (np.arange(19) % 2, np.arange(19), "19 slides have a target.*20 are the fewest"),
        (np.arange(40) < 4, np.arange(40), "4 of 40 slides have target 1"),
        (np.arange(40) % 2, np.arange(40) % 4, "come from 4 groups"),
        (np.r_[np.ones(10), np.zeros(20)], np.r_[np.zeros(10), np.arange(1, 21)], "1 of them with target 1"),
        (np.full(40, np.nan), np.arange(40), "0 slides have a target"),
    ],
)
def test_nothing_is_fitted_on_too_few_slides_and_the_result_says_so(target, groups, reason):
    draw = np.random.default_rng(0)
    slides = slides_of(np.asarray(target, float), groups.astype(str), share_tumor=draw.random(len(target)))
    study = study_target(slides, ["tumor"])
    assert study.scores.empty and study.tests.empty
    assert pd.Series([study.note]).str.contains(f"Nothing was fitted: .*{reason}").all()


def test_slides_that_broke_off_are_left_out_and_without_metadata_only_burdens_are_fitted(cohort):
    slides = cohort.drop(columns=["meta_age", "meta_site"]).assign(error=["truncated"] * 7 + [""] * 113)
    study = study_target(slides, ["tumor"])
    assert study.scores.model.tolist() == ["class burdens"] and study.tests.empty
    assert study.n_slides == 113 and "7 slides that were not read to their end" in study.note


def test_burdens_stand_beside_each_value_of_the_metadata(cohort):
    table = burdens_by_metadata(cohort, ["tumor"]).set_index(["column", "value"])
    site = cohort[cohort.meta_site == "A"]
    line = table.loc[("meta_site", "A")]
    assert (line.n_slides, line.n_groups) == (len(site), site.group.nunique())
    assert line["mean"] == pytest.approx(site.share_tumor.mean()) and line.low < line["mean"] < line.high
    assert ("meta_site", "") not in table.index
    halves = table.loc["meta_age"]
    assert len(halves) == 2 and halves.n_slides.sum() == 120
    few = burdens_by_metadata(cohort.head(6), ["tumor"])
    assert few.low.isna().all() and few["mean"].notna().all()


def test_predicted_slides_become_lines_beside_their_metadata(tmp_path):
    pixels = picture(1100, 800)
    for name in ("a.tif", "b.tif", "c.tif"):
        write_slide(tmp_path / name, [pixels, halved(pixels)])
    (tmp_path / "slides.csv").write_text("slide,group,target,meta_site\na.tif,p,1,A\nb.tif,q,0,B\nc.tif,r,,\n")
    table, folders = read_slide_table(tmp_path / "slides.csv"), [tmp_path / name for name in "abc"]
    for path, folder in list(zip(table.paths, folders, strict=True))[:2]:
        predict_slide(ColourMeter(), path, folder)
    slides = aggregate_slides(table, folders)
    assert slides.slide.tolist() == ["a.tif", "b.tif", "c.tif"]
    assert slides.error.tolist()[:2] == ["", ""] and "not hold a finished slide prediction" in slides.error[2]
    assert slides.share_dark[0] == pytest.approx(class_burdens(read_tiles(folders[0]), ["dark"]).share[0])
    assert slides.meta_site.tolist() == ["A", "B", ""]
    predict_slide(ColourMeter(identity="other"), table.paths[1], folders[1])
    with pytest.raises(HistoCLIPError, match="2 different models"):
        aggregate_slides(table, folders)
