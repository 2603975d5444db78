"""How many tiles a second LazySlide encodes with the timm model of the default encoder, for `slides.py --lazyslide`.

It runs in an environment of its own: `pip install lazyslide timm` and the torch of this project.

    lazyslide-env/bin/python benchmarks/lazyslide_tiles.py slide.tif --tiles 400 --json lazyslide.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

MODEL, TILE, MPP, BATCH = "tf_efficientnet_lite0", 224, 0.5, 32


def main() -> None:
    """Encode the first tiles of a slide once to warm up, then with each number of loader processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--tiles", type=int, default=400)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    import lazyslide
    import timm
    import torch
    from torchvision.transforms import v2
    from wsidata import open_wsi

    model = timm.create_model(MODEL, num_classes=0).eval()  # the weights do not matter for the time
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    wsi = open_wsi(arguments.slide)
    lazyslide.pp.tile_tissues(wsi, TILE, mpp=MPP, tissue_key=None, background_filter=False)
    wsi.shapes["tiles"] = wsi.shapes["tiles"].head(arguments.tiles)

    def encode(workers: int) -> float:
        start = time.perf_counter()
        lazyslide.tl.feature_extraction(
            wsi, model, transform=transform, batch_size=BATCH, num_workers=workers, pbar=False, device="cpu"
        )
        return len(wsi.shapes["tiles"]) / (time.perf_counter() - start)

    encode(0)
    rates = {f"{workers} loader processes": encode(workers) for workers in arguments.workers}
    print(json.dumps(rates))
    if arguments.json:
        arguments.json.write_text(json.dumps(rates), encoding="utf-8")


if __name__ == "__main__":
    main()
