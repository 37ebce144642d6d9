"""The three tabs of the page: what is on them, and what happens on a click.

Each method that answers an event takes and returns the values of components; the work is done in look.py,
search.py and watch.py. Public ones have a name for gradio_client, and a first output that is plain JSON. The
model is used by one event at a time."""

import tempfile
from pathlib import Path

import gradio as gr

from apps.page import html, look, search, watch
from apps.page.uploads import Clip, Photo, lent, served, telling
from apps.search.store import opened
from models.dataset import open_image

LANE = dict(concurrency_id="model", concurrency_limit=1)
LABELS = "a dog\na boat\npeople\na house\na living room"
MOST_TEXTS, MOST_LETTERS, MOST_RESULTS = 100, 10_000, 48
SEEK = """(at) => {
  const seek = (tries) => {
    const video = document.querySelector('#WHICH video')
    if (video && video.readyState > 0) video.currentTime = at
    else if (tries > 0) setTimeout(() => seek(tries - 1), 100)
  }
  if (at !== null) seek(100)
}"""
STRIP = dict(show_label=False, allow_preview=False, object_fit="cover", buttons=[])  # of a gallery
CAMERA = ["upload", "clipboard", "webcam"]


def texts_in(box):
    """The lines of a text box that are not empty. ValueError for more than the model should be given."""
    box = box or ""
    found = [line.strip() for line in box.splitlines() if line.strip()]
    if len(found) > MOST_TEXTS or len(box) > MOST_LETTERS:
        most = f"{MOST_TEXTS} lines and {MOST_LETTERS:,} letters"
        raise ValueError(f"{len(found)} lines of {len(box):,} letters: give at most {most}")
    return found


def gallery(tiles):
    """[(RGB PIL image, caption)] as a gallery shows them."""
    return [(served(image), caption) for image, caption in tiles]


def pairs(rows):
    """[(text, score)] as JSON."""
    return [dict(text=text, score=round(score, 4)) for text, score in rows]


class Tab:
    """One tab: `loaded` is the Loaded of the page, `answer` the JSON that clients read."""

    def __init__(self, loaded):
        self.loaded = loaded
        self.answer = gr.JSON(visible=False)

    def on(self, triggers, function, inputs, outputs, api_name=None):
        """Call `function` on any of the triggers. Without `api_name` no client can. The second output, else
        the only one, shows progress and failure."""
        root = ""
        try:
            with opened(self.loaded.index) as store:
                root = store.root
        except (OSError, ValueError):
            pass  # the page works without an index; the tab Search says what is wrong with it
        access = dict(api_name=api_name) if api_name else dict(api_visibility="private")
        options = dict(show_progress_on=outputs[:2][-1]) | access | LANE
        return gr.on(triggers, telling(function, root), inputs, outputs, **options)


