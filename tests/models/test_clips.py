"""Videos where images may stand: which frames are read, and their rows in the feature cache."""

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from models.dataset import clip_times, frame_at, is_video, open_clip, open_frames
from models.dataset.frames import read_frames
from models.features import encode_archive, encode_files
from tests.conftest import Archive, Letters, Pixels, encode, load, make_archive, picture, write_csv

# Of each codec and container: pixel format, and options that make its key frames hard to find.
KINDS = {
    "ffv1.mkv": ("ffv1", "bgr0", {}),
    "plain.mp4": ("libx264", "yuv420p", {}),
    "open groups.mp4": ("libx264", "yuv420p", {"x264-params": "open-gop=1:bframes=3"}),
    "refreshed.mp4": ("libx264", "yuv420p", {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}),
    "broadcast.ts": ("libx264", "yuv420p", {}),
    "vp8.webm": ("libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "8", "cpu-used": "5"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}),
}


def write(path, images, codec="ffv1", pixels="bgr0", options=None, rate=10):
    """Write a video of PIL images, lossless unless another codec is named; returns its path."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = images[0].size
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = 12
        for image in images:
            file.mux(stream.encode(av.VideoFrame.from_image(image)))
        file.mux(stream.encode())
    return path


def moving(count):
    """Frames that differ from each other."""
    noise = np.random.default_rng(0).integers(0, 255, (32 + count, 48 + count, 3), np.uint8)
    return [Image.fromarray(noise[i : i + 32, i : i + 48].copy()) for i in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_a_video_are_those_of_decoding_everything(tmp_path, kind, caplog):
    path = write(tmp_path / kind, moving(60), *KINDS[kind])
    for count in (1, 3, 8, 100):
        found = open_clip(path, count)
        times = [time for time, _ in found]
        expected = [image for _, image in read_frames(path, times)]
        assert len(times) == len(expected) == count and times == sorted(times)
        assert [image.tobytes() for _, image in found] == [image.tobytes() for image in expected]
    assert ("decoded from its beginning" in caplog.text) == (kind == "refreshed.mp4")  # and says so


def test_frames_of_a_video_are_the_middles_of_equal_parts(tmp_path):
    images = moving(40)
    found = open_clip(write(tmp_path / "a.mkv", images), 8)
    assert [time for time, _ in found] == pytest.approx([0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75])
    assert [image.tobytes() for _, image in found] == [images[i].tobytes() for i in range(2, 40, 5)]
    assert clip_times(tmp_path / "a.mkv", 8) == [time for time, _ in found]
    assert frame_at(tmp_path / "a.mkv", 3.05).tobytes() == images[30].tobytes()


def test_only_the_frames_needed_are_decoded(tmp_path, monkeypatch):
    from models.dataset import clips

    path = write(tmp_path / "a.mp4", moving(600), "libx264", "yuv420p")
    seen = []
    look = clips.look_of
    monkeypatch.setattr(clips, "look_of", lambda *args: seen.append(1) or look(*args))
    open_frames(path, 8)
    assert 8 <= len(seen) < 8 * (12 + 2)


@pytest.mark.parametrize("count", [1, 3])
def test_video_of_fewer_frames_shows_some_again(tmp_path, count):
    images = moving(count)
    found = open_frames(write(tmp_path / "a.mkv", images), 8)
    shown = [[image.tobytes() for image in images].index(frame.tobytes()) for frame in found]
    assert shown == {1: [0] * 8, 3: [0, 0, 0, 1, 1, 2, 2, 2]}[count]


def test_video_without_a_declared_length_is_read_to_its_end(tmp_path):
    path = write(tmp_path / "a.mkv", moving(20))
    live = tmp_path / "live.mkv"
    with av.open(str(path)) as source, av.open(str(live), "w", options={"live": "1"}) as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                file.mux(packet)
    with av.open(str(live)) as file:
        assert file.duration is None
    assert [image.tobytes() for image in open_frames(live)] == [
        image.tobytes() for image in open_frames(path)
    ]


def test_frames_over_the_limit_of_pixels_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mkv", moving(3))
    monkeypatch.setattr("models.dataset.video.MAX_PIXELS", 48 * 32 - 1)
    with pytest.raises(ValueError, match=rf"{path}: frames of 48 x 32 are over"):
        open_frames(path)


def test_video_is_told_by_its_content(tmp_path):
    for kind, (codec, *more) in KINDS.items():
        assert is_video(write(tmp_path / kind, moving(30), codec, *more)), kind
    for suffix in (".gif", ".png", ".jpg", ".webp", ".avif", ".tiff", ".bmp"):
        picture(1).save(tmp_path / f"a{suffix}")
        assert not is_video(tmp_path / f"a{suffix}")


# Rows


def clip_archive(folder, count=3):
    """An archive of 8 images and `count` videos, under names that do not tell them apart."""
    archive = make_archive(folder)
    names = []
    for i in range(count):
        path = write(archive.images / f"{i}.mkv", [picture(10 * i + n) for n in range(20)])
        names.append(path.rename(path.with_suffix("")).name)
    rows = [(name, f"a disc of colour {i}") for i, name in enumerate(archive.names + names)]
    return Archive(write_csv(folder / "captions.csv", rows), archive.images, archive.names + names)


def naive(archive, name, tower, frames):
    """The mean over the frames of a file, a unit row (dim,)."""
    rows = [
        tower.encode(tower.preprocess(image)[None])[0] for image in open_frames(archive.images / name, frames)
    ]
    return F.normalize(sum(rows), dim=0)


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_row_of_a_video_is_the_mean_over_its_frames(tmp_path, frames):
    archive = clip_archive(tmp_path)
    cache = tmp_path / "features.sqlite"
    features = encode(archive, Pixels(), Letters(), cache, frames=frames)
    expected = torch.stack([naive(archive, name, Pixels(), frames) for name in archive.names])
    torch.testing.assert_close(features.image, expected, rtol=0, atol=5e-4)
    tower = Pixels()
    again = encode(archive, tower, Letters(), cache, frames=frames)
    assert tower.seen == 0 and torch.equal(again.image, features.image)
    ordered = encode(archive, tower, Letters(), cache, frames=frames, in_order=True)
    assert tower.seen == 0 and ordered.image.shape == (11, frames, 24)
    assert (ordered.image[:8] == ordered.image[:8, :1]).all()
    means = F.normalize(ordered.image.mean(1), dim=1)
    torch.testing.assert_close(features.image, means, rtol=0, atol=5e-4)
    half = ordered.of(torch.arange(11) > 5)
    assert torch.equal(half.image, ordered.image[6:])


def test_rows_of_videos_do_not_depend_on_batch_size_and_cache(tmp_path):
    archive = clip_archive(tmp_path)
    options = dict(quiet=True, in_order=True)
    one = encode_archive(load(archive), Pixels(), Letters(), None, batch_size=1, workers=1, **options)
    for size in (2, 7, 100):
        other = encode_archive(
            load(archive), Pixels(), Letters(), tmp_path / f"{size}", batch_size=size, **options
        )
        assert torch.equal(one.image, other.image)


def test_another_number_of_frames_is_encoded_anew_and_images_are_not(tmp_path):
    archive = clip_archive(tmp_path)
    cache = tmp_path / "features.sqlite"
    encode(archive, Pixels(), Letters(), cache, frames=8)
    tower = Pixels()
    encode(archive, tower, Letters(), cache, frames=2)
    assert tower.seen == 3 * 2
    found = list(
        encode_files([archive.images / name for name in archive.names], Pixels("other"), cache, frames=2)
    )
    assert [None if file.frames is None else len(file.frames) for file in found] == [None] * 8 + [2] * 3


def test_still_image_repeated_as_a_lossless_clip_has_its_row(tmp_path, lite0):
    image = picture(3, (224, 224))
    image.save(tmp_path / "still.png")
    write(tmp_path / "still.mkv", [image] * 30)
    write(tmp_path / "still.mp4", [image] * 30, "libx264rgb", "rgb24", {"crf": "0"})
    names = ["still.png", "still.mkv", "still.mp4"]
    archive = Archive(write_csv(tmp_path / "c.csv", [(name, "a disc") for name in names]), tmp_path, names)
    rows = encode_archive(load(archive), lite0, Letters(), None, quiet=True).image
    assert (rows - rows[0]).abs().max() <= 1e-6


@pytest.mark.parametrize("skip_bad", [False, True])
def test_damaged_video_is_named_or_counted(tmp_path, skip_bad, caplog):
    archive = clip_archive(tmp_path)
    bad = archive.images / archive.names[-1]
    bad.write_bytes(bad.read_bytes()[:200])
    if not skip_bad:
        with pytest.raises(ValueError, match=rf"captions\.csv: (.|\n)*line 12: (.|\n)*{bad}"):
            encode(archive, Pixels(), Letters(), None)
        return
    dataset = load(archive, skip_bad=True)
    features = encode_archive(dataset, Pixels(), Letters(), None, quiet=True)
    assert len(features.image) == 10 and "11 rows = 10 used + 1 left out (1 unusable image)" in caplog.text
