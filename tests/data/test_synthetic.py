"""The procedural H&E data set: determinism, labels that agree with masks, stain physics, safe writing."""

import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data import folder
from histoclip_lib.data.splits import split_dataset
from histoclip_lib.data.synthetic import painting, tissue
from histoclip_lib.data.synthetic import patches as synthetic

N_PATCHES = 48


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return synthetic.write_synthetic(tmp_path_factory.mktemp("synthetic") / "set", N_PATCHES, seed=0, workers=2)


@pytest.fixture(scope="module")
def dataset(written):
    return folder.load(written)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def appearance(seed=0, **changes):
    return replace(painting.draw_appearance(np.random.default_rng(seed)), **changes)


def test_files_are_the_same_whatever_the_workers_and_the_number_of_patches(written, tmp_path):
    few = contents(synthetic.write_synthetic(tmp_path / "few", 12, seed=0, workers=1))
    many = contents(written)
    few_rows, many_rows = few.pop("labels.csv").splitlines(), many["labels.csv"].splitlines()
    assert few_rows == many_rows[:13]
    assert len(few) == 24
    assert all(many[name] == content for name, content in few.items())


def test_the_seed_changes_every_patch():
    for index in range(4):
        one, other = (synthetic.draw_patch(index, seed, n_patients=40, size=96)[0] for seed in (0, 1))
        assert (one != other).any()


def test_the_folder_format_loads(dataset):
    assert dataset.classes == ["tumor", "stroma", "lymphocyte", "necrosis"]
    assert len(dataset) == N_PATCHES
    assert dataset.has_masks
    assert dataset.parts is None
    assert dataset.image(0).shape == (224, 224, 3)
    assert dataset.mask(0).shape == (224, 224)


def test_masks_are_palette_images(written):
    with Image.open(next((written / "masks").iterdir())) as mask:
        assert mask.mode == "P"


def test_labels_say_what_the_masks_show(dataset):
    for index in range(len(dataset)):
        mask = dataset.mask(index)
        covered = np.array([(mask == k).mean() for k in range(1, 5)])
        assert dataset.labels[index].tolist() == (covered >= synthetic.MIN_COVERAGE).tolist()


def test_most_present_classes_are_large_and_some_are_small_or_just_absent(dataset):
    covered = np.stack([[(dataset.mask(i) == k).mean() for k in range(1, 5)] for i in range(len(dataset))])
    present = dataset.labels == 1
    assert (covered[present] > 2 * synthetic.MIN_COVERAGE).mean() > 0.8
    assert (covered[present] < 5 * synthetic.MIN_COVERAGE).mean() > 0.08
    assert ((covered > 0) & ~present).mean() > 0.05


def test_prevalences_differ_as_stated():
    labels = [synthetic.labels_of(synthetic.draw_class_map(i, 0, n_patients=40, size=128)) for i in range(400)]
    assert np.abs(np.mean(labels, axis=0) - [0.57, 0.78, 0.39, 0.24]).max() < 0.06
    assert len(np.unique(labels, axis=0)) > 10


def test_patients_are_groups_with_their_own_mix(dataset):
    assert len(np.unique(dataset.groups)) == 40
    assert all(group in name for group, name in zip(dataset.groups, dataset.files, strict=True))
    labels = [synthetic.labels_of(synthetic.draw_class_map(i, 0, n_patients=10, size=64)) for i in range(400)]
    of_patient = np.stack([np.mean(labels[k::10], axis=0) for k in range(10)])
    # 40 patches of one and the same mix would vary by sqrt(p (1 - p) / 40), at most 0.08.
    assert (of_patient.std(axis=0) > 0.1).sum() >= 3


def test_nothing_stained_is_white():
    look = appearance(noise=0.0, white=245.0, gain=np.ones(3))
    bare = painting.Section(*np.zeros((3, 64, 64), dtype=np.float32))
    assert np.abs(painting.develop(bare, look, np.random.default_rng(0)).astype(int) - 245).max() <= 1


@pytest.mark.parametrize("channel", range(3))
def test_light_falls_by_beer_and_lambert(channel):
    look = appearance(noise=0.0, white=250.0, gain=np.ones(3), quality=100)
    sections = np.zeros((3, 3, 32, 32), dtype=np.float32)  # concentrations 0, 0.5 and 1 of one stain
    sections[1, channel], sections[2, channel] = 0.5, 1.0
    rng = np.random.default_rng(0)
    white, half, full = (painting.develop(painting.Section(*s), look, rng)[16, 16].astype(float) for s in sections)
    np.testing.assert_allclose(full, 250 * np.exp(-look.stains[channel]), atol=2)
    np.testing.assert_allclose(half**2, full * white, rtol=0.04)  # optical density is linear


def test_hematoxylin_is_blue_and_eosin_pink():
    for seed in range(40):
        hematoxylin, eosin, _ = np.exp(-appearance(seed).stains)
        assert hematoxylin[2] > hematoxylin[0]
        assert eosin[0] > eosin[2] > eosin[1]


