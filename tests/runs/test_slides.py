"""A saved model on slides: what is written, a slide that fails beside others, and slides as tasks of Dask."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.executors import open_executor
from histoclip_lib.runs.slides import SlideOptions, _of_slide, find_slides, is_slide, predict_slides, slide_folders
from tests.local_cluster import Cluster
from tests.slides.painted import halved, picture, save_image, write_slide

OPTIONS = SlideOptions(device="cpu", min_tissue=0.3)


@pytest.fixture
def slides(tmp_path):
    """Two slides and a text file that calls itself one."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name, height in (("one.tif", 700), ("two two.tif", 600)):
        pixels = picture(900, height)
        write_slide(folder / name, [pixels, halved(pixels)])
    (folder / "no.svs").write_text("not a slide")
    return folder


def test_a_slide_that_fails_stops_no_other_and_is_named_with_its_reason(saved_model, slides, tmp_path):
    table, others = find_slides([slides])
    assert others == []
    found = predict_slides(saved_model[0], table, tmp_path / "out", OPTIONS)
    assert found.slide.tolist() == ["no.svs", "one.tif", "two two.tif"]
    assert [bool(error) for error in found.error] == [True, False, False]
    assert "no.svs" in found.error[0]
    for folder in ("one", "two two"):
        names = {path.name for path in (tmp_path / "out" / folder).iterdir()}
        assert {
            "tiles.parquet",
            "tiles.csv",
            "tiles.geojson",
            "heatmap.ome.tif",
            "attention.npy",
            "slide.json",
        } <= names
    written = pd.read_parquet(tmp_path / "out" / "slides.parquet")
    pd.testing.assert_frame_equal(written, found)
    before = (tmp_path / "out" / "one" / "tiles.parquet").stat().st_mtime_ns
    predict_slides(saved_model[0], table, tmp_path / "out", OPTIONS)
    assert (tmp_path / "out" / "one" / "tiles.parquet").stat().st_mtime_ns == before
    (slides / "one.tif").write_text("damaged since")
    found = predict_slides(saved_model[0], table, tmp_path / "out", OPTIONS)
    assert found.n_predicted.notna().tolist() == [False, False, True]  # an earlier result is not this one's


@pytest.mark.slow
def test_slides_of_a_killed_worker_are_done_by_the_other_with_the_same_bits(saved_model, slides, tmp_path):
    table, _ = find_slides([slides])
    predict_slides(saved_model[0], table, tmp_path / "here", OPTIONS)
    cluster = Cluster(tmp_path)
    try:
        cluster.ready(2)
        with open_executor(scheduler=cluster.address) as executor:
            predict_slides(
                saved_model[0], table, tmp_path / "there", OPTIONS, executor, lambda *_: cluster.workers[0].kill()
            )
    finally:
        cluster.stop()
    for folder in ("one", "two two"):
        for name in ("tiles.parquet", "attention.npy", "tiles.geojson"):
            assert (tmp_path / "there" / folder / name).read_bytes() == (tmp_path / "here" / folder / name).read_bytes()


def test_a_patch_is_no_slide_and_large_or_tiled_images_are(tmp_path):
    patch = save_image(tmp_path / "patch.png", np.zeros((64, 64, 3), np.uint8))
    tiled = write_slide(tmp_path / "small.tif", [picture(256, 256)])
    assert not is_slide(patch) and is_slide(tiled)
    assert find_slides([patch])[1] == [patch]
    assert find_slides([patch], all_files=True)[0].paths == [patch]


def test_what_lies_beside_slides_and_below_them_is_no_slide(tmp_path, slides, monkeypatch):
    monkeypatch.setattr("histoclip_lib.data.images.MAX_PIXELS", 1000)  # the mask alone would count as a slide
    save_image(slides / "one_mask.png", np.zeros((70, 90), np.uint8))
    (slides / "._one.tif").write_text("macOS writes this on disks of others")
    (slides / "one").mkdir()
    write_slide(slides / "one" / "heatmap.ome.tif", [picture(256, 256)])  # of an earlier call with this --out
    assert [path.name for path in find_slides([slides])[0].paths] == ["no.svs", "one.tif", "two two.tif"]


def test_dicom_slides_are_folders_of_one_series_or_the_first_file_of_each(tmp_path):
    def write(name, series):
        path = tmp_path / "s" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"DICM \x20\x00\x0e\x00UI\x03\x00" + series)

    for name, series in (
        ("one/0.dcm", b"1.2"),
        ("one/1.dcm", b"1.2"),
        ("flat/a0.dcm", b"1.3"),
        ("flat/a1.dcm", b"1.3"),
    ):
        write(name, series)
    write("flat/b.dcm", b"1.4")
    write("mixed/c.dcm", b"1.5")
    (tmp_path / "s" / "mixed" / "d.svs").touch()
    found = [path.relative_to(tmp_path / "s").as_posix() for path in find_slides([tmp_path / "s"])[0].paths]
    assert found == ["flat/a0.dcm", "flat/b.dcm", "mixed/c.dcm", "mixed/d.svs", "one"]
    assert find_slides([tmp_path / "s" / "one"])[0].paths == [tmp_path / "s" / "one"]


def test_the_table_of_the_user_is_not_overwritten(saved_model, slides):
    (slides / "slides.csv").write_text("slide,group\none.tif,a\n")
    table, _ = find_slides([slides / "slides.csv"])
    with pytest.raises(HistoCLIPError, match=r"slides\.csv would be overwritten"):
        predict_slides(saved_model[0], table, slides, OPTIONS)
    assert (slides / "slides.csv").read_text() == "slide,group\none.tif,a\n"


def test_the_file_of_a_slide_has_its_name_and_no_longer_one(tmp_path):
    for name in ("a.b.h5", "a.h5", "t_patches.h5", "t_patches_old.h5"):
        (tmp_path / name).touch()
    assert [_of_slide(tmp_path, Path(name)).name for name in ("a.svs", "t.svs")] == ["a.h5", "t_patches.h5"]
    with pytest.raises(HistoCLIPError, match=r"its name would begin with o\. or o_patches\."):
        _of_slide(tmp_path, Path("o.svs"))


def test_slides_of_one_name_get_folders_of_their_own(tmp_path):
    folders = slide_folders([tmp_path / "a" / "s.svs", tmp_path / "b" / "S.svs", tmp_path / "t.svs"], tmp_path)
    assert len({str(folder).casefold() for folder in folders}) == 3
    assert folders[2] == tmp_path / "t"


def test_a_model_without_a_scale_says_how_to_give_it(saved_model, slides):
    from dataclasses import replace

    from histoclip_lib.models.bundle import load_model

    model = load_model(saved_model[0], device="cpu")
    with pytest.raises(HistoCLIPError, match="--patch-mpp"):
        replace(model, config=replace(model.config, mpp=None)).mpp  # noqa: B018
