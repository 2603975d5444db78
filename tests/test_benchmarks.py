"""The benchmarks run and count rightly; their times belong to no test."""

import runpy
import sys
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name != "common.py")


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_each_script_says_how_to_use_it(script, benchmarks, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert f"python benchmarks/{script.name}" in printed
    assert "--json" in printed
    assert script.name in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_head_compares_two_heads_that_start_alike(benchmarks, tmp_path):
    import head

    row = head.compare((40, 4, 16, 2, 16, 1), 1, torch.device("cpu"), tmp_path)
    assert min(row.values()) > 0
    assert row["torch / ours"] == pytest.approx(row["torch, s"] / row["ours, s"])

    torch.manual_seed(0)
    ours = head.CMM(torch.nn.functional.normalize(torch.randn(2, 16), dim=-1), 8, 1, head.HIDDEN, head.DROPOUT).eval()
    tokens = torch.randn(3, 4, 16)
    torch.testing.assert_close(head.TorchHead(ours).eval()(tokens), ours(tokens)[0])


def test_products_of_a_step_are_those_that_torch_counts(benchmarks):
    import head
    from torch.utils.flop_counter import FlopCounterMode

    batch, length, width, n_classes = 64, 49, 64, 4
    ours = head.CMM(torch.randn(n_classes, width), head.HEADS, 1, head.HIDDEN, 0.0)
    tokens = torch.randn(batch, length, width)
    with FlopCounterMode(display=False) as counter:
        ours(tokens)[0].sum().backward()
    once = 2 * 3 * n_classes * 6 * width**2  # of the queries, the same for all images: self-attention and folding
    counted = head.flops(head.products(batch, length, width, n_classes))
    assert counted <= counter.get_total_flops() <= counted + once


def test_many_patches_repeat_and_count_as_different(benchmarks):
    from common import many_patches

    patches = many_patches(81, period=40)
    assert len(patches) == len(set(patches.files)) == 81
    assert np.array_equal(patches.image(0), patches.image(40))
    assert not np.array_equal(patches.image(0), patches.image(1))
    assert len({patches.source.digest(row) for row in (0, 40, 80)}) == 3


def test_peak_memory_sees_what_a_process_and_its_worker_held_for_a_moment(benchmarks, monkeypatch):
    import common

    class Process:
        held, looked_at = 30, Event()

        def memory_info(self):
            self.looked_at.set()
            return SimpleNamespace(rss=self.held * 2**20, shared=10 * 2**20)

        def children(self, recursive):
            return [Process()]

    monkeypatch.setattr(common.psutil, "Process", Process)
    with common.PeakMemory() as found:
        for held in (30, 350, 30):
            Process.held = held
            for _ in range(4):  # looks at both, and before that the end of an earlier one
                Process.looked_at.clear()
                assert Process.looked_at.wait(60)
    assert found.peak == 2 * 340
