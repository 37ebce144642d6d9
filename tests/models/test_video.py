"""The frames of videos as players show them: turned, mirrored, stretched, HDR, joined, begun late, damaged.

The right pictures are computed by hand from the picture that was encoded; where the ffmpeg program is
installed, its own rendering is a second source."""

import io
import re
import shlex
import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from models.dataset import display, video
from models.dataset.frames import duration, every, read_frames
from models.dataset.video import Report

SHADES = (200, 40, 120, 240, 80, 160, 20, 100)


def scene(width=96, height=64):
    """A picture (H, W, 3) that no turn or mirror image leaves as it is: four colors, a white corner."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (200, 40, 40)
    picture[: height // 2, width // 2 :] = (40, 160, 60)
    picture[height // 2 :, : width // 2] = (50, 70, 200)
    picture[height // 2 :, width // 2 :] = (230, 200, 60)
    picture[: height // 4, : width // 8] = 255
    return picture


def encode(path, pictures, codec="libx264", rate=10, pixels="yuv420p", format=None, start=0, **context):
    """Write pictures (H, W, 3) as a video, the first one at `start` seconds; `context` is for the encoder."""
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, _ = pictures[0].shape
        stream.pix_fmt = pixels
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for n, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = n + start * rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def grey(shade, size=(48, 64)):
    return np.full((*size, 3), shade, np.uint8)


def shades(path, step=1.0, **options):
    """The index in SHADES of the frame on screen every `step` seconds."""
    means = [np.asarray(image).mean() for _, image in read_frames(path, every(step), **options)]
    return [int(np.abs(np.array(SHADES) - mean).argmin()) for mean in means]


def recording(path, seconds=4, rate=10, first=0, **options):
    """A video that shows one of SHADES per second, from the `first` one on. Two key frames a second."""
    pictures = [grey(SHADES[first + n // rate]) for n in range(seconds * rate)]
    return encode(path, pictures, rate=rate, gop_size=rate // 2, **options)


def first(path):
    return np.asarray(next(read_frames(path, [0]))[1])


def rendered(path, filters="null"):
    """The first frame of a video as the ffmpeg program renders it, or None where that is not installed."""
    if not shutil.which("ffmpeg"):
        return None
    command = f"ffmpeg -v error -i file:{path} -frames:v 1 -vf {filters} -f image2pipe -c:v png -".split()
    return np.asarray(Image.open(io.BytesIO(subprocess.run(command, check=True, stdout=-1).stdout)))


def packets(path):
    """[(position, size)] of the content of the video packets of a file."""
    content = path.read_bytes()
    with av.open(str(path)) as container:
        found = [(bytes(packet), packet.pos) for packet in container.demux(video=0) if packet.size]
    return [(content.find(packet, at), len(packet)) for packet, at in found]


# Orientation


def with_matrix(path, source, matrix, scale=1):
    """Copy an MP4 with the display matrix (a, b, c, d) in its track header."""
    content = bytearray(source.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version 0 of the box
    a, b, c, d = (round(65536 * scale * value) for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def moved(picture, matrix):
    """`picture` with the pixel at (x, y) moved to (a x + c y, b x + d y), and the corner put back at 0."""
    a, b, c, d = matrix
    height, width, _ = picture.shape
    places = {(a * x + c * y, b * x + d * y): picture[y, x] for y in range(height) for x in range(width)}
    left, top = (min(place[i] for place in places) for i in (0, 1))
    size = (width, height) if a else (height, width)
    out = np.zeros((size[1], size[0], 3), np.uint8)
    for (x, y), color in places.items():
        out[y - top, x - left] = color
    return out


EIGHT = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@pytest.mark.parametrize("scale", (1, 0.5))
@pytest.mark.parametrize("matrix", EIGHT)
def test_all_eight_display_matrices_are_as_players_show_them(tmp_path, matrix, scale):
    plain = encode(tmp_path / "plain.mp4", [scene()])
    turned = with_matrix(tmp_path / "turned.mp4", plain, matrix, scale)
    found = first(turned)
    assert np.array_equal(found, moved(first(plain), matrix))
    if (expected := rendered(turned)) is not None:
        assert found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("flip", ("", ":flip=horizontal", ":flip=vertical"))
@pytest.mark.parametrize("rotate", (0, 90))
def test_orientation_in_the_h264_stream_is_as_ffmpeg_shows_it(tmp_path, rotate, flip):
    plain = encode(tmp_path / "plain.mp4", [scene()])
    options = f"h264_metadata=display_orientation=insert:rotate={rotate}{flip}"
    with av.open(str(plain)) as source, av.open(str(tmp_path / "turned.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        turn = av.bitstream.BitStreamFilterContext(options, source.streams.video[0])
        for packet in source.demux(video=0):
            for changed in turn.filter(packet if packet.size else None):
                changed.stream = stream
                target.mux(changed)
    found, expected = first(tmp_path / "turned.mkv"), rendered(tmp_path / "turned.mkv")
    if expected is None:
        pytest.skip("the ffmpeg program is not installed")
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 4


def test_turn_by_another_angle_keeps_the_whole_picture(tmp_path):
    plain = encode(tmp_path / "plain.mp4", [scene()])
    half = 0.5**0.5
    found = first(with_matrix(tmp_path / "turned.mp4", plain, (half, half, -half, half)))
    assert found.shape[:2] == pytest.approx([(96 + 64) * half] * 2, abs=2)
    assert found[0].max() < 60 and found[2:20, 40:50].max() > 180  # the white corner is the highest point


# Pixels that are not square


@pytest.mark.parametrize("width, aspect, shown", [(72, "64/45", 102), (72, "8/9", 64), (72, "1/2", 36)])
@pytest.mark.parametrize("name, codec", [("v.mp4", "libx264"), ("v.mkv", "mpeg4"), ("v.ts", "mpeg2video")])
def test_pixels_are_scaled_to_squares(tmp_path, width, aspect, shown, name, codec):
    aspect = Fraction(aspect)
    if codec == "mpeg2video":  # its header knows the shapes of screens, and not those of pixels
        aspect = Fraction(16, 9) / Fraction(width, 64)
        shown = int(64 * 16 / 9)
    path = encode(tmp_path / name, [scene(width)] * 25, codec, rate=25, sample_aspect_ratio=aspect)
    found = first(path)
    assert found.shape == (64, shown, 3)
    expected = scene(width)[:, [int((x + 0.5) * width / shown) for x in range(shown)]]
    assert np.abs(found.astype(int) - expected).mean() < 8
    if (other := rendered(path, "scale=iw*sar:ih")) is not None:
        assert np.abs(found.astype(int) - other).mean() < 4


def test_pixels_are_scaled_before_the_turn(tmp_path):
    wide = encode(tmp_path / "wide.mp4", [scene()], sample_aspect_ratio=Fraction(2))
    found = first(with_matrix(tmp_path / "turned.mp4", wide, (0, 1, -1, 0)))
    assert found.shape == (192, 64, 3)
    assert np.array_equal(found, np.rot90(first(wide), -1))


def test_broadcast_that_changes_the_shape_of_its_pixels_is_followed(tmp_path):
    """As between a film and the advertisements: 4:3, then 16:9, in one stream."""
    parts = []
    for n, aspect in enumerate((Fraction(4, 3), Fraction(16, 9))):
        sample = aspect / Fraction(72, 64)
        pictures = [grey(SHADES[n], (64, 72))] * 25
        part = encode(tmp_path / f"{n}.ts", pictures, "mpeg2video", 25, sample_aspect_ratio=sample)
        parts.append(part.read_bytes())
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    sizes = [image.size for _, image in read_frames(tmp_path / "both.ts", every(0.5))]
    assert sizes == [(85, 64)] * 2 + [(113, 64)] * 2


def test_pixels_too_wide_to_hold_are_an_error(tmp_path):
    path = encode(tmp_path / "v.mkv", [scene(1920, 1080)], sample_aspect_ratio=Fraction(250))
    with pytest.raises(ValueError, match=str(path)):
        first(path)


# Colors

MATRICES = dict(bt601=(6, 0.299, 0.114), bt709=(1, 0.2126, 0.0722), bt2020=(9, 0.2627, 0.0593))


@pytest.mark.parametrize("full", (False, True), ids=("limited", "full"))
@pytest.mark.parametrize("name", MATRICES)
def test_colors_follow_the_matrix_and_the_range(tmp_path, name, full):
    """Y'CbCr by the definitions of ITU-R BT.601, BT.709 and BT.2020, with no conversion by FFmpeg."""
    number, red, blue = MATRICES[name]
    picture = scene()
    r, g, b = np.moveaxis(picture / 255, 2, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    planes = np.stack([y, (b - y) / (1 - blue) / 2, (r - y) / (1 - red) / 2])
    scale, offset = ((255, 255, 255), (0, 128, 128)) if full else ((219, 224, 224), (16, 128, 128))
    planes = planes * np.reshape(scale, (3, 1, 1)) + np.reshape(offset, (3, 1, 1))
    frame = av.VideoFrame.from_ndarray(planes.round().clip(0, 255).astype(np.uint8), format="yuv444p")
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options=dict(qp="1"))
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv444p"
        stream.codec_context.colorspace = number
        stream.codec_context.color_range = 2 if full else 1
        frame.colorspace, frame.color_range = number, 2 if full else 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = first(tmp_path / "v.mp4")
    assert np.abs(found.astype(int) - picture).max() <= 4


