"""The drawn videos: captions, questions and answers must agree with the pixels."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.dataset.frames import every, read_frames
from tools.draw_archive.__main__ import main
from tools.draw_archive.drawing import FONT, draw, load_font
from tools.draw_archive.motion import REVERSED, pair
from tools.draw_archive.questions import Row
from tools.draw_archive.video_words import SAYS, ask, describe
from tools.draw_archive.videos import PIXELS, RATE, render

SHIPPED = Path(__file__).parents[1] / "videos"
needs_font = pytest.mark.skipif(not Path(FONT).is_file(), reason="apt-get install fonts-noto-color-emoji")
# What a caption says -> the motion, written down again and not taken from the code.
WORDS = {
    "left": ("moves left", "goes to the left", "moves to the left"),
    "right": ("moves right", "goes to the right", "moves to the right"),
    "up": ("moves up", "goes up", "rises"),
    "down": ("moves down", "goes down", "sinks"),
    "in": ("comes in", "appears", "comes into view"),
    "out": ("goes out", "leaves", "goes out of view"),
    "grow": ("gets bigger", "grows", "becomes larger"),
    "shrink": ("gets smaller", "shrinks", "becomes smaller"),
    "turn": ("turns around", "turns to the other side"),
    "stay": ("stays where it is", "does not move", "stands still"),
}


def rows(name):
    with (SHIPPED / name).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def frames_of(path):
    """(F, H, W, 3) int64."""
    return np.stack([np.asarray(image, int) for _, image in read_frames(path, every(1 / RATE))])


def seen_motion(frames, background):
    """The motion of the one thing that differs from the background (H, W, 3), from its pixels alone."""
    masks = np.abs(frames - background).max(3) > 24  # (F, H, W)
    areas = masks.sum((1, 2))
    first, last = areas[0], areas[-1]
    if min(first, last) < 9:
        return "in" if first < last else "out"
    if max(first, last) > 3 * min(first, last):
        return "grow" if first < last else "shrink"
    if areas.min() < 0.5 * areas.max():
        return "turn"  # it is narrow halfway
    across, down = (masks[-1].nonzero()[axis].mean() - masks[0].nonzero()[axis].mean() for axis in (1, 0))
    if max(abs(across), abs(down)) < 5:
        return "stay"
    if abs(across) > abs(down):
        return "right" if across > 0 else "left"
    return "down" if down > 0 else "up"


@needs_font
def test_motion_is_what_the_pixels_show():
    font = load_font()
    found = set()
    for clip in [clip for index in (*range(5), *range(12, 20)) for clip in pair(index, seed=3)]:
        background = np.asarray(draw(clip.scene, font).resize((PIXELS, PIXELS)), int)
        for mover in clip.movers:
            alone = render(replace(clip, movers=(mover,)), font)
            motion = seen_motion(np.stack([np.asarray(image, int) for image in alone]), background)
            assert motion == mover.motion, (clip.name, mover)
            found.add(motion)
    assert found == REVERSED.keys()


def test_words_of_captions_belong_to_the_motion():
    assert {motion: tuple(says.split("|")) for motion, (says, _, _) in SAYS.items()} == WORDS
    for clip in [clip for index in range(60) for clip in pair(index)]:
        motions = {mover.motion for mover in clip.movers}
        texts = describe(clip)
        assert len({text.lower().strip(".") for text in texts}) == 5
        for text in texts:
            said = {motion for motion, words in WORDS.items() if any(word in text for word in words)}
            assert said and said <= motions, (clip, text)


def test_shipped_captions_are_true_of_the_shipped_pixels():
    said = dict(rows("captions.csv"))
    checked = 0
    for name, text in said.items():
        frames = frames_of(SHIPPED / name)
        motion = seen_motion(frames, np.median(frames, axis=0))
        if motion in ("left", "right", "up", "down"):  # what stays in its place is part of the median
            assert any(word in text for word in WORDS[motion]), (name, motion, text)
            checked += 1
    assert checked == 4


def test_shipped_reverse_is_the_video_backwards():
    for index in range(5):
        forward, backward = (frames_of(SHIPPED / clip.name) for clip in pair(index))
        assert len(forward) == len(backward) == 24
        assert np.abs(forward - backward[::-1]).mean() < 3  # of 255; compression


def test_shipped_files_are_what_the_code_makes():
    clips = [clip for index in range(5) for clip in pair(index)]
    assert rows("captions.csv") == [[clip.name, text] for clip in clips for text in describe(clip)]
    assert [Row(*row) for row in rows("questions.csv")] == [row for clip in clips for row in ask(clip)]
    assert {path.stem for path in SHIPPED.glob("*.mp4")} == {Path(clip.name).stem for clip in clips}
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 200_000


def test_question_alone_does_not_tell_the_direction():
    opposite = {"way", "door", "size"}
    for index in range(100):
        first, second = pair(index)
        for one, other in zip(ask(first), ask(second)):
            assert one.type == other.type
            if one.type in opposite:
                assert one.question == other.question and one.answer != other.answer


def test_pair_depends_on_index_and_seed_alone():
    first, second = pair(7)
    assert pair(7) == (first, second) and describe(pair(7)[1]) == describe(second)
    assert pair(7, seed=1)[0].movers != first.movers
    assert [mover.reversed() for mover in second.movers] == list(first.movers)


def test_main_refuses_an_odd_number_of_videos(tmp_path, capsys):
    assert main(["--videos", "3", "--out", str(tmp_path / "videos")]) == 1
    assert "--videos is 3" in capsys.readouterr().err and not (tmp_path / "videos").exists()


@needs_font
def test_main_writes_the_shipped_files_again(tmp_path, capsys):
    assert main(["--videos", "2", "--out", str(tmp_path / "videos")]) == 0
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == [
        *("0-00000-reversed.mp4", "0-00000.mp4"),
        *("captions.csv", "questions.csv"),
    ]
    drawn = frames_of(tmp_path / "videos" / "0-00000.mp4")
    assert np.abs(drawn - frames_of(SHIPPED / "0-00000.mp4")).mean() < 3  # FFmpeg's version may differ
