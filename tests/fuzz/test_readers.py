"""Every reader of files from outside: it returns or raises HistoCLIPError, soon, whatever the file holds."""

import io
import json
import warnings
from pathlib import Path
from typing import get_origin

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cases import changed, damaged, fuzz, try_case, written
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data import folder, histoseg
from histoclip_lib.data.images import read_class_map, read_nonzero, read_rgb
from histoclip_lib.data.pannuke.arrays import CLASSES, cached_counts, file_key, open_array
from histoclip_lib.data.pannuke.layouts import load_pannuke
from histoclip_lib.data.pannuke.parquet import ParquetSource, read_fold
from histoclip_lib.evaluation.artifacts import read_metrics
from histoclip_lib.models.cmm import CMM, load_cmm
from histoclip_lib.models.training import load_checkpoint
from histoclip_lib.prompting.vocabulary import FOLDER, load_vocabulary
from histoclip_lib.report.export import read_parameters
from histoclip_lib.runs.grids import read_grid
from histoclip_lib.runs.parameters import read_params
from histoclip_lib.runs.pipeline import load_schema

ROOT = Path(__file__).parents[2]
CLASS_NAMES = ["tumor", "stroma"]
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow and NumPy warn of damaged files


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the same few files are written over and over."""
    return tmp_path_factory.mktemp("fuzz")


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# YAML

YAML = [
    "name: ", "epochs: ", "seeds: ", "data_dir: ", "learning_rate: ", "classes: ", "templates: ", "synonyms: ",
    "tumor: ", "\n", "  ", "- ", "[", "]", "{", "}", ", ", ": ", "? ", "| ", "> ", "'", '"', "# ", "&a ", "*a ", "<<: ",
    "!!python/name:os",
    "!!int ", "!!binary ", "---\n", "...\n", "%YAML 1.1\n", "1e-4", "0x1f", "1:30", ".nan", "2024-01-01", "no", "null",
    "~", "=", "\t", "\0", "\ufeff", "\\ud800", "a photo of {}", "9" * 30,
]  # fmt: skip
DEMO = (ROOT / "params/folder.yaml").read_bytes()
GRID = (ROOT / "params/grid.yaml").read_bytes()
WORDS = (FOLDER / "bcss_wsss.yaml").read_bytes()


@pytest.fixture(scope="module")
def schema():
    return load_schema()


@given(written(YAML) | damaged(DEMO))
@fuzz
def test_parameter_files(place, schema, content):
    values = try_case("parameter files", lambda: read_params(put(place / "a.yaml", content), schema))
    if values is not None:
        legal = {name: p for declared in schema.values() for name, p in declared.items()}
        assert all(type(values[name]) is (get_origin(each.type) or each.type) for name, each in legal.items())
        json.dumps(values)


@given(damaged(GRID) | written([*YAML, *GRID.decode().splitlines(keepends=True)]))
@fuzz
def test_grids(place, schema, content):
    runs = try_case("grids", lambda: read_grid(put(place / "grid.yaml", content), schema))
    if runs is not None:
        names = [run.values["name"] for run in runs]
        assert len(set(names)) == len(names) > 0


@given(written(YAML) | damaged(WORDS))
@fuzz
def test_prompts_files(place, content):
    path = str(put(place / "words.yaml", content))
    classes = ["tumor", "stroma", "lymphocyte", "necrosis"]
    words = try_case("prompts files", lambda: load_vocabulary("folder", classes, path))
    if words is not None:
        assert all(isinstance(name, str) and name for name in words.names)
        assert all(template.count("{}") == 1 for template in words.templates)
        assert words.negative_prompt.strip()


# Tables

CSV = [
    "file", "group", "split", "mask", "tumor", "a.png", "b.png", "m.png", ",", ";", "\t", "\n", "\r\n", "\r", '"', "0",
    "1", "yes", "TRUE", "train", "val", "sep=;\n", "\ufeff", "\0", "../x.png", "/etc/passwd", " ",
]  # fmt: skip
TABLE = b"file,group,split,mask,tumor,stroma\na.png,p1,train,m.png,1,0\nb.png,p2,val,m.png,0,1\n"


@pytest.fixture(scope="module")
def table_folder(place):
    (place / "table").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 40)).save(place / "table" / name)
    Image.new("L", (40, 40)).save(place / "table/m.png")
    return place / "table"


@given(written(CSV) | damaged(TABLE))
@fuzz
def test_tables_of_labels(table_folder, content):
    put(table_folder / "labels.csv", content)
    dataset = try_case("labels.csv", lambda: folder.load(table_folder))
    if dataset is not None:
        assert dataset.labels.shape == (len(dataset.files), len(dataset.classes))
        named = {file.lower() for file in dataset.files}  # a name is found whatever its case
        assert named <= {"a.png", "b.png", "m.png", "./a.png", "./b.png"}


NAMES = ["TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500+0[1101].png", "1031280-2300-27920-[1 0 0 1].png"]


@given(
    st.text(max_size=60)
    | st.sampled_from(NAMES).flatmap(lambda name: damaged(name.encode())).map(lambda name: name.decode("latin-1"))
)
@fuzz
def test_names_that_hold_labels(name):
    for parse in (f for release in (histoseg.BCSS, histoseg.LUAD) for f in (release.labels_of, release.patient_of)):
        try_case("HistoSeg names", lambda parse=parse: parse(name))


# Images


def image_files():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    colour, grey = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 1
    kinds = [(colour, form, {}) for form in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "JPEG2000")]
    kinds += [(colour, "TIFF", {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    kinds += [(colour.convert(mode), "PNG", {}) for mode in ("RGBA", "LA", "P", "1", "L")]
    kinds += [(colour.convert("CMYK"), "JPEG", {"exif": exif}), (grey, "PNG", {"exif": exif})]
    kinds += [(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), form, {}) for form in ("PNG", "TIFF")]
    kinds += [
        (colour, form, {"save_all": True, "append_images": [colour.rotate(180)]})
        for form in ("GIF", "TIFF", "PNG", "WEBP")
    ]
    for image, form, options in kinds:
        yield _saved(image, form, options)


def _saved(image, form, options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


IMAGES = list(image_files())


@given(st.sampled_from(IMAGES).flatmap(damaged))
@fuzz
def test_images(place, content):
    rgb = try_case("images", lambda: read_rgb(put(place / "a.img", content), "a"))
    if rgb is not None:
        assert rgb.dtype == np.uint8
        assert rgb.ndim == 3
        assert rgb.shape[2] == 3


MASKS = [_saved(Image.new(mode, (48, 40), 1), form, {}) for mode in "LP1" for form in ("PNG", "TIFF", "BMP", "GIF")]


@given(st.sampled_from(MASKS).flatmap(damaged))
@fuzz
def test_masks(place, content):
    class_map = try_case("masks", lambda: read_class_map(put(place / "m.img", content), np.arange(256, dtype=np.uint8)))
    nucleus = try_case("nuclei", lambda: read_nonzero(content, "a"))
    for found in (class_map, nucleus):
        assert found is None or found.ndim == 2


# Arrays


def array_file(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


ARRAYS = {
    "images": array_file(np.full((2, 4, 4, 3), 200.0)),
    "masks": array_file(np.ones((2, 4, 4, 6), dtype=np.int32)),
    "types": array_file(np.array(["Breast", "Colon"])),
}
NUMPY = [
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 4, 4, 3), }", "(", ")", "'", "<U9", "|O", "-1", "9" * 20,
    "True", "lambda: 0", "__import__('os')", "\n", ", ",
]  # fmt: skip


def header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HEADERS = st.tuples(
    st.sampled_from(["<f8", "<U9", "|O", ">i2", "<M8[s]", "|V4", "<f16", "f", "", "(3,)f8"]) | st.text(max_size=5),
    st.booleans(),
    st.lists(st.integers() | st.sampled_from([2, 3, 4, 6, 2**31, 2**62, True]), max_size=5).map(tuple),
).map(lambda d: header(repr({"descr": d[0], "fortran_order": d[1], "shape": d[2]}).encode()[:60_000]) + bytes(800))


@given(st.sampled_from(sorted(ARRAYS)), st.data())
@fuzz
def test_arrays(place, name, data):
    content = data.draw(damaged(ARRAYS[name]) | HEADERS | written(NUMPY).map(lambda text: header(text[:60_000])))
    for other, good in ARRAYS.items():
        put(place / f"arrays/fold1/{other}.npy", content if other == name else good)
    root = place / "arrays"
    dataset = try_case("PanNuke arrays", lambda: load_pannuke(root, cache_dir=place / "cache"))
    if dataset is not None:
        for index in range(min(len(dataset), 3)):
            try_case("PanNuke arrays, a patch", lambda index=index: (dataset.image(index), dataset.mask(index)))


@given(damaged(f"{','.join(CLASSES)}\n1,0,0,0,0\n0,2,0,0,0\n".encode()))
@fuzz
def test_tables_of_counts(place, content):
    masks = put(place / "counted/masks.npy", ARRAYS["masks"])
    try_case("PanNuke counts", lambda: cached_counts(masks, place / "kept"))
    put(place / f"kept/pannuke/counts-{file_key(masks)}.csv", content)
    counts = try_case("PanNuke counts", lambda: cached_counts(masks, place / "kept"))
    assert counts.shape == (2, len(CLASSES))
    assert (counts >= 0).all()


def parquet_file():
    picture = {"bytes": IMAGES[0], "path": "a.png"}
    nucleus = {"bytes": _saved(Image.new("L", (48, 40), 1), "PNG", {}), "path": None}
    buffer = io.BytesIO()
    columns = {"image": [picture] * 3, "instances": [[nucleus], [], [nucleus]], "categories": [[0], [], [4]]}
    pq.write_table(pa.table(columns | {"tissue": [0, 5, 18]}), buffer, row_group_size=2)
    return buffer.getvalue()


PARQUET = parquet_file()
FOOTER = len(PARQUET) - 8 - int.from_bytes(PARQUET[-8:-4], "little")  # what says where everything lies


@given(damaged(PARQUET) | damaged(PARQUET[FOOTER:]).map(lambda footer: PARQUET[:FOOTER] + footer))
@fuzz
def test_parquet_files(place, content):
    path = put(place / "parquet/fold1.parquet", content)
    found = try_case("PanNuke parquet", lambda: read_fold([path]))
    if found is not None:
        row_groups, lengths, counts, _ = found
        source = ParquetSource(row_groups, np.cumsum([0, *lengths]))
        for index in range(min(len(counts), 3)):
            try_case("PanNuke parquet, a patch", lambda index=index: (source.image(index), source.mask(index)))


# Heads

ABOUT = {"options": {"heads": 2, "layers": 1, "hidden": 6, "dropout": 0.1, "pre_norm": True}, "classes": CLASS_NAMES}
STATE = {name: value.contiguous() for name, value in CMM(torch.randn(2, 8), heads=2, hidden=6).state_dict().items()}


def head_file(about=ABOUT, backbone="vit"):
    texts = {key: json.dumps(value) for key, value in about.items()} if isinstance(about, dict) else {}
    return save(STATE, texts | {"backbone": backbone})


def with_header(content, change):
    """Replace the JSON header of a safetensors file and say its new length."""
    length = int.from_bytes(content[:8], "little")
    text = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


HEAD = head_file()
HEAD_HEADER = json.loads(HEAD[8 : 8 + int.from_bytes(HEAD[:8], "little")])


@given(
    damaged(HEAD)
    | changed(ABOUT).map(head_file)
    | changed(HEAD_HEADER).map(lambda header: with_header(HEAD, lambda _: header))
)
@fuzz
def test_heads(place, content):
    path = put(place / "head.safetensors", content)
    head = try_case("heads", lambda: load_cmm(path, CLASS_NAMES, "vit"))
    if head is not None:
        assert head(torch.zeros(1, 3, 8))[0].shape == (1, 2)


def checkpoint_file(about):
    moments = {f"optimizer.0.{name}": torch.zeros(24, 8) for name in ("exp_avg", "exp_avg_sq")}
    state = {f"head.{name}": value for name, value in STATE.items()} | moments
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    return save(state, texts)


SAID = {"identity": "mine", "history": [{"epoch": 1, "loss": 0.5}], "scaler": {}}
CHECKPOINT = checkpoint_file(SAID)


@given(damaged(CHECKPOINT) | changed(SAID).filter(lambda said: isinstance(said, dict)).map(checkpoint_file))
@fuzz
def test_checkpoints(place, content):
    head = CMM(torch.zeros(2, 8), heads=2, hidden=6)
    optimizer, scaler = torch.optim.AdamW(head.parameters()), torch.amp.GradScaler("cpu", enabled=False)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    path = put(place / "state", content)
    history = try_case("checkpoints", lambda: load_checkpoint(path, "mine", head, optimizer, scaler))
    assert isinstance(history, list)
    if not history:
        assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


# What runs leave behind

SCORES = {"mAcc": 0.8, "mAcc_ci": [0.7, 0.9], "mAP": 0.5, "mAP_ci": [0.4, 0.6]}
METRICS = {
    "name": "demo", "dataset": "synthetic", "backbone": "lite0-minilm", "pretrained": "", "split": "grouped", "seed": 0,
    "classes": CLASS_NAMES, "n_train": 8, "n_val": 2, "prevalence": {"tumor": 0.5, "stroma": 0.5},
    "methods": {"linear_probe": SCORES, "histoclip_patch": SCORES, "majority": SCORES},
}  # fmt: skip


@given(changed(METRICS).map(lambda metrics: json.dumps(metrics).encode()) | damaged(json.dumps(METRICS).encode()))
@fuzz
def test_metrics(place, content):
    path = put(place / "run/metrics.json", content)
    summary = try_case("metrics.json", lambda: read_metrics(path))
    if summary is not None:
        assert isinstance(summary.name, str)
        assert all(0 <= score.value <= 1 for score in summary.scores.values())


PYTHON = [
    "name", ": str", ": int", " = ", "'demo'", "3", "[0, 1]", "# meaning", "\n", "    ", "(", ")", '"""', "f'{", "}'",
    "lambda", "if True:\n", "\\", "\0", "1_000", "import os", ";",
]  # fmt: skip