def test_tumor_and_infiltrate_have_nuclei_and_necrosis_has_few():
    """Dark pixels are what nuclei are made of."""
    dark = {}
    for value in (tissue.TUMOR, tissue.STROMA, tissue.LYMPHOCYTE, tissue.NECROSIS):
        class_map = np.full((128, 128), value, dtype=np.uint8)
        look = appearance(4, infiltrate=0.0, blur=0.4, hematoxylin=1.0, eosin=1.0, hyperchromasia=1.3)
        red = tissue.paint(class_map, look, np.random.default_rng(value))[..., 0]
        dark[value] = (red < 150).mean()
    assert min(dark[tissue.TUMOR], dark[tissue.LYMPHOCYTE]) > 2 * max(dark[tissue.STROMA], dark[tissue.NECROSIS])


def disc(value, around):
    """Return the class map of a disc of radius 90, and the distance and direction of each pixel from its centre."""
    y, x = np.mgrid[-112:112, -112:112]
    return np.where(np.hypot(y, x) < 90, value, around).astype(np.uint8), np.hypot(y, x), np.arctan2(y, x)


def stained(class_map, seed, monkeypatch, **changes):
    """Return the section of a class map, and all nuclei in it."""
    drawn = []

    def recording(section, nuclei, *arguments, **options):
        drawn.append(nuclei)
        painting.stain_nuclei(section, nuclei, *arguments, **options)

    monkeypatch.setattr(tissue, "stain_nuclei", recording)
    section = tissue.stain(class_map, appearance(seed, hematoxylin=1.0, **changes), np.random.default_rng(seed))
    return section, drawn


def test_lymphocytes_are_clumped_and_vary_in_size(monkeypatch):
    class_map = np.full((224, 224), tissue.LYMPHOCYTE, dtype=np.uint8)
    spread, dispersion = [], []
    for seed in range(6):
        _, (nuclei,) = stained(class_map, seed, monkeypatch)
        nearest = cKDTree(nuclei.centres).query(nuclei.centres, k=2)[0][:, 1]
        counts = np.histogram2d(*nuclei.centres.T, bins=8)[0]
        spread.append(nearest.std() / nearest.mean())
        dispersion.append(counts.var() / counts.mean())
        assert nuclei.radius.std() / nuclei.radius.mean() > 0.15
    # Discs packed at random give 0.1 to 0.2 and 0.3, independent points 0.52 and 1; nuclei have a size, so cannot be.
    assert np.mean(spread) > 0.25
    assert np.mean(dispersion) > 0.75


def test_lumina_are_pale_and_inside_nests_and_nuclei_stand_upright_at_the_rim(monkeypatch):
    class_map, distance, direction = disc(tissue.TUMOR, tissue.STROMA)
    changes = {"clefts": 0.0, "apoptosis": 0.0, "infiltrate": 0.0, "elongation": 1.2, "radius": 5.0, "cellularity": 0.5}
    pale, alignment = {0.0: 0, 1.0: 0}, []
    for glands, seed in itertools.product(pale, range(5)):
        section, drawn = stained(class_map, seed, monkeypatch, glands=glands, **changes)
        pale[glands] += (section.hematoxylin + section.eosin < 0.05)[distance < 80].mean()
        if glands:
            nuclei = max(drawn, key=lambda some: len(some.centres))
            y, x = np.clip(nuclei.centres.astype(int), 0, 223).T
            rim = (distance[y, x] > 79) & (distance[y, x] < 85)
            alignment.append(np.abs(np.cos(nuclei.angle[rim] - direction[y, x][rim])).mean())
    assert pale[0.0] == 0 and pale[1.0] / 5 > 0.01
    assert np.mean(alignment) > 0.9  # 0.64 if they lay as they like


def test_necrosis_goes_from_ghosts_through_dust_to_pink_matter_without_nuclei():
    class_map, distance, _ = disc(tissue.NECROSIS, tissue.TUMOR)
    blue, pink = np.zeros((2, 3))
    for seed in range(6):
        section = tissue.stain(class_map, appearance(seed, eosin=1.0), np.random.default_rng(seed))
        for k, (inner, outer) in enumerate([(75, 87), (50, 70), (0, 40)]):
            ring = (distance >= inner) & (distance < outer)
            blue[k] += (section.hematoxylin[ring] > 0.35).mean()
            pink[k] += section.eosin[ring].mean()
    assert blue[0] > 1.3 * blue[1] > 1.3**2 * blue[2]
    assert pink[0] < pink[1] < pink[2]