def hdr(picture, transfer):
    """An SDR picture as HDR in BT.2020, 16 bit, SDR white at 203 nits: ITU-R BT.1886, BT.2087, BT.2100."""
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    nits = 203 * (picture / 255) ** 2.4 @ to_2020.T
    if transfer == 16:  # PQ, SMPTE ST 2084
        power = (nits / 10_000) ** 0.1593017578125
        signal = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:  # HLG: light of the scene, on a screen of 1,000 nits
        luminance = (nits @ [0.2627, 0.6780, 0.0593])[..., None] / 1000
        light = nits / 1000 * np.maximum(luminance, 1e-9) ** (1 / 1.2 - 1)
        upper = 0.17883277 * np.log(np.maximum(12 * light - 0.28466892, 1e-9)) + 0.55991073
        signal = np.where(light <= 1 / 12, np.sqrt(3 * light), upper)
    return (65535 * signal).round().astype(np.uint16)


@pytest.mark.parametrize("codec", ("libx265", "ffv1"))
@pytest.mark.parametrize("transfer, name", [(16, "PQ"), (18, "HLG")])
def test_hdr_comes_out_as_the_sdr_picture_it_was_made_of(tmp_path, transfer, name, codec):
    picture = np.asarray(Image.fromarray(scene()).resize((192, 128), Image.Resampling.BICUBIC))
    frame = av.VideoFrame.from_ndarray(hdr(picture, transfer), format="rgb48le")
    graph = av.filter.Graph()
    source = graph.add_buffer(width=192, height=128, format=frame.format, time_base=Fraction(1, 10))
    scale = graph.add("scale", "out_color_matrix=bt2020:out_range=tv")
    graph.link_nodes(source, scale, graph.add("format", "yuv420p10le"), graph.add("buffersink")).configure()
    graph.push(frame)
    frame = graph.pull()
    frame.colorspace, frame.color_range = 9, 1
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = 128, 192, "yuv420p10le"
        about = dict(color_primaries=9, color_trc=transfer, colorspace=9, color_range=1)
        for key, value in about.items():
            setattr(stream.codec_context, key, value)
        for n in range(3):
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    report = Report()
    (_, image), *_ = read_frames(tmp_path / "v.mkv", every(0.1), report=report)
    difference = np.asarray(image).astype(float) - picture
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 28  # PSNR in dB; taken for SDR, it is 13 to 17
    found, right = (np.asarray(pixels).ravel() - 128.0 for pixels in (image, picture))
    assert found @ right / np.linalg.norm(found) / np.linalg.norm(right) > 0.98
    assert report.hdr == name and f"HDR ({name})" in str(report)


