"""`histoclip encoders`: what is registered, and whether it can be had here."""

import pytest
from tiny_clip import save_local_dir, tiny_model

from histoclip_lib.clip.registry import ENCODERS, OPEN_CLIP


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_encoders_are_listed_with_kind_licence_and_whether_they_are_here(invoke, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    lines = {line.split()[0]: line for line in map(str.rstrip, invoke("encoders").stdout.splitlines())}
    assert " ".join(lines["lite0-minilm"].split()).endswith("no no yes Both towers are Apache 2.0.")
    assert "images and text" in lines["plip"]
    assert lines["pathgen-clip"].index("yes") < lines["pathgen-clip"].index("CC BY 2.0")


def test_names_of_encoders_stay_whole_where_there_is_little_room(invoke, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    printed = invoke("encoders").stdout
    assert {line.split(" ")[0] for line in printed.splitlines()} >= {name for name in ENCODERS if name != OPEN_CLIP}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["lite0-minilm"], 0, ["here        installed packages", "verdict     ready"]),
        (
            ["plip"],
            1,
            ["here        no", "missing     config.json, model.safetensors or pytorch_model.bin", "HF_HUB_OFFLINE"],
        ),
        (["pathgen-clip"], 1, ["No hub has them. Set `pretrained` to the file"]),
        (["plip", "--pretrained", "no/folder"], 1, ["no/folder (`pretrained`) lacks them"]),
        (["ViT-L-41"], 1, ["'ViT-L-41' is not known"]),
        (["local-dir:no/folder"], 1, ["no/folder holds no weights"]),
        (["ViT-L-14-quickgelu", "--pretrained", "openai"], 1, ["HF_HUB_OFFLINE is set"]),
    ],
)
def test_a_check_says_what_is_missing_and_why(invoke, arguments, code, says):
    result = invoke("encoders", "--check", *arguments)
    assert result.exit_code == code
    for text in says:
        assert text in result.stdout


def test_a_local_folder_is_ready(invoke, tmp_path):
    result = invoke("encoders", "--check", save_local_dir(tmp_path / "model", tiny_model()))
    assert result.exit_code == 0
    assert f"here        {tmp_path / 'model' / 'open_clip_model.safetensors'}" in result.stdout


def test_a_gate_that_the_hub_keeps_shut_is_told_apart_from_a_hub_out_of_reach(invoke, monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    def refuse(repository):
        raise error

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.auth_check", refuse)
    error = GatedRepoError.__new__(GatedRepoError)
    assert "has not. Accept them, then run `hf auth login`" in invoke("encoders", "--check", "plip").stdout
    error = ConnectionError("no route")
    assert "The hub cannot be reached (ConnectionError)" in invoke("encoders", "--check", "plip").stdout
    monkeypatch.setattr("huggingface_hub.auth_check", lambda repository: None)
    result = invoke("encoders", "--check", "plip")
    assert (result.exit_code, "a run fetches it from the hub" in result.stdout) == (0, True)