class Look(Tab):
    """What an image or a clip shows."""

    def __init__(self, loaded):
        super().__init__(loaded)
        self.shown = gr.State()  # (path, whether it is a clip)
        with gr.Row():
            with gr.Column():
                with gr.Tabs():
                    with gr.Tab("Image"):
                        photo = Photo(show_label=False, sources=CAMERA, height=300, elem_id="photo")
                    with gr.Tab("Clip"):
                        clip = Clip(show_label=False, sources=["upload", "webcam"], height=300)
                self.add_examples(photo)
                self.where = gr.Radio([], label="Where does the score come from?", elem_id="where")
                self.map = gr.Image(show_label=False, interactive=False, elem_id="map")
            with gr.Column():
                self.labels = gr.Textbox(LABELS, label="Labels, one per line", lines=5, elem_id="labels")
                least = gr.Slider(-1, 1, round(loaded.least, 2), step=0.01, label="None of these below")
                again = gr.Button("Score the labels", variant="primary")
                self.bars = gr.HTML(elem_id="bars")
                self.add_question()
                gr.HTML(html.line("Nearest training captions"))
                self.captions = gr.HTML(elem_id="captions")
                self.sentence = gr.Textbox(label="Written by the decoder", visible=loaded.decoder is not None)
        seen = [self.answer, self.bars, self.shown, self.captions, self.sentence, self.where, self.map]
        self.on([photo.change], self.look, [photo, self.labels, least], seen, "look")
        self.on([clip.change], self.look_clip, [clip, self.labels, least], seen, "look_clip")
        self.on([again.click, least.release], self.look_again, [self.shown, self.labels, least], seen)
        self.on([self.where.input], self.heat, [self.shown, self.where, self.question], [self.map], "where")

    def add_examples(self, photo):
        """Some images of the index to click on, if there is one."""
        try:
            examples = search.examples(self.loaded)
        except (OSError, ValueError):
            return
        options = dict(columns=6, height="auto", elem_id="examples")
        row = gr.Gallery(examples, **options, **STRIP)

        def chosen(event: gr.SelectData):
            return event.value["image"]["path"]

        self.on([row.select], chosen, [], [photo])

    def add_question(self):
        """The box for a question and its answers."""
        hint = "What is the weather like?"
        if not self.loaded.answers:
            hint = "This run was trained without --questions and has no answers"
        options = dict(interactive=self.loaded.answers, elem_id="question", submit_btn=self.loaded.answers)
        self.question = gr.Textbox(label="Question", placeholder=hint, **options)
        self.found = gr.HTML(elem_id="answers")
        inputs = [self.shown, self.question, self.labels]
        self.on([self.question.submit], self.ask, inputs, [self.answer, self.found, self.where], "ask")

    def look(self, path, labels, least):
        return self.look_again((path, False) if path else None, labels, least)

    def look_clip(self, path, labels, least, progress=gr.Progress(track_tqdm=True)):  # noqa: B008
        return self.look_again((path, True) if path else None, labels, least)

    def look_again(self, shown, labels, least):
        """The outputs of `/look` for `shown`, (path, is it a clip), or empty ones for None."""
        if shown is None:
            return None, "", None, "", "", gr.Radio(choices=[], value=None), None
        texts = texts_in(labels)
        seen = look.look(self.loaded, look.read(*shown), texts, least)
        answer = dict(
            labels=pairs(seen.labels), captions=pairs(seen.captions), sentence=seen.sentence or None
        )
        choices = gr.Radio(choices=[text for text, _ in seen.labels if text in texts], value=None)
        bars = html.bars(seen.labels, "Give labels, one per line.")
        return answer, bars, shown, html.bars(seen.captions), seen.sentence, choices, None

    def frames(self, shown):
        if shown is None:
            raise ValueError("give an image or a clip first")
        return look.read(*shown)

    def ask(self, shown, question, labels):
        question = " ".join(texts_in(question))
        if not question:
            raise ValueError("ask what? type a question")
        found = look.ask(self.loaded, self.frames(shown), question)
        choices = gr.Radio(choices=[*texts_in(labels), question], value=None)
        return pairs(found), html.bars(found), choices

    def heat(self, shown, text, question):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "map.png")
            is_question = bool(question) and text == question.strip()
            look.heat(self.loaded, self.frames(shown), text, path, is_question)
            return served(open_image(path), "PNG")


class Search(Tab):
    """A search of the indexed folder."""

    def __init__(self, loaded):
        super().__init__(loaded)
        self.names = gr.State([])  # (name, time in a video or None) of the results
        self.like_what = gr.State()  # the name of an image, or None for a search by text
        with gr.Row():
            with gr.Column(scale=1):
                text = gr.Textbox(label="What the images show", elem_id="text", submit_btn=True)
                also = gr.Textbox(
                    label="and", placeholder="one per line", lines=1, max_lines=5, elem_id="and"
                )
                without = gr.Textbox(
                    label="not", placeholder="one per line", lines=1, max_lines=5, elem_id="not"
                )
                photo = Photo(label="like this image", sources=CAMERA, height=160, elem_id="like-photo")
                least = gr.Slider(0, 1, 0, step=0.01, label="Threshold", elem_id="threshold")
                top = gr.Slider(1, MOST_RESULTS, 12, step=1, label="Results")
            with gr.Column(scale=3):
                self.status = gr.HTML(elem_id="status")
                with gr.Row(visible=False) as self.chosen:
                    large = dict(show_label=False, interactive=False, height=360, buttons=[])
                    self.image = gr.Image(elem_id="large", scale=2, **large)
                    self.played = Clip(elem_id="played", scale=2, visible=False, **large)
                    with gr.Column(scale=1):
                        self.name = gr.Textbox(
                            label="Path in the indexed folder", buttons=["copy"], elem_id="name"
                        )
                        more = gr.Button("More like this", elem_id="more", variant="primary")
                self.gallery = gr.Gallery(columns=4, height="auto", elem_id="results", **STRIP)
        asked = [text, also, without, photo, least, top]
        found = [self.answer, self.gallery, self.status, self.names, self.like_what, self.chosen]
        self.on([text.submit, also.submit, without.submit, photo.upload], self.search, asked, found, "search")
        self.on([least.release, top.release], self.again, [self.like_what, *asked], found)
        self.on([more.click], self.like, [self.name, least, top], found, "like")
        at = gr.Number(visible=False)
        large = [self.name, self.chosen, self.image, self.played, at]
        opened = self.on([self.gallery.select], self.open, [self.names], large)
        opened.then(None, [at], None, js=SEEK.replace("WHICH", "played"), api_visibility="private")

    def search(self, text, also, without, photo, least, top):
        wanted = [*texts_in(text), *texts_in(also)]
        return self.show(
            search.search(self.loaded, wanted, texts_in(without), photo, least, self.count(top)), least
        )

    def like(self, name, least, top):
        found = search.like(self.loaded, name or "", least, self.count(top))
        return self.show(found, least, name)

    def again(self, name, *asked):
        return self.like(name, *asked[-2:]) if name else self.search(*asked)

    def count(self, top):
        if not 1 <= top <= MOST_RESULTS:
            raise ValueError(f"{top} results: give 1 to {MOST_RESULTS}")
        return int(top)

    def show(self, found, least, name=None):
        """The outputs of a search from its Found. `name` is the image that the results are like, if any."""
        results = [result._asdict() for result in found.results]
        for result in results:
            result["score"] = round(result["score"], 4)
        what = f"{len(results)} of {found.images:,} images"
        if not results:
            what = f"Nothing scores {least:.2f} or more; the best image scores {found.best:.2f}"
        like = f", like {name}" if name else ""
        tiles = gallery(search.tiles(self.loaded, found.results))
        names = [(result.name, result.at) for result in found.results]
        status = html.line(f"{what}{like}.")
        return (
            dict(results=results, best=round(found.best, 4)),
            tiles,
            status,
            names,
            name,
            gr.Row(visible=False),
        )

    def open(self, names, event: gr.SelectData):
        name, at = names[event.index]
        is_video = at is not None
        image = None if is_video else served(search.large(self.loaded, name))
        video = lent(search.path_of(self.loaded, name)) if is_video else None
        shown = gr.Row(visible=True), gr.Image(image, visible=not is_video), Clip(video, visible=is_video)
        return name, *shown, at