def test_hdr_that_is_brighter_than_sdr_white_is_white(tmp_path):
    """A lamp of 1,000 nits and one of 203 nits are both white; black stays black."""
    light = np.array([[[0.0] * 3, [255] * 3, [255 * (1000 / 203) ** (1 / 2.4)] * 3]])
    for transfer in (16, 18):
        found = display.sdr(hdr(light, transfer), display.Look(Fraction(1), transfer, 9))
        assert np.abs(found.astype(int) - [[[0] * 3, [255] * 3, [255] * 3]]).max() <= 1


# Clocks


@pytest.mark.parametrize("name, codec", [("v.ts", "libx264"), ("v.mpg", "mpeg2video"), ("v.mkv", "libx264")])
@pytest.mark.parametrize("starts", [(0, 0), (0, 0, 0), (5000, 0), (0, 5000)])
def test_recordings_joined_with_cat_are_read_to_the_end(tmp_path, name, codec, starts):
    if name == "v.mkv" and starts not in ((0, 0), (5000, 0)):
        pytest.skip("Matroska is not made to be joined: FFmpeg reads two of three")
    rate = 25 if codec == "mpeg2video" else 10
    parts = []
    for n, start in enumerate(starts):
        part = recording(tmp_path / f"{n}{name}", 2, rate, 2 * n, codec=codec, start=start)
        parts.append(part.read_bytes())
    (tmp_path / name).write_bytes(b"".join(parts))
    report = Report()
    assert shades(tmp_path / name, report=report) == list(range(2 * len(starts)))
    assert report.seen == report.decoded == 2 * len(starts) * rate and not report.left_out
    assert report.restarts == pytest.approx([2.0 * n for n in range(1, len(starts))], abs=0.05)
    assert report.end == pytest.approx(2 * len(starts), abs=0.1)


