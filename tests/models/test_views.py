"""models/dataset/views.py, and the features of views."""

import pytest
import torch
from PIL import Image

from models.dataset import random_view
from models.features.cache import opened, row_key
from models.vision.pixels import pixels
from tests.conftest import Letters, encode


def corners(size):
    """An image whose red is its column and whose green its row, 0 to 255."""
    across, down = Image.linear_gradient("L").rotate(90), Image.linear_gradient("L")
    return Image.merge("RGB", (across, down, Image.new("L", (256, 256)))).resize(size)


@pytest.mark.parametrize("size", [(256, 256), (500, 375), (90, 300), (1, 1), (2000, 3)])
def test_view_is_at_least_half_of_the_image_where_its_shape_allows(size):
    shapes = [random_view(Image.new("RGB", size), f"a/{i}").size for i in range(40)]
    assert all(1 <= w <= size[0] and 1 <= h <= size[1] for w, h in shapes)
    if max(size) < 2 * min(size) and min(size) > 100:
        assert all(w * h >= 0.49 * size[0] * size[1] for w, h in shapes)
        assert all(0.74 < w / h < 1.35 for w, h in shapes)
        assert len(set(shapes)) > 30


def test_view_is_the_same_for_the_same_seed_and_mirrored_half_the_time():
    image = corners((256, 256))
    views = [random_view(image, f"seed {i}") for i in range(200)]
    again = [random_view(image, f"seed {i}") for i in range(200)]
    assert [a.tobytes() for a in views] == [b.tobytes() for b in again]
    mirrored = sum(view.getpixel((0, 0))[0] > view.getpixel((view.width - 1, 0))[0] for view in views)
    assert 70 <= mirrored <= 130
    assert all(view.getpixel((0, 0))[1] < view.getpixel((0, view.height - 1))[1] for view in views)


def test_views_are_rows_of_the_squashed_crop_and_cached_under_their_number(archive, tmp_path, lite0):
    cache = tmp_path / "features.sqlite"
    features = encode(archive, lite0, Letters(), cache, views=2)
    assert features.views.shape == (8, 2, lite0.dim) and features.views.dtype == torch.float16
    spec = lite0.pixel_spec
    with opened(cache) as store:
        digest = store.file_digests([archive.images / archive.names[3]], ["?"])[0]
        assert row_key(lite0, digest, 2) in store and row_key(lite0, digest, 3) not in store
    with Image.open(archive.images / archive.names[3]) as image:
        view = random_view(image.convert("RGB"), f"{digest.hex()}/2")
    seen = pixels(spec["size"], spec["mean"], spec["std"], "squash", view)
    row = lite0.encode(seen[None])[0]
    torch.testing.assert_close(features.views[3, 1].float(), row, rtol=0, atol=2e-3)
    assert not torch.allclose(features.views[3, 0], features.views[3, 1], atol=1e-2)
    kept = features.of(torch.arange(8) % 2 == 1)
    assert torch.equal(kept.views, features.views[1::2])