class Watch(Tab):
    """The segments of a video."""

    def __init__(self, loaded, example=None):
        super().__init__(loaded)
        self.video, self.at = gr.State(), gr.Number(visible=False)
        self.starts, self.equal_starts, self.found_at = gr.State([]), gr.State([]), gr.State([])
        with gr.Row():
            with gr.Column(scale=1):
                clip = Clip(show_label=False, sources=["upload"], height=300, elem_id="watched")
                demo = gr.Button("The demo video", visible=example is not None, elem_id="demo")
            with gr.Column(scale=2):
                text = gr.Textbox(label="Find a moment", submit_btn=True, elem_id="moment")
                self.line = gr.HTML(elem_id="line")
                options = dict(height="auto", elem_classes="words", **STRIP)
                self.moments = gr.Gallery(columns=4, elem_id="moments", **options)
        self.status = gr.HTML(elem_id="video-status")
        with gr.Row():
            with gr.Column():
                gr.HTML(html.line("Selective: cut where the meaning changes"))
                self.strip = gr.Gallery(columns=3, elem_id="strip", **options)
            with gr.Column():
                gr.HTML(html.line("Uniform: as many segments, all of one length"))
                self.equal = gr.Gallery(columns=3, elem_id="equal", **options)
        read = [self.answer, self.strip, self.equal, self.video, self.status, self.starts, self.equal_starts]
        self.on([clip.change], self.watch, [clip], [*read, self.line, self.moments], "watch")
        sought = [self.answer, self.line, self.moments, self.found_at]
        self.on([text.submit], self.search, [clip, self.video, text], sought, "moments")
        self.on([demo.click], lambda: str(Path(example).resolve()), [], [clip])
        for gallery, times in (
            (self.strip, self.starts),
            (self.equal, self.equal_starts),
            (self.moments, self.found_at),
        ):
            sought = self.on([gallery.select], self.time_of, [times], [self.at])
            sought.then(None, [self.at], None, js=SEEK.replace("WHICH", "watched"), api_visibility="private")

    def watch(self, path, progress=gr.Progress(track_tqdm=True)):  # noqa: B008
        """The outputs of `/watch`: the segments of a video, cut selectively and uniformly."""
        if not path:
            return None, [], [], None, "", [], [], "", []
        video = watch.read(self.loaded, path)
        answer, tiles, starts = {}, [], []
        for name, edges in (("selective", video.changes), ("uniform", video.equal)):
            found = watch.segments(self.loaded, video, edges)
            answer[name] = [segment._asdict() for segment in found]
            tiles.append(gallery(watch.tiles(path, found)))
            starts.append([segment.start for segment in found])
        status = html.line(f"{len(video.changes) - 1} decodes in {video.end:.1f} s. {video.report}.")
        return answer, *tiles, video, status, *starts, "", []

    def search(self, path, video, text):
        """The outputs of `/moments`: the timeline and the best moments of a text."""
        if video is None:
            raise ValueError("give a video first")
        text = " ".join(texts_in(text))
        if not text:
            raise ValueError("find what? type what the moment shows")
        scores, found = watch.search(self.loaded, video, text)
        line = html.timeline(scores, video.changes, video.times, video.end, found[:3])
        best = found[:4]
        tiles = gallery(watch.moment_tiles(path, best))
        return [moment._asdict() for moment in found], line, tiles, [moment.at for moment in best]

    def time_of(self, times, event: gr.SelectData):
        return times[event.index]