@pytest.mark.parametrize(
    "name, codec, times, read",
    [("v.mp4", "libx264", 2, 1), ("v.flv", "flv", 2, 1), ("v.wmv", "wmv2", 2, 1), ("v.mkv", "libx264", 3, 2)],
)
def test_recording_that_ffmpeg_passes_over_is_an_error(tmp_path, name, codec, times, read):
    once = recording(tmp_path / name, 2, codec=codec).read_bytes()
    (tmp_path / name).write_bytes(once * times)
    with pytest.raises(ValueError, match="another recording") as error:
        shades(tmp_path / name)
    at = int(re.search(r"tail -c \+(\d+)", str(error.value))[1])
    assert at == read * len(once) + 1  # `tail` counts from 1
    report = Report()
    assert shades(tmp_path / name, skip_bad=True, report=report) == [0, 1] * read
    assert report.decoded == read * 20 and report.left_out == {video.ANOTHER: 1}


def test_clock_of_a_transport_stream_that_overflows_goes_on(tmp_path):
    """33 bits of 90 kHz: after 26.5 hours it starts again from 0."""
    path = recording(tmp_path / "v.ts", start=2**33 // 90_000 - 3)
    assert shades(path) == [0, 1, 2, 3]


@pytest.mark.parametrize("share", (5, 3, 2))
@pytest.mark.parametrize("name, codec", [("v.ts", "libx264"), ("v.mpg", "mpeg2video")])
def test_recording_that_begins_in_mid_programme_is_read(tmp_path, name, codec, share):
    path = recording(tmp_path / name, 8, 25, codec=codec)
    content = path.read_bytes()
    block = 188 if name == "v.ts" else 2048
    path.write_bytes(content[len(content) // block // share * block :])
    report = Report()
    found = shades(path, report=report)
    assert found[-1] == 7 and found == sorted(found) and len(found) >= 8 - 8 // share - 1
    assert report.seen == report.decoded + report.left_out.total()
    assert report.seen - report.left_out[video.GAPS] == len(packets(path))
    assert set(report.left_out) <= {video.EARLY, video.GAPS}


@pytest.mark.parametrize("name", ("v.mp4", "v.mov", "v.mkv", "v.ts"))
def test_sound_that_begins_before_the_pictures_ends_nothing_early(tmp_path, name):
    with av.open(str(tmp_path / name), "w") as container:
        pictures = container.add_stream("libx264", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        for second in range(7):
            silence.pts = 8000 * second
            container.mux(sound.encode(silence))
            for n in range(10 * second, 10 * second + 10) if second >= 3 else ():
                frame = av.VideoFrame.from_ndarray(grey(SHADES[second - 3]), format="rgb24")
                frame.pts = n
                container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        container.mux(sound.encode())
    report = Report()
    assert shades(tmp_path / name, report=report) == [0, 1, 2, 3]
    assert report.decoded == 40 and report.end == pytest.approx(4, abs=0.1)


def test_frames_before_an_edit_list_are_left_out_and_counted(tmp_path):
    """A phone that trims a video keeps its frames and writes a list of what to show."""
    plain = recording(tmp_path / "plain.mp4")
    content = plain.read_bytes()
    at = content.index(b"elst") + 4 + 4 + 4  # version 0, one entry: length (in ms), first frame to show, rate
    length, begin, rate = struct.unpack_from(">IiI", content, at)
    with av.open(str(plain)) as container:
        ticks = container.streams.video[0].time_base.denominator
    trimmed = struct.pack(">IiI", length * 5 // 8, begin + ticks * 3 // 2, rate)
    plain.write_bytes(content[:at] + trimmed + content[at + 12 :])
    report = Report()
    assert shades(plain, 0.5, report=report) == [1, 2, 2, 3, 3]
    assert report.decoded == 25 and report.seen == report.decoded + report.left_out.total()
    assert set(report.left_out) == {video.TRIMMED}


# Names

NAMES = ("12:30:00.mp4", "-i.mp4", "frame%03d.gif", "concat:a.mp4|b.mp4", "pipe:0", "http:x.mp4", "a b'c.mp4")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("relative", (True, False))
def test_name_is_a_file_name_whatever_it_looks_like(tmp_path, name, relative, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(recording(tmp_path / "plain.mp4").read_bytes())
    path = name if relative else tmp_path / name
    assert shades(path) == [0, 1, 2, 3] and duration(path) == 4


def test_advice_of_an_error_works_for_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("12:30 it's.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="12:30") as error:
        shades("12:30 it's.mp4")
    assert shlex.split(re.search("ffmpeg .*", str(error.value))[0])[2] == "file:12:30 it's.mp4"


@pytest.mark.parametrize(
    "text",
    (
        "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nplain.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile plain.ts\n",
    ),
    ids=("HLS", "concat"),
)
def test_playlist_that_calls_itself_a_video_opens_no_other_file(tmp_path, text):
    recording(tmp_path / "plain.ts")
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(ValueError, match="list.mp4"):
        shades(tmp_path / "list.mp4")


# Animated images


def save_animation(path, durations, **options):
    """An animation that shows one of SHADES for each of these durations (ms)."""
    pictures = [Image.fromarray(grey(shade)) for shade in SHADES[: len(durations)]]
    format = path.suffix[1:].replace("apng", "png")
    about = dict(save_all=True, append_images=pictures[1:], duration=durations, quality=95) | options
    pictures[0].save(path, format, **about)
    return path


@pytest.mark.parametrize("ending", ("gif", "webp", "apng", "avif"))
def test_animated_image_is_a_video_with_its_own_durations(tmp_path, ending):
    path = save_animation(tmp_path / f"moving.{ending}", [500, 1000, 200, 300])
    report = Report()
    assert shades(path, 0.25, report=report) == [0, 0, 1, 1, 1, 1, 2, 3]
    assert report.seen == report.decoded == 4 and report.end == pytest.approx(2)


def test_animation_without_durations_lasts_as_long_as_browsers_show_it(tmp_path):
    assert shades(save_animation(tmp_path / "fast.gif", [0, 10, 200]), 0.1) == [0, 1, 2, 2]


def test_still_picture_before_an_animated_png_is_not_shown(tmp_path):
    still = Image.fromarray(grey(SHADES[5]))
    moving = [Image.fromarray(grey(shade)) for shade in SHADES[:2]]
    options = dict(save_all=True, default_image=True, append_images=moving, duration=500)
    still.save(tmp_path / "moving.png", **options)
    assert shades(tmp_path / "moving.png", 0.5) == [0, 1]


def test_transparency_of_an_animation_is_white(tmp_path):
    clear = [Image.new("RGBA", (64, 48), (255, 0, 0, alpha)) for alpha in (255, 0)]
    clear[0].save(tmp_path / "v.webp", save_all=True, append_images=clear[1:], duration=500, lossless=True)
    found = [image.getpixel((9, 9)) for _, image in read_frames(tmp_path / "v.webp", every(0.5))]
    assert found == [(255, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("ending", ("gif", "apng"))
def test_animation_that_is_cut_off_costs_what_is_missing(tmp_path, ending):
    path = tmp_path / f"cut.{ending}"
    noise = [Image.effect_noise((64, 48), 99) for _ in range(4)]
    format = ending.replace("apng", "png")
    noise[0].save(path, format, save_all=True, append_images=noise[1:], duration=500)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 5 // 8])
    with pytest.raises(ValueError, match=r"damaged after 1\.0 s.*--skip-bad"):
        shades(path)
    report = Report()
    assert len(shades(path, 0.5, skip_bad=True, report=report)) == report.decoded == 2
    assert report.seen == report.decoded + report.left_out.total() and report.left_out[video.UNDECODABLE]


def test_avif_sequence_that_is_cut_off_is_no_still_picture(tmp_path):
    path = save_animation(tmp_path / "v.avif", [500] * 8)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"v.avif: damaged .*--skip-bad"):
        shades(path)
    report = Report()
    assert set(shades(path, 0.5, skip_bad=True, report=report)) == {0}
    assert report.seen == report.decoded + report.left_out.total() == 2


# Damage


def destroy(path, numbers):
    """Overwrite these packets of a video with noise."""
    content = bytearray(path.read_bytes())
    places = packets(path)
    for number in numbers:
        at, size = places[number]
        content[at : at + size] = np.random.default_rng(number).bytes(size)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name, codec, pixels",
    [
        ("v.mp4", "mpeg4", "yuv420p"),
        ("v.mkv", "ffv1", "yuv420p"),
        ("v.avi", "mjpeg", "yuvj420p"),
        ("v.webm", "libvpx", "yuv420p"),
        ("v.mov", "libx264", "yuv420p"),
    ],
)
def test_damaged_video_costs_what_is_damaged(tmp_path, name, codec, pixels):
    """Every frame is a key frame, so that no other frame needs the damaged ones."""
    path = encode(
        tmp_path / name, [grey(SHADES[n // 10]) for n in range(40)], codec, pixels=pixels, gop_size=1
    )
    destroy(path, [14, 15, 16, 33])
    with pytest.raises(ValueError, match=rf"{name}: damaged after 1\.[345] s .*--skip-bad"):
        shades(path)
    report = Report()
    found = shades(path, 0.1, skip_bad=True, report=report)
    assert found == [n // 10 for n in range(40)]  # the frame before the damage stays on screen
    assert report.seen == 40 and report.left_out == {video.UNDECODABLE: 4} and report.decoded == 36


def test_frame_that_the_decoder_gives_out_of_order_starts_no_new_clock(tmp_path):
    """After lost packets, H.264 decoders show a frame late."""
    path = recording(tmp_path / "v.ts", 4)
    content = path.read_bytes()
    half = len(content) // 188 // 2 * 188
    path.write_bytes(content[: half - 188 * 20] + content[half:])
    report = Report()
    found = shades(path, skip_bad=True, report=report)
    assert found == [0, 1, 2, 3] and report.restarts == [] and report.end == pytest.approx(4, abs=0.1)


SOURCES = {"v.mp4": "libx264", "v.mkv": "libx264", "v.avi": "mpeg4", "v.webm": "libvpx", "v.ts": "libx264"}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """{name: content}: videos of 40 frames, 10 per second."""
    folder = tmp_path_factory.mktemp("noisy")
    chance = np.random.default_rng(0)
    pictures = [chance.integers(64, 192, (48, 64, 3), dtype=np.uint8) for _ in range(40)]
    return {
        name: encode(folder / name, pictures, codec, gop_size=5).read_bytes()
        for name, codec in SOURCES.items()
    }


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(SOURCES)),
    at=st.floats(0.3, 0.8),
    share=st.floats(0.001, 0.15),
    damage=st.sampled_from(("noise", "zeros", "scattered", "gone", "cut off")),
    seed=st.integers(0, 999),
)
def test_no_frame_of_a_damaged_video_is_lost_uncounted(noisy, tmp_path, name, at, share, damage, seed):
    content = bytearray(noisy[name])
    chance = np.random.default_rng(seed)
    begin, size = int(at * len(content)), int(share * len(content)) + 1
    if damage == "scattered":
        for place in chance.integers(begin, begin + size, 10):
            content[place] ^= 0x5A
    elif damage == "cut off":
        del content[begin:]
    else:
        middle = {"noise": chance.bytes(size), "zeros": bytes(size), "gone": b""}[damage]
        content[begin : begin + size] = middle
    path = tmp_path / name
    path.write_bytes(content)
    report = Report()
    try:
        with open(path, "rb") as file:
            shown = sum(1 for _ in video.intervals(file, path, report, skip_bad=True))
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert shown == report.decoded and report.seen == report.decoded + report.left_out.total()
    if damage != "cut off" or name != "v.ts":  # which has no header that declares a length
        assert report.seen >= 40, report
