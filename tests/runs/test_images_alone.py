"""A run with an encoder of images alone: no zero-shot method, queries that are learned or mapped, and why."""

import numpy as np
import pytest
import tiny_clip
import torch
from open_clip.transform import PreprocessCfg
from torch import nn

from histoclip_lib import open_run
from histoclip_lib.clip.registry import ENCODERS, encoder
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.evaluation.methods import strategy_names

PARAMETERS = {
    "dataset": "folder", "split": "random", "seed": 0, "val_fraction": 0.25, "backbone": "images-alone",
    "pretrained": "", "text_encoder": "", "text_pretrained": "", "device": "cpu", "precision": "fp32",
    "compiled": False, "tokens": "all", "token_grid": 0, "match_mpp": False, "mpp": 0.0,
    "views": 1, "encode_batch_size": 16, "prompts_file": "", "prompts": "paper", "wordings": 1,
    "baseline_rule": "sigmoid", "epochs": 2, "warmup_epochs": 1, "learning_rate": 1e-3, "weight_decay": 1.0,
    "batch_size": 16, "heads": 2, "layers": 1, "hidden": 16, "dropout": 0.0, "token_dropout": 0.5, "mixup": 0.0,
    "studies": False, "seeds": [0], "draws": 1, "resamples": 20, "examples": 2,
}  # fmt: skip


@pytest.fixture
def prepared(tmp_path, monkeypatch, write_folder):
    """Register a small encoder of images alone, and one of images and text; return the parameters of a run."""
    monkeypatch.setattr(ENCODERS, "_entries", dict(ENCODERS.load()))
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)  # models are fitted in this process
    images_alone = nn.Module()
    images_alone.visual = tiny_clip.tiny_model().visual

    @encoder("images-alone", title="Images alone", licence="CC0", is_clip=False, has_text=False)
    def load_images(backbone, pretrained):
        return images_alone, None, PreprocessCfg(size=32)

    @encoder("with-text", title="With text", licence="CC0")
    def load_both(backbone, pretrained):
        text = dict(tiny_clip.TEXT)
        model = tiny_clip.open_clip.CLIP(20, dict(tiny_clip.VIT), text)
        return model, tiny_clip.open_clip.get_tokenizer("ViT-B-32"), PreprocessCfg(size=32)

    labels = np.random.default_rng(0).integers(0, 2, (40, 3))
    folder = write_folder(tmp_path / "data", dict(zip(("tumor", "stroma", "necrosis"), labels.T, strict=True)))
    return PARAMETERS | {"data_dir": str(folder)}


@pytest.mark.parametrize(
    ("text_encoder", "said", "kind"),
    [("", "vectors that are trained with the head", "learned"), ("with-text", "class embeddings of", "mapped")],
)
def test_a_run_ends_with_results_and_says_what_is_absent(prepared, tmp_path, text_encoder, said, kind):
    run = open_run("alone", tmp_path / "reports", given=prepared | {"text_encoder": text_encoder})
    run.describe_data()
    chapter = run.score_zero_shot()
    assert said in chapter.finding().data
    assert "Does not apply" in chapter.table().data
    training = run.train_heads()
    training.fit_studies()
    assert said in training.features_note().data
    results = run.evaluate()
    assert not set(strategy_names()) & results.methods.keys()
    assert {"linear_probe", "histoclip_patch", "histoclip_text_free"} <= results.methods.keys()
    assert "zero-shot methods are absent" in results.interval_note().data
    for name in ("finding", "table", "differences", "all_pairs", "precision_recall", "save_model", "forest_plot"):
        assert getattr(results, name)() is not None
    head = run.head("patch")
    assert head.options["queries"] == kind
    started = torch.from_numpy(run.class_matrix)
    if kind == "learned":
        assert not torch.equal(head.class_embeddings, started)  # trained
    else:
        assert torch.equal(head.class_embeddings, started)
        assert head.map.weight.shape == (12, 20)
    attention = run.map_attention()
    assert "similarity" not in attention.compared
    assert attention.finding() is not None


def test_a_text_encoder_that_is_not_needed_or_has_no_text_is_refused(prepared, tmp_path):
    run = open_run(
        "refused", tmp_path / "reports", given=prepared | {"backbone": "with-text", "text_encoder": "with-text"}
    )
    with pytest.raises(HistoCLIPError, match=r"text_encoder: 'with-text' is not needed: with-text has a text tower"):
        run.text_encoder  # noqa: B018
    run = open_run("refused", tmp_path / "reports", given=prepared | {"text_encoder": "images-alone"})
    with pytest.raises(HistoCLIPError, match="text_encoder: 'images-alone' has no text tower"):
        run.text_encoder  # noqa: B018
    with pytest.raises(HistoCLIPError, match="images-alone encodes images alone"):
        run.encoder.encode_text(["tumor"])