@given(written(PYTHON).map(lambda content: content.decode(errors="replace")))
@fuzz
def test_parameters_cells(source):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own, of odd source
        parameters = try_case("parameters cells", lambda: read_parameters(source))
    assert all(isinstance(parameter.name, str) for parameter in parameters)


def test_the_files_that_are_damaged_here_are_sound(place, schema, table_folder):
    assert read_params(put(place / "a.yaml", DEMO), schema)["name"] == "my_data"
    words = str(put(place / "words.yaml", WORDS))
    assert load_vocabulary("folder", ["tumor", "stroma", "lymphocyte", "necrosis"], words).names[0] == "tumor"
    put(table_folder / "labels.csv", TABLE)
    assert len(folder.load(table_folder)) == 2
    read = sum(not _is_refused(content) for content in IMAGES)
    assert read == len(IMAGES) - 4  # those with two frames
    for name, content in ARRAYS.items():
        assert len(open_array(put(place / f"sound/fold1/{name}.npy", content))) == 2
    assert load_pannuke(place / "sound", cache_dir=place / "cache").labels.sum() == 10
    assert len(read_fold([put(place / "fold1.parquet", PARQUET)])[2]) == 3
    assert load_cmm(put(place / "head", HEAD), CLASS_NAMES, "vit").options["heads"] == 2
    assert read_metrics(put(place / "run/metrics.json", json.dumps(METRICS).encode())).name == "demo"


def _is_refused(content):
    try:
        read_rgb(content, "a")
    except HistoCLIPError:
        return True
    return False
