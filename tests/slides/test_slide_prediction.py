"""A slide is predicted tile by tile, in bounded memory, once, and to the same bits however often it is killed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from painted import ColourMeter, halved, picture, save_image, write_slide

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import alone_in
from histoclip_lib.slides import open_slide, predict_slide, prediction, read_attention, read_slide_result, read_tiles

PIXELS = picture(1100, 800)
OPTIONS = {"batch_size": 4, "min_tissue": 0.3}


@pytest.fixture
def slide(tmp_path):
    return write_slide(tmp_path / "a slide.tif", [PIXELS, halved(PIXELS)])


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(prediction, "PART_BATCHES", 2)


def test_each_tile_has_what_the_model_says_of_its_field(slide, tmp_path):
    model = ColourMeter()
    result = predict_slide(model, slide, tmp_path / "out", **OPTIONS)
    table, attention = read_tiles(tmp_path / "out"), read_attention(tmp_path / "out")
    assert list(table) == [
        *("x", "y", "width", "height", "tissue", "prob_dark", "prob_blue", "present_dark", "present_blue", "ood")
    ]
    assert result.n_tiles == result.n_predicted == len(table) == len(attention) == sum(model.seen)
    assert set(table.width) == {128}  # 64 px at 1 um, on a slide of 0.5
    with open_slide(slide) as opened:
        for row in (0, len(table) // 2, len(table) - 1):
            tile = table.iloc[row]
            field = opened.read_field(tile.x, tile.y, 128, 56)
            assert tile.prob_blue == pytest.approx(field[..., 2].mean() / 255, abs=1e-5)
            grid = field[..., 1].reshape(7, 8, 7, 8).mean(axis=(1, 3)) / 255
            np.testing.assert_allclose(attention[row, 0], grid, atol=1e-3)
    assert (table.present_blue == (table.prob_blue >= 0.65)).all()
    assert table.present_dark.any() and not table.present_dark.all()  # purple and pink
    assert result == read_slide_result(tmp_path / "out")
    assert (result.mpp, result.mpp_source, result.field_um, result.error) == (0.5, "TIFF resolution", 64, None)


def test_the_model_averages_over_as_many_views_as_were_asked_for(slide, tmp_path):
    model = ColourMeter()
    predict_slide(model, slide, tmp_path / "eight", views=8, **OPTIONS)
    assert set(model.views) == {8}


def test_patches_smaller_than_the_encoders_input_are_read_no_finer_than_they_were(slide, tmp_path):
    class Sharpness(ColourMeter):
        def predict_tensor(self, images, views=1):
            said = super().predict_tensor(images, views)
            steps = np.abs(np.diff(images.numpy().astype(np.float32), axis=3)).mean(axis=(1, 2, 3))
            said.ood = steps
            return said

    found = {}
    for side in (28, 56):
        predict_slide(Sharpness(patch_px=side, mpp=64 / side), slide, tmp_path / str(side), **OPTIONS)
        found[side] = read_tiles(tmp_path / str(side)).ood.mean()
    assert found[28] < 0.6 * found[56]


def read_everything(folder):
    return (folder / "tiles.parquet").read_bytes(), (folder / "attention.npy").read_bytes()


class Interrupted(Exception):
    pass


def test_an_interrupted_slide_continues_with_the_same_bits_and_repeats_no_part(slide, tmp_path, small_parts):
    whole = ColourMeter()
    predict_slide(whole, slide, tmp_path / "whole", **OPTIONS)

    def stop_after(limit):
        def progress(done, total):
            if done > limit:
                raise Interrupted

        return progress

    for limit in (9, 19, 26):
        with pytest.raises(Interrupted):
            predict_slide(ColourMeter(), slide, tmp_path / "cut", progress=stop_after(limit), **OPTIONS)
        with pytest.raises(HistoCLIPError, match="not hold a finished slide prediction"):
            read_tiles(tmp_path / "cut")
    last = ColourMeter()
    predict_slide(last, slide, tmp_path / "cut", **OPTIONS)
    assert sum(last.seen) == sum(whole.seen) - 24  # three parts of eight were there
    assert read_everything(tmp_path / "cut") == read_everything(tmp_path / "whole")
    assert sorted(file.name for file in (tmp_path / "cut").iterdir()) == [
        *("attention.npy", "slide.json", "tiles.parquet")
    ]


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from painted import ColourMeter
from histoclip_lib.slides import predict_slide, prediction
prediction.PART_BATCHES = 2
def kill(done, total):
    if done > {after}:
        os.kill(os.getpid(), signal.SIGKILL)
predict_slide(ColourMeter(), {slide!r}, {out!r}, progress=kill, batch_size=4, min_tissue=0.3)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_process_leaves_what_the_next_one_continues(slide, tmp_path, small_parts):
    script = KILLED.format(tests=str(Path(__file__).parent), after=13, slide=str(slide), out=str(tmp_path / "cut"))
    assert subprocess.run([sys.executable, "-c", script], timeout=100).returncode == -signal.SIGKILL
    model = ColourMeter()
    predict_slide(model, slide, tmp_path / "cut", **OPTIONS)
    predict_slide(ColourMeter(), slide, tmp_path / "whole", **OPTIONS)
    assert sum(model.seen) == read_slide_result(tmp_path / "whole").n_tiles - 8
    assert read_everything(tmp_path / "cut") == read_everything(tmp_path / "whole")


def test_a_finished_slide_is_not_opened_again_unless_something_changed(slide, tmp_path, monkeypatch):
    first = predict_slide(ColourMeter(), slide, tmp_path / "out", **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "open_slide", lambda *_: pytest.fail("the slide was opened"))
        assert predict_slide(ColourMeter(), slide, tmp_path / "out", **OPTIONS) == first
    for change in (
        {"model": replace(ColourMeter(), identity="another")},
        {"overlap": 0.5},
        {"views": 2},
        {"mpp": 0.6},
        {"model": replace(ColourMeter(), thresholds=np.array([0.1, 0.1]))},
        {"model": replace(ColourMeter(), mpp=0.6)},
        {"tissue": save_image(tmp_path / "mask.png", np.full((80, 110), 255, np.uint8))},
    ):
        model = change.pop("model", ColourMeter())
        predict_slide(model, slide, tmp_path / "out", **{**OPTIONS, **change})
        assert model.seen != []


def test_two_processes_are_never_at_work_on_one_slide(slide, tmp_path):
    (tmp_path / "out").mkdir()
    with alone_in(tmp_path / "out"), pytest.raises(HistoCLIPError, match="is at work here"):
        predict_slide(ColourMeter(), slide, tmp_path / "out", **OPTIONS)


def test_a_truncated_slide_keeps_the_tiles_before_and_is_reported(tmp_path, small_parts):
    slide = write_slide(tmp_path / "whole.tif", [PIXELS])
    places = [(x, y) for y in range(0, 640, 128) for x in range(0, 1024, 128)]
    options = {"batch_size": 4, "coordinates": pd.DataFrame(places, columns=["x", "y"])}
    whole = predict_slide(ColourMeter(), slide, tmp_path / "whole", **options)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(slide.read_bytes()[: slide.stat().st_size // 2])
    result = predict_slide(ColourMeter(), cut, tmp_path / "out", **options)
    assert 0 < result.n_predicted < result.n_tiles == whole.n_tiles
    assert str(cut) in result.error and "truncated" in result.error
    assert f"{result.n_predicted} of {result.n_tiles} tiles were predicted before" in result.error
    kept, expected = read_tiles(tmp_path / "out"), read_tiles(tmp_path / "whole")
    pd.testing.assert_frame_equal(kept, expected.head(len(kept)))
    assert len(read_attention(tmp_path / "out")) == result.n_predicted
    again = predict_slide(ColourMeter(), cut, tmp_path / "out", **options)
    assert replace(again, seconds=0) == replace(result, seconds=0)


def test_a_slide_without_tissue_is_refused(tmp_path):
    path = save_image(tmp_path / "glass.png", np.full((600, 600, 3), 242, np.uint8))
    with pytest.raises(HistoCLIPError, match=r"glass\.png: no tissue was found.*--tissue MASK"):
        predict_slide(ColourMeter(), path, tmp_path / "out", mpp=0.5)
    mask = save_image(tmp_path / "mask.png", np.full((60, 60), 255, np.uint8))
    assert (
        predict_slide(ColourMeter(), path, tmp_path / "out", mpp=0.5, tissue=mask).n_tiles == 24
    )  # the last, 47% of it on the slide, is not kept


def test_what_a_reader_should_know_is_noted(slide, tmp_path):
    far = pd.DataFrame({"x": [0], "y": [0], "width": [256], "height": [256]})
    model = ColourMeter(ood_threshold=-1.0, attentive=False)
    result = predict_slide(model, slide, tmp_path / "out", mpp=2.0, coordinates=far)
    notes = " ".join(result.notes)
    for said in (
        "overrides that of the slide, 0.5",
        "blurred",
        "show 512 to 512 micrometres",
        "1 of 1 tiles are unlike",
    ):
        assert said in notes
    assert read_attention(tmp_path / "out") is None
    assert json.loads((tmp_path / "out" / "slide.json").read_text())["notes"] == result.notes


def test_no_more_batches_are_decoded_ahead_than_the_queue_holds(slide, tmp_path, monkeypatch):
    from histoclip_lib.slides.prediction import _Plan

    started, furthest, read = [], [], _Plan._read
    monkeypatch.setattr(prediction, "n_cores", lambda: 2)
    monkeypatch.setattr(_Plan, "_read", lambda plan, start: started.append(start) or read(plan, start))

    def progress(done, total):
        furthest.append(len(started) * 4 - done)

    predict_slide(ColourMeter(), slide, tmp_path / "out", progress=progress, **OPTIONS)
    assert len(started) >= 8
    assert max(furthest) <= 3 * 4
