"""Views of pictures against a picture moved by hand, and what a view depends on."""

import numpy as np
import torch

from safeclip.config import Views
from safeclip.encoder.views import choose_views, take_views

ALL, MOST = Views(share=1.0), Views(share=0.75)


def pictures(n: int, side: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8))


def test_a_picture_that_stays_as_it_is_stays_so_bit_for_bit_beside_one_that_moves():
    given = pictures(2)
    seen = take_views(given, np.array([[1, 0, 0], [1.1, 0, 0]]))
    assert torch.equal(seen[0], given[0])
    assert not torch.equal(seen[1], given[1])
    assert torch.equal(given, pictures(2)), "the given pictures were changed"


def test_a_shift_by_whole_pixels_moves_the_picture_and_repeats_its_edge():
    given = pictures(1)
    seen = take_views(given, np.array([[1, 2 / 16, -3 / 16]]))
    assert torch.equal(seen[0, :, :13, 2:], given[0, :, 3:, :14])
    assert torch.equal(seen[0, :, :13, 0], given[0, :, 3:, 0])
    assert torch.equal(seen[0, :, 13:, 2:], given[0, :, 15:, :14].expand(-1, 3, -1))


def test_an_object_twice_as_large_covers_four_times_as_much():
    given = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    given[:, :, 12:20, 12:20] = 200
    seen = take_views(given, np.array([[2.0, 0, 0]]))
    assert abs((seen > 100).float().mean() / (given > 100).float().mean() - 4) < 0.01
    moved = take_views(given, np.array([[2.0, 0.25, 0]]))
    assert (moved[0, 0] > 100).float().mean(0).argmax() >= 16, "a picture is enlarged first, then moved"


def test_views_stay_within_their_bounds_and_leave_some_pictures_alone():
    rows = np.arange(2000)
    chosen = choose_views(rows, MOST, 3)
    moved = (chosen != (1, 0, 0)).any(1)
    assert abs(moved.mean() - 0.75) < 0.05
    assert np.abs(chosen[:, 0] - 1).max() <= MOST.zoom
    assert np.abs(chosen[:, 1:]).max() <= MOST.shift
    assert np.abs(chosen[moved].mean(0) - (1, 0, 0)).max() < 0.02


def test_a_view_depends_on_the_row_and_the_words_and_on_no_other_row():
    together = choose_views(np.array([5, 9]), ALL, 0, 7)
    assert np.array_equal(choose_views(np.array([9]), ALL, 0, 7)[0], together[1])
    assert not np.array_equal(choose_views(np.array([9]), ALL, 0, 8)[0], together[1])
    assert not np.array_equal(together[0], together[1])
