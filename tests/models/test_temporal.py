"""models/temporal.py: what a predictor reads of the frames of a video."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.predictor import Predictor, QueryPredictor
from models.temporal import over_time

SIZES = dict(vision_dim=10, text_dim=6, hidden_dim=8)


def frames(videos=5, count=8):
    rows = torch.randn(videos, count, 10, generator=torch.Generator().manual_seed(count))
    return F.normalize(rows, dim=2)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_over_time_is_the_mean_and_the_frames_under_half_a_cosine(count):
    rows = frames(count=count)
    for video, found in zip(rows, over_time(rows)):
        weights = [math.cos(math.pi * (i + 0.5) / count) / count for i in range(count)]
        change = sum(weight * row for weight, row in zip(weights, video))
        mean = video.mean(0) / video.mean(0).norm()
        torch.testing.assert_close(found, torch.cat([mean, change]), atol=1e-6, rtol=0)


def test_change_of_frames_in_reverse_order_is_the_negative_exactly():
    rows = frames()
    assert torch.equal(over_time(rows.flip(1))[:, 10:], -over_time(rows)[:, 10:])
    torch.testing.assert_close(over_time(rows.flip(1))[:, :10], over_time(rows)[:, :10])


def test_image_is_one_frame_repeated():
    image = frames()[:, 0]
    repeated = over_time(image[:, None].expand(-1, 8, -1))
    assert not repeated[:, 10:].any()
    torch.testing.assert_close(over_time(image), repeated, atol=1e-6, rtol=0)


def test_reverse_order_changes_the_prediction_of_change_alone():
    torch.manual_seed(0)
    predictor, rows = Predictor(**SIZES, time="change"), frames()
    predictor.standardise(rows)
    assert ((predictor(rows) - predictor(rows.flip(1))).norm(dim=1) > 0.01).all()
    still = Predictor(**SIZES)
    torch.testing.assert_close(still(rows.mean(1)), still(rows.flip(1).mean(1)))


def test_prediction_does_not_depend_on_the_batch():
    predictor, rows = Predictor(**SIZES, time="change").eval(), frames(videos=9)
    one_by_one = torch.cat([predictor(row[None]) for row in rows])
    torch.testing.assert_close(predictor(rows), one_by_one, atol=1e-6, rtol=0)


def test_answers_read_the_change_too():
    torch.manual_seed(0)
    predictor = QueryPredictor(10, 6, 8, 0.0, 0.0, 1, 4, token_dim=7, known=5, time="change").eval()
    rows, places, question = frames(), torch.randn(5, 9, 4), torch.randn(5, 3, 7)
    predictor.standardise(rows, places, question)
    answers = predictor(rows, places, question)
    assert answers.shape == (5, 6) and not torch.allclose(answers, predictor(rows.flip(1), places, question))
