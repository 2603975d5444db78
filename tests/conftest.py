"""Fixtures that several test modules share."""

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings
from PIL import Image

sys.modules.setdefault("rfc3987_syntax", None)  # as the command line does: importing nbformat takes seconds with it

settings.register_profile("histoclip", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("histoclip")

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
]


def pytest_collection_modifyitems(items):
    """Begin with the files that hold slow tests: side by side with the others they end sooner."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter):
    """Say how many cases the fuzz tests tried, also where other processes ran them."""
    tried = Counter()
    for report in terminalreporter.getreports(""):
        if report.when == "teardown":
            for name, outcome, number in (value for key, value in report.user_properties if key == "fuzz"):
                tried[name, outcome] += number
    if tried:
        names = sorted({name for name, _ in tried})
        lines = [f"{name}: {tried[name, 'read']} read, {tried[name, 'refused']} refused" for name in names]
        terminalreporter.write_line(f"fuzz: {sum(tried.values()):,} cases\n  " + "\n  ".join(lines))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("HISTOCLIP_SHARED") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder}; set HISTOCLIP_SHARED")
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """A cache folder for the exported image tower of the offline default, one for all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def lite0(exported):
    """The offline default backbone, built once: it is frozen."""
    from filelock import FileLock

    from histoclip_lib.clip.encoder import load_clip

    clip = load_clip(device="cpu")
    with FileLock(f"{exported}.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCLIP_CACHE", str(exported))
        clip.fast_tower  # noqa: B018  the first process exports it, which takes seconds
    return clip


@pytest.fixture(scope="session")
def new_cache(lite0, exported):
    """Return a function that makes a cache folder which holds the exported tower alone."""

    def make(folder):
        shutil.copytree(exported, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def saved_model(lite0, tmp_path_factory):
    """A saved model, and the patches, features and head that it was made from."""
    from histoclip_lib.data.registry import load_dataset
    from histoclip_lib.features.encode import encode_dataset
    from histoclip_lib.models.bundle import ModelConfig, describe_encoder, fit_ood, save_model
    from histoclip_lib.models.training import new_head

    folder = tmp_path_factory.mktemp("run") / "model"
    patches = load_dataset("synthetic", n_patches=12)
    features = encode_dataset(lite0, patches, views=2, cache=folder.parent, workers=0, progress=False)
    embeddings = lite0.encode_text(patches.classes).numpy()
    head = new_head(embeddings, {"heads": 4, "hidden": 32}, features.tokens, np.arange(12), seed=0).eval()
    reference, threshold = fit_ood(features.pooled.take(np.arange(12)), [], seed=0)
    config = ModelConfig(
        name="trial", classes=patches.classes, words=patches.classes, **describe_encoder(lite0), patch_px=224, mpp=0.5,
        views=2, temperature=2.0, thresholds=[0.4, 0.5, 0.6, 0.7], calibrated=True, ood_threshold=threshold,
        training={}, scores={},
    )  # fmt: skip
    save_model(folder, head, reference, config, "# Card")
    return folder, patches, features, head


@pytest.fixture(scope="session")
def chromium():
    if not CHROMIUM.exists():
        reason = f"no Chromium at {CHROMIUM}"
        if os.environ.get("HISTOCLIP_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a page; afterwards, only it and the pictures beside it were asked for, and the console is silent."""
    contexts, requests, complaints, dialogs = [], [], [], []

    def open_page(path, width=1440, height=900, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        page.wait_for_load_state("load")
        return page

    yield open_page
    for context in contexts:
        context.close()
    outside = [url for url in requests if not url.startswith(("file:", "data:"))]
    assert outside == []
    files = [url for url in requests if url.startswith("file:")]
    assert [url for url in files if not url.endswith(".html") and "_files/" not in url] == []
    assert complaints == []
    assert dialogs == []


@pytest.fixture
def accessible(visit):
    """Return a function that opens a page and holds it to axe-core: no finding above minor."""

    def check(path, **options):
        from axe_playwright_python.sync_playwright import Axe

        page = visit(path, bypass_csp=True, **options)  # axe is a script that the page's policy does not know
        found = [
            f"{path.name}: {violation['impact']} {violation['id']}: {node['html'][:200]}"
            for violation in Axe().run(page).response["violations"]
            for node in violation["nodes"]
            if violation["impact"] != "minor"
        ]
        assert found == []
        return page

    return check


@pytest.fixture
def write_folder():
    """Return a function that writes a data set in the folder format: noise images and a table of 0/1 columns."""

    def write(root, labels, size=48, **columns):
        root.mkdir(parents=True, exist_ok=True)
        n_patches = len(next(iter(labels.values())))
        files = [f"{index:03d}.png" for index in range(n_patches)]
        pixels = np.random.default_rng(0)
        for file in files:
            Image.fromarray(pixels.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(root / file)
        pd.DataFrame({"file": files, **labels, **columns}).to_csv(root / "labels.csv", index=False)
        return root

    return write


@pytest.fixture(autouse=True)
def no_figure_left_open():
    """Close what a test drew."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