@pytest.mark.parametrize("value", [tissue.BLOOD, tissue.OTHER])
def test_red_cells_lie_inside_a_wall_lined_by_flat_nuclei(value, monkeypatch):
    class_map, distance, direction = disc(value, tissue.STROMA)
    monkeypatch.setattr(tissue, "_rest", lambda scene, region: tissue._blood(scene, region, tissue.OTHER))
    section, drawn = stained(class_map, 0, monkeypatch)
    assert (section.red[distance < 80] > 0.2).mean() > 0.2
    assert section.red[distance > 87].max() < 0.02
    wall, plasma = (distance > 87) & (distance < 89), (distance < 80) & (section.red < 0.02)
    assert section.eosin[wall].mean() > 3 * section.eosin[plasma].mean()
    lining = next(some for some in drawn if len(some.centres) > 10 and some.elongation.min() > 3)
    y, x = lining.centres.astype(int).T
    assert np.abs(np.sin(lining.angle - direction[y, x])).mean() > 0.95


@pytest.mark.parametrize("value", range(5))
def test_no_patch_is_blank_or_fog(value):
    for seed in range(20):
        class_map = np.full((160, 160), value, dtype=np.uint8)
        picture = tissue.paint(class_map, appearance(seed), np.random.default_rng(seed))
        assert picture.mean(axis=2).std() > 8


def test_points_keep_their_distance():
    allowed = np.zeros((80, 80), dtype=bool)
    allowed[10:70, 20:60] = True
    points = painting.scatter(np.random.default_rng(0), allowed, 6.0)
    apart = np.linalg.norm(points[:, None] - points, axis=-1) + 99 * np.eye(len(points))
    assert apart.min() > 6.0
    assert len(points) > 0.4 * allowed.sum() / 36
    assert allowed[tuple(np.rint(points).astype(int).T)].mean() > 0.95


@pytest.mark.parametrize("sigma", [0.8, 2, 7, 26])
def test_smooth_noise_has_unit_variance(sigma):
    fields = [painting.smooth_noise(np.random.default_rng(i), 224, sigma) for i in range(30)]
    assert fields[0].shape == (224, 224)
    assert np.std(fields) == pytest.approx(1, abs=0.2)


def test_colour_alone_is_not_enough(dataset):
    images = np.stack([dataset.image(i) for i in range(len(dataset))])
    features = np.concatenate([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)
    accuracies = []
    for seed in range(3):
        train, val = split_dataset(dataset, "grouped", seed)
        for k in range(4):
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            probe.fit(features[train], dataset.labels[train, k])
            accuracies.append(probe.score(features[val], dataset.labels[val, k]))
    assert np.mean(accuracies) < 0.82


def test_load_paints_once_and_then_reads_the_cache(tmp_path, monkeypatch):
    first = synthetic.load_synthetic(4, seed=3, cache_dir=tmp_path)
    assert first.name == "synthetic"
    monkeypatch.setattr(synthetic, "write_synthetic", lambda *_, **__: pytest.fail("painted again"))
    again = synthetic.load_synthetic(4, seed=3, cache_dir=tmp_path)
    assert again.source.image_paths == first.source.image_paths
    assert first.source.image_paths[0].is_relative_to(tmp_path / "synthetic")


def test_a_changed_generator_or_argument_has_another_key(tmp_path, monkeypatch):
    keys = {synthetic._key(n_patches=2, seed=0), synthetic._key(n_patches=3, seed=0)}
    changed = tmp_path / "tissue.py"
    changed.write_bytes(Path(tissue.__file__).read_bytes() + b"\n# changed\n")
    monkeypatch.setattr(tissue, "__file__", str(changed))
    keys.add(synthetic._key(n_patches=2, seed=0))
    assert len(keys) == 3


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no more ink")

    monkeypatch.setattr(synthetic, "_write_table", fail)
    with pytest.raises(RuntimeError, match="ink"):
        synthetic.write_synthetic(tmp_path / "set", 2, size=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_killed_write_leaves_no_complete_folder(tmp_path):
    script = (
        "import sys; from histoclip_lib.data.synthetic import patches; "
        "patches.write_synthetic(sys.argv[1], 5000, workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "set")], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".set.*/images/*.png")) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (partial,) = tmp_path.iterdir()
    assert partial.name.endswith(".partial")
    assert not (partial / "labels.csv").exists()
    assert list((partial / "images").iterdir())
    synthetic.write_synthetic(tmp_path / "set", 2, size=64)  # what the killed run left is in nobody's way
    assert len(folder.load(tmp_path / "set")) == 2


@pytest.mark.parametrize(
    ("arguments", "named"), [({"n_patches": 0}, "n_patches"), ({"n_patients": 0}, "n_patients"), ({"size": 8}, "size")]
)
def test_numbers_out_of_range_are_refused(tmp_path, arguments, named):
    with pytest.raises(HistoCLIPError, match=named):
        synthetic.write_synthetic(tmp_path / "set", **arguments)


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(HistoCLIPError, match="seed: -1"):
        synthetic.load_synthetic(2, seed=-1, cache_dir=tmp_path)


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(HistoCLIPError, match="not an empty folder"):
        synthetic.write_synthetic(tmp_path, 2)
    assert (tmp_path / "mine.txt").read_text() == "keep"
