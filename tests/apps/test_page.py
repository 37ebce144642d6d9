"""apps.page without a browser: what its functions find, and what strangers get who send it anything."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from PIL import Image

from apps.page import __main__ as page
from apps.video.demo import plan
from models.dataset import open_image
from models.rejection import NONE
from tests.apps.conftest import HOSTILE, MEGABYTES
from tests.conftest import ROOT, draw_shape
from tests.corpus.bad_images import BAD

gradio_client = pytest.importorskip("gradio_client", reason="pip install -r requirements-page.txt")
from apps.page import html, look, search, watch  # noqa: E402
from apps.page.serve import serving  # noqa: E402
from apps.page.uploads import without_folders  # noqa: E402

SECRETS = re.compile(r"Traceback|/tmp|/work|/root|/home|site-packages")


@pytest.fixture(scope="module")
def client(site):
    return gradio_client.Client(site.url, verbose=False)


def call(site, name, *values):
    """(the event at the end, what came with it) of a call that sends these values as they are, as no client
    of Gradio would."""
    url = f"{site.url}/gradio_api/call/{name}"
    body = json.dumps(dict(data=values, session_hash="stranger")).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        number = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/{number}", timeout=30) as answer:
        *_, event, data = answer.read().decode().strip().split("\n")[-2:]
    return event.removeprefix("event: "), data.removeprefix("data: ")


def file_of(path):
    return dict(path=str(path), meta=dict(_type="gradio.FileData"))


def status(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return None  # nobody listens there


def upload(site, name, data):
    """(status, body) of sending a file."""
    edge = "edge-of-a-part"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + f"\r\n--{edge}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    try:
        request = urllib.request.Request(f"{site.url}/gradio_api/upload", body, kind)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_look_scores_labels_as_the_model_does(page_loaded, asked_run):
    path, labels = asked_run.images / "red-ellipse.jpg", ["a red ellipse", "a blue line"]
    seen = look.look(page_loaded, look.read(path), labels, -1)
    wanted = page_loaded.model.classify(path, labels).tolist()
    assert dict(seen.labels) == pytest.approx(dict(zip(labels, wanted)), abs=1e-5)
    scores = [score for _, score in seen.labels]
    assert scores == sorted(scores, reverse=True)
    assert len(seen.captions) == 5


def test_none_of_these_comes_first_where_all_score_too_little():
    assert look.ranked(["a", "b"], [0.1, 0.3], 0.2) == [("b", 0.3), ("a", 0.1)]
    assert look.ranked(["a", "b"], [0.1, 0.3], 0.4) == [(NONE, 0.4), ("b", 0.3), ("a", 0.1)]
    assert look.ranked([], [], 0.4) == []


def test_clip_of_one_picture_is_seen_as_the_picture(page_loaded, tmp_path):
    image = draw_shape("red", "ellipse").resize((96, 96))
    image.save(tmp_path / "a.gif", save_all=True, append_images=[image.rotate(1)], duration=[900, 1])
    clip = look.read(tmp_path / "a.gif", is_clip=True)
    labels = ["a red ellipse", "a blue line"]
    seen = look.look(page_loaded, clip, labels, -1)
    still = look.look(page_loaded, clip[:1], labels, -1)
    assert dict(seen.labels) == pytest.approx(dict(still.labels), abs=0.05)


def test_search_folds_copies_into_one(page_loaded):
    found = search.search(page_loaded, ["a red ellipse"], top=3)
    [first] = [result for result in found.results if "red-ellipse.jpg" in (result.name, *result.alike)]
    assert sorted([first.name, *first.alike]) == ["copy of red-ellipse.jpg", "red-ellipse.jpg"]
    assert found.images == 27 and len(found.results) == 3


def test_video_is_found_at_its_moment(page_loaded):
    found = search.search(page_loaded, ["a green rectangle"], top=40)
    [film] = [result for result in found.results if result.name == "film.mp4"]
    assert 4 < film.at < 9 and f"film.mp4 at {film.at:.1f} s" in search.caption(film)
    [(tile, _)] = search.tiles(page_loaded, [film])
    red, green, blue = tile.resize((3, 3)).getpixel((1, 1))
    assert green > max(red, blue)
    assert search.like(page_loaded, "film.mp4").results[0].name == "film.mp4"


def test_like_finds_the_image_itself_first(page_loaded):
    found = search.like(page_loaded, "green-line.jpg")
    assert (found.results[0].name, found.results[0].score) == ("green-line.jpg", pytest.approx(1, abs=1e-3))


def test_threshold_leaves_nothing_and_says_what_is_best(page_loaded):
    found = search.search(page_loaded, ["a red ellipse"], least=0.9999)
    everything = search.search(page_loaded, ["a red ellipse"])
    assert found.results == [] and found.best == everything.results[0].score


def test_video_has_as_many_equal_segments_as_changes(page_loaded, site, capsys):
    video = watch.read(page_loaded, site.video)
    bar = capsys.readouterr().err  # which the page shows, too
    assert "frames of film.mp4" in bar and str(site.images) not in bar
    found = watch.segments(page_loaded, video, video.changes)
    shots = plan(16, shot_seconds=(4.0, 5.0))  # as `site` makes it
    for shot in shots:
        assert min(abs(segment.start - shot.start) for segment in found) <= 1
    assert len(video.equal) == len(video.changes) and found[-1].end == 16
    scores, moments = watch.search(page_loaded, video, "green")
    assert moments[0].score == scores.max() and len(moments) == len(found)


def test_video_that_is_too_long_is_refused(page_loaded, site, monkeypatch):
    monkeypatch.setattr(watch, "MOST", 3)
    with pytest.raises(ValueError, match="longer than"):
        watch.read(page_loaded, site.video)


def test_pieces_of_html_escape_what_they_show():
    scores = torch.tensor([0.1, 0.4])
    for piece in (html.bars([(HOSTILE, 0.3)]), html.bars([], HOSTILE), html.line(HOSTILE)):
        assert "&lt;img" in piece and "<img" not in piece
    assert html.timeline(scores, [0, 1, 2], [0.0, 0.5], 1.0, []).count("<rect") == 2


def test_errors_name_the_file_and_no_folder():
    said = without_folders("/tmp/x/0a1b/My photo.jpg: cannot be decoded; see /etc/a/b or 1/2", "/tmp/y")
    assert said == "My photo.jpg: cannot be decoded; see b or 1/2"
    assert without_folders("/p/q/r/a.jpg: gone", "/p/q") == "r/a.jpg: gone"


def test_clients_get_what_the_page_shows(client, site):
    image = gradio_client.handle_file(site.images / site.image)
    seen = client.predict(image, "a red ellipse\na blue line", -1, api_name="/look")[0]
    wanted = site.loaded.model.classify(site.images / site.image, ["a red ellipse", "a blue line"]).tolist()
    scores = {entry["text"]: entry["score"] for entry in seen["labels"]}
    assert scores == pytest.approx(dict(zip(["a red ellipse", "a blue line"], wanted)), abs=1e-3)
    answers = client.predict(f" {site.question}\n", "a red ellipse", api_name="/ask")[0]
    assert answers[0]["text"] == site.loaded.model.answer(site.images / site.image, site.question)
    assert Image.open(client.predict("a red ellipse", site.question, api_name="/where")).size[0] > 300
    found = client.predict("a red ellipse", "", "", None, 0, 5, api_name="/search")[0]
    assert len(found["results"]) == 5
    assert client.predict(site.image, 0, 1, api_name="/like")[0]["results"][0]["score"] > 0.99
    seen = client.predict(gradio_client.handle_file(site.video), api_name="/watch")[0]
    assert len(seen["selective"]) == len(seen["uniform"])
    assert client.predict(gradio_client.handle_file(site.video), "green", api_name="/moments")[0]


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", str(ROOT / "pyproject.toml"), "../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd"],
)
def test_no_file_of_the_machine_is_served(site, path):
    for prefix in ("gradio_api/file=", "file=", "static/", "assets/", ""):
        assert status(f"{site.url}/{prefix}{path}") in (403, 404, 405)


def test_files_of_the_indexed_folder_are_served_only_as_pictures_of_results(site):
    for path in (site.images / site.image, site.images / "not indexed.jpg", site.loaded.index):
        assert status(f"{site.url}/gradio_api/file={quote(str(path))}") == 403
    for name in ("not indexed.jpg", "../index.sqlite", "/etc/passwd", "\0", ""):
        event, data = call(site, "like", name, 0, 5)
        assert event == "error" and not SECRETS.search(data), data


@pytest.mark.parametrize(
    "path", ["/etc/passwd", str(ROOT / "my_image_archive" / "10002456.jpg"), "x/../../y"]
)
def test_path_in_the_place_of_an_upload_is_refused(site, path):
    event, data = call(site, "look", file_of(path), "a", -1)
    assert event == "error" and not SECRETS.search(data), data


def test_address_in_the_place_of_an_upload_is_not_fetched(site):
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, more in (("look", ("a", -1)), ("watch", ())):
            event, data = call(site, name, file_of(f"http://127.0.0.1:{server.server_port}/x.jpg"), *more)
            assert event == "error" and not SECRETS.search(data), data
        server.shutdown()
    assert asked == []


def test_large_upload_is_refused(site):
    assert upload(site, "large.jpg", bytes(MEGABYTES * 10**6 * 2))[0] == 413


def test_name_of_an_upload_stays_in_its_folder(site):
    code, sent = upload(site, "../../../../tmp/escaped.jpg", b"x")
    assert code == 200 and Path(sent[0]).name == "escaped.jpg" and not Path("/tmp/escaped.jpg").exists()


def hostile():
    """(name, bytes) of files that no one should decode: of the corpus, and of other kinds."""
    for kind in ("bombs", "not images", "damaged"):
        for name, data, _ in BAD[kind]() if kind in BAD else ():
            if len(data) < MEGABYTES * 10**6:
                yield name, data
    yield "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    yield "playlist.jpg", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    yield f"{HOSTILE}.jpg".replace("'", ""), b"no image"


def test_hostile_images_end_in_a_line_that_names_them(site):
    count = 0
    for name, data in hostile():
        code, sent = upload(site, name.replace('"', ""), data)
        assert code == 200
        event, said = call(site, "look", file_of(sent[0]), "a", -1)
        assert event == "error" and not SECRETS.search(said), (name, said)
        assert "<" not in said and json.loads(said)["error"].partition(":")[0], said
        count += 1
    assert count > 10


def test_playlist_that_calls_itself_a_video_opens_no_file(site, tmp_path):
    _, sent = upload(site, "list.mp4", f"#EXTM3U\n#EXTINF:1,\nfile://{site.video}\n#EXT-X-ENDLIST\n".encode())
    event, said = call(site, "watch", file_of(sent[0]))
    assert event == "error" and "list.mp4" in said and not SECRETS.search(said), said


def test_too_many_labels_and_results_are_refused(site):
    assert call(site, "search", "a\n" * 101, "", "", None, 0, 5)[0] == "error"
    assert call(site, "search", "a" * 10_001, "", "", None, 0, 5)[0] == "error"
    assert call(site, "search", "a", "", "", None, 0, 10**6)[0] == "error"


def test_pages_may_load_nothing_from_elsewhere(site):
    with urllib.request.urlopen(site.url, timeout=30) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_uploads_are_deleted_in_time_and_at_the_end(page_loaded, site):
    with serving(page_loaded, port=None, kept=1) as url:
        code, sent = upload(site._replace(url=url.rstrip("/")), "a.jpg", b"x")
        assert code == 200 and Path(sent[0]).exists()
        folder = Path(sent[0]).parents[1]
        deleted = threading.Event()
        while Path(sent[0]).exists():
            assert not deleted.wait(0.05)
        draw_shape("red", "line").save(left := folder / "left.jpg")
    assert not left.exists() and not folder.exists()
    assert open_image(site.images / site.image)


def printed(name):
    """The block of docs/page.md that is the file `name`."""
    text = (ROOT / "docs" / "page.md").read_text("utf-8")
    (block,) = re.findall(rf"^```python {name}\n(.*?)^```", text, re.M | re.S)
    return block


def test_client_runs_as_printed(site, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(printed("client.py").replace("http://127.0.0.1:7860", site.url), {})  # noqa: S102
    assert "people" in capsys.readouterr().out


def test_space_runs_as_printed(page_loaded, site, tmp_path):
    (tmp_path / "app.py").write_text(printed("app.py"), "utf-8")
    shutil.copytree(site.images, tmp_path / "photos")
    page_loaded.model.save_pretrained(tmp_path / "model")
    env = os.environ | dict(PYTHONPATH=str(ROOT), GRADIO_SERVER_PORT="7898", TMPDIR=str(tmp_path))
    with subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path, env=env) as server:
        try:
            while status("http://127.0.0.1:7898") != 200:
                with pytest.raises(subprocess.TimeoutExpired):  # or it has ended
                    server.wait(0.2)
            client = gradio_client.Client("http://127.0.0.1:7898", verbose=False)
            found = client.predict("a red ellipse", "", "", None, 0, 3, api_name="/search")[0]
            assert len(found["results"]) == 3
            video = gradio_client.handle_file(site.video)
            seen = client.predict(video, api_name="/watch")[0]
            assert "no words" in seen["selective"][0]["words"]  # a shared model has no captions
        finally:
            server.terminate()


def test_page_without_gradio_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert page.main([]) == 1
    assert capsys.readouterr().err == "page: the page needs Gradio; pip install -r requirements-page.txt\n"


def test_page_ends_on_a_signal_and_deletes_its_folder(asked_run, tmp_path):
    command = [sys.executable, "-m", "apps.page", "--run", asked_run.folder, "--index", tmp_path / "no index"]
    env = dict(TMPDIR=str(tmp_path), PATH="", HOME=str(tmp_path), OMP_NUM_THREADS="1")
    with subprocess.Popen(
        [*command, "--port", "7899"], cwd=ROOT, env=env, text=True, stdout=-1, stderr=-1
    ) as server:
        line = server.stdout.readline()
        assert "http://127.0.0.1:7899" in line and list(tmp_path.glob("vl-jepa-page-*"))
        server.terminate()
        assert server.wait(20) == 130
        assert "no index there" in server.stderr.read()
    assert list(tmp_path.glob("vl-jepa-page-*")) == []
