"""features.encode_ahead: from anything that holds frames to the rows of towers."""

import pytest
import torch
import torch.nn.functional as F

from models.features import encode_ahead
from tests.conftest import Pixels, picture

CLIPS = [[picture(i)] for i in range(5)] + [[picture(i) for i in range(n)] for n in (3, 1, 7, 2)]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("workers", [1, 3, None])
def test_rows_of_clips_equal_the_naive_loop(batch_size, workers):
    towers = Pixels(), Pixels("others")
    found = list(encode_ahead(range(len(CLIPS)), CLIPS.__getitem__, towers, batch_size, workers))
    assert [item for item, _, _ in found] == list(range(len(CLIPS)))
    for (_, rows, error), clip in zip(found, CLIPS, strict=True):
        assert error is None and len(rows) == 2
        for row, tower in zip(rows, towers):
            mean = sum(tower.encode(tower.preprocess(frame)[None])[0] for frame in clip) / len(clip)
            torch.testing.assert_close(row, mean / mean.norm())


def test_towers_see_about_a_batch_of_frames_at_a_time():
    sizes = []

    class Watched(Pixels):
        def encode(self, images):
            sizes.append(len(images))
            return super().encode(images)

    list(encode_ahead([[picture(1)] * 3] * 20, list, (Watched(),), batch_size=4))
    assert sum(sizes) == 60 and max(sizes) < 4 + 3


def test_errors_belong_to_their_items():
    def read(item):
        if isinstance(item, Exception):
            raise item
        return item

    bad, gone, good = ValueError("bad"), FileNotFoundError("gone"), [picture(1)]
    found = list(encode_ahead([bad, good, [], gone, good], read, (Pixels(),), batch_size=2))
    assert [rows is not None for _, rows, _ in found] == [False, True, False, False, True]
    assert found[0][2] is bad and found[3][2] is gone and isinstance(found[2][2], ValueError)
    assert list(encode_ahead([bad] * 3, read, (Pixels(),), batch_size=2)) == [(bad, None, bad)] * 3
    assert list(encode_ahead([], read, (Pixels(),))) == []
    with pytest.raises(ZeroDivisionError):  # a bug, and no damaged file
        list(encode_ahead([ZeroDivisionError()], read, (Pixels(),)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 3.0])
def test_tower_whose_rows_have_no_norm_1_is_refused(value):
    class Broken(Pixels):
        def encode(self, images):
            return F.one_hot(torch.arange(len(images)), self.dim) * torch.tensor([[value]])

    with pytest.raises(ValueError, match="pixels"):
        list(encode_ahead(CLIPS, list, (Broken(),)))


def test_decoding_stays_two_batches_ahead():
    started = []

    def read(item):
        started.append(item)
        return [picture(item)]

    for item, _, _ in encode_ahead(range(60), read, (Pixels(),), batch_size=4, workers=2):
        assert len(started) <= item + 4 + 2 * 4 + 1
    assert sorted(started) == list(range(60))
