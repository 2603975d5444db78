"""The eight views of a patch are its flips and rotations, and each is turned back to where it came from."""

import pytest
import torch

from histoclip_lib.features.reader import undo_view, view_of

VIEWS = range(8)


def test_the_eight_views_are_distinct_and_the_first_is_the_image():
    image = torch.arange(9).reshape(3, 3)
    seen = {tuple(view_of(image, view).flatten().tolist()) for view in VIEWS}
    assert len(seen) == 8
    assert torch.equal(view_of(image, 0), image)


def test_views_are_flips_and_rotations():
    image = torch.arange(9).reshape(3, 3)
    seen = {tuple(view_of(image, view).flatten().tolist()) for view in VIEWS}
    transposed = [image, image.T]
    flipped = [one.flip(dims) for one in transposed for dims in ((), (0,), (1,), (0, 1))]
    assert seen == {tuple(one.flatten().tolist()) for one in flipped}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(4, 4), (2, 5, 5), (2, 3, 6, 6)])
def test_undo_view_inverts_view_of(view, shape):
    images = torch.rand(shape)
    assert torch.equal(undo_view(view_of(images, view), view), images)


def test_what_is_computed_on_a_view_lies_right_after_undo_view():
    """Token grids turn with their image: the mean over 2x2 cells stands for an encoder."""
    image = torch.rand(1, 8, 8)
    for view in VIEWS:
        on_view = torch.nn.functional.avg_pool2d(view_of(image, view), 2)
        torch.testing.assert_close(undo_view(on_view, view), torch.nn.functional.avg_pool2d(image, 2))
