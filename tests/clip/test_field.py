"""The field of view: sizes that match an encoder's resolution, mirrored edges, and what the note says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoclip_lib.clip.field import field_note, match_field, matched_side, require_matchable
from histoclip_lib.clip.registry import EncoderEntry
from histoclip_lib.common.errors import HistoCLIPError

TRAINED = EncoderEntry("uni", "UNI", "", None, mpp=(0.5,), patch_px=224)


@pytest.mark.parametrize(
    ("side", "mpp", "trained", "expected"),
    [
        (256, 0.25, (0.5,), 128),  # 64 µm at 0.5 µm per pixel
        (224, 0.5, (0.5,), 224),
        (224, 1.0, (0.5,), 224),  # shows more than the encoder's field: left whole
        (256, 0.25, (0.25, 1.0), 224),  # nearest to the 0.286 that the encoder would see, and it does not fit whole
    ],
)
def test_a_patch_is_resized_to_the_encoder_s_resolution_or_left_whole(side, mpp, trained, expected):
    assert matched_side(side, mpp, trained, 224) == expected


def test_a_matched_patch_lies_in_the_middle_of_its_own_mirror_image():
    image = np.random.default_rng(0).integers(0, 256, (40, 32, 3)).astype(np.uint8)
    matched = np.asarray(match_field(image, 0.5, (0.5,), 64))
    assert matched.shape == (64, 64, 3)
    assert (matched[16:48, 16:48] == image[4:36]).all()  # the centre square, not resampled here
    assert (matched[:16] == matched[16:32][::-1]).all()
    assert (matched[:, 48:] == matched[:, 32:48][:, ::-1]).all()


@given(st.integers(1, 300), st.floats(0.05, 20), st.floats(0.05, 20), st.integers(1, 96))
def test_any_patch_and_resolution_give_an_image_of_the_encoder_s_size(side, mpp, trained, size):
    assert match_field(np.zeros((side, side, 3), np.uint8), mpp, (trained,), size).size == (size, size)


@pytest.mark.parametrize(
    ("entry", "mpp", "match", "says"),
    [
        (TRAINED, 0.25, False, "at 0.5 µm per pixel. These patches have 256 pixels at 0.25 µm, a field of 64 µm"),
        (TRAINED, 0.25, False, "tissue appears larger than in its training, by a factor of 1.8. ** match_mpp: true"),
        (TRAINED, 0.25, True, "resampled to 128 pixels and mirrored at their edges to 224"),
        (TRAINED, 0.45, False, "which is about the same"),
        (TRAINED, 1.0, True, "appears smaller than in its training, by a factor of 2.3. Only a part of a patch"),
        (TRAINED, None, False, "that of these patches is not known"),
        (EncoderEntry("plip", "", "", None), 0.25, False, "plip was trained at an unknown or mixed resolution"),
    ],
)
def test_a_note_compares_patches_and_training(entry, mpp, match, says):
    known = None if mpp is None else np.full(3, mpp)
    text = field_note(entry, entry.name, 224, 256, known, match)
    assert says in " ".join(text.replace("`", " ").split())


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(HistoCLIPError, match="the resolution that plip was trained at is not known"):
        require_matchable("plip", (), np.ones(2))
    for unknown in (None, np.array([0.5, np.nan])):
        with pytest.raises(HistoCLIPError, match="of the patches are not known"):
            require_matchable("uni", (0.5,), unknown)
