"""The frames of a video file, decoded by FFmpeg (PyAV).

report = Report()
for end, show in intervals(file, "video.mp4", report): ...   # show() is on screen until `end`, in seconds
report.seen == report.decoded + report.left_out.total()
"""

import math
import re
import shlex
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from .display import HDR, look_of, picture
from .images import MAX_PIXELS
from .live import HEAD, PIPED, Gaps, Pipe, camera

MAX_HOLD = 3600.0  # seconds one frame may last; more is a broken clock, and would give millions of copies
BACK = 0.5  # seconds by which timestamps may go back without a new clock: frames are stored out of order
AHEAD = 10.0  # seconds they may skip in formats whose recordings are joined (MPEG-TS, MPEG-PS), as in FFmpeg
MAX_ERRORS = 1000  # in a row while reading a file; the rest of it is given up
TAIL = 1 << 24  # bytes behind the last packet in which another recording may begin; an index lies there too
# A playlist that calls itself a video names other files and addresses: FFmpeg may open none of them.
NO_OTHER_FILES = {"protocol_whitelist": "none"}

# Why frames are left out.
UNDECODABLE = "cannot be decoded"
UNREADABLE = "in a part of the file that cannot be read"
MISSING = "declared by the header, and not in the file"
GAPS = "absent where the frame rate is otherwise constant"
EARLY = "before the first whole picture"
TRIMMED = "cut away by the file's edit list"
UNSHOWN = "not shown by the decoder"
ANOTHER = "or more in another recording joined behind"


@dataclass
class Report:
    """What became of the frames of a video. Complete once the last one has been read."""

    seen: int = 0  # in the file
    decoded: int = 0
    left_out: Counter = field(default_factory=Counter)  # reason -> frames
    repaired: int = 0  # of those decoded: damaged, and completed by the decoder
    restarts: list = field(default_factory=list)  # seconds at which the timestamps start again
    streams: int = 1  # of video; the first one is read
    hdr: str = ""  # PQ or HLG
    start: float = 0.0  # timestamp of the first frame, in seconds
    end: float = 0.0  # seconds from the first frame

    def __str__(self):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.most_common())
        said = [f"{self.seen:,} frames: {self.decoded:,} decoded, {self.left_out.total():,} left out"]
        said[0] += f" ({reasons})" if reasons else ""
        if self.repaired:
            said.append(f"damaged, and completed by the decoder: {self.repaired:,}")
        if self.restarts:
            moments = ", ".join(f"{moment:.1f}" for moment in self.restarts[:5])
            more = f" and {len(self.restarts) - 5} times more" if len(self.restarts) > 5 else ""
            said.append(f"its clock starts again at {moments} s{more}")
        if self.streams > 1:
            said.append(f"the first of {self.streams} video streams")
        if self.hdr:
            said.append(f"HDR ({self.hdr}) shown as SDR: 203 nits are white")
        return "; ".join(said)


def intervals(file, name, report, skip_bad=False):
    """Yield (end, show): when a frame is replaced by the next one, in seconds from the first frame, and a
    function without arguments that gives it as an RGB PIL image.

    `file` is a binary file object, so that FFmpeg never takes its name for an address or a pattern; it may be
    a pipe, and with None the camera `name` is read. `report` is filled in. Raises ValueError for what is no
    video, is damaged or ends early; with `skip_bad` the damaged frames are left out and counted instead."""
    if file is not None and not file.seekable():
        file = Pipe(file)
    with reading(file, name, report, skip_bad) as reader:
        yield from reader.intervals()
        reader.check_gaps()
        reader.check_end()
        if file:
            reader.check_tail(file)


@contextmanager
def reading(file, name, report, skip_bad=False):
    """A `_Reader` of a video, see `intervals`. What FFmpeg cannot read raises ValueError."""
    import av

    is_file = file is not None and file.seekable()
    if is_file:
        file.seek(0)
        if not file.read(1):
            raise ValueError(f"{name}: cannot be read as a video: it is empty")
        file.seek(0)
    try:
        with av.open(file, container_options=NO_OTHER_FILES) if file else camera(name) as video:
            yield _Reader(video, name, report, skip_bad)
    except av.error.FFmpegError as error:
        remedy = f"if a player shows it, convert it: {_ffmpeg(name)} video.mp4"
        if not is_file:
            remedy = f"pipe it in another format: ffmpeg -i VIDEO {PIPED}"
        where = "cannot be read as a video"
        if report.decoded:
            where = f"damaged after {report.end:.1f} s"
            remedy = f"leave out what is damaged with --skip-bad; {remedy}"
        raise ValueError(f"{name}: {where} ({error.strerror}); {remedy}") from None


def length(file):
    """The length in seconds that a video (binary file object) declares, None when it declares none."""
    import av

    with av.open(file, container_options=NO_OTHER_FILES) as video:
        return video.duration / av.time_base if video.duration else None


def _ffmpeg(name):
    """The beginning of a command that reads the file `name`, whatever that name looks like."""
    return f"ffmpeg -i {shlex.quote(f'file:{name}')}"


class _Reader:
    """Reads the first video stream of an open PyAV container once, and fills in the Report."""

    def __init__(self, video, name, report, skip_bad):
        import av

        cover = av.stream.Disposition.attached_pic  # a song's cover art is a video stream of one frame
        streams = [stream for stream in video.streams.video if not stream.disposition & cover]
        if not streams:
            found = ", ".join(stream.type for stream in video.streams) or "nothing"
            raise ValueError(f"{name}: it has no frames, only: {found}")
        if streams[0].codec_context is None:
            raise ValueError(f"{name}: FFmpeg knows no decoder for its pictures")
        width, height = streams[0].codec_context.width, streams[0].codec_context.height
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"{name}: frames of {width} x {height} are over the limit of {MAX_PIXELS:,} pixels"
            )
        report.streams = len(streams)
        self.video, self.stream = video, streams[0]
        self.name, self.report, self.skip_bad = name, report, skip_bad
        # Threads that each decode a frame report errors late, or (VP8) never. Those of slices are exact.
        self.stream.thread_type = "SLICE"
        # Formats whose files may be joined with `cat`, each with a clock of its own. Their header says
        # nothing, and FFmpeg estimates how long they are.
        self.joinable = bool(video.format.flags & av.format.Flags.ts_discont.value)
        rate = self.stream.average_rate or self.stream.guessed_rate or 25
        self.usual = float(1 / rate)  # seconds that a frame lasts
        self.start = None  # timestamp of the first frame, in seconds
        self.first = None  # timestamp of the first packet, in seconds
        self.last = -math.inf  # the greatest timestamp at which a packet ends
        self.gaps = Gaps(self.usual)
        self.now = 0.0  # of the last packet
        self.shift = 0  # from the timestamps of the file to those of one clock, in the stream's time base
        self.read_to = 0  # the byte at which the packets end

    def intervals(self):
        """Yield (end, show) of every frame, and keep `report.end`."""
        report = self.report
        show = None
        began = 0.0  # when the frame on screen came there
        for frame, look in self.decoded():
            if frame.time is None:
                remedy = f"copy it into a container that has them: {_ffmpeg(self.name)} -c copy video.mp4"
                raise ValueError(f"{self.name}: its frames have no timestamps; {remedy}")
            self.start = report.start = frame.time if self.start is None else self.start
            now = frame.time - self.start
            if now > began + MAX_HOLD:
                jump = f"from {began:.1f} s to {now:.1f} s; convert it: {_ffmpeg(self.name)} video.mp4"
                raise ValueError(f"{self.name}: its clock jumps {jump}")
            now = max(now, began)
            if show:
                yield now, show
            show = partial(self.picture, frame, look)
            began = now
            report.end = now + float(frame.duration * frame.time_base if frame.duration else self.usual)
        yield report.end, show

    def picture(self, frame, look):
        """The frame as an RGB PIL image."""
        import av

        try:
            return picture(frame, look)
        except (ValueError, av.error.FFmpegError) as error:
            raise ValueError(f"{self.name}: a frame cannot be shown ({error})") from None

    def decoded(self):
        """Yield (frame, Look), and count what goes in and what comes out."""
        report = self.report
        opened_as = self.stream.codec_context.sample_aspect_ratio
        before = []  # timestamps of packets before the first frame
        for packet in self.packets():
            for frame in self.frames(packet):
                if report.decoded == 0 and (early := sum(at < (frame.pts or 0) for at in before)):
                    report.left_out[EARLY] = early
                report.decoded += 1
                report.repaired += frame.is_corrupt
                look = look_of(self.stream, opened_as)
                report.hdr = report.hdr or HDR.get(look.transfer, "")
                yield frame, look
            if report.decoded == 0 and packet.pts is not None and not packet.is_discard:
                before.append(packet.pts)
        if report.decoded == 0:
            raise ValueError(f"{self.name}: not one frame can be decoded")
        unshown = report.seen - report.decoded - report.left_out.total()
        if unshown > 0:
            report.left_out[UNSHOWN] = unshown
        report.seen = report.decoded + report.left_out.total()

    def demux(self):
        """Yield the packets of the stream as they come. ValueError for another stream that begins in
        between, as in damaged files, which PyAV does not know of."""
        try:
            yield from self.video.demux(self.stream)
        except IndexError:
            raise ValueError(f"{self.name}: damaged, another stream begins in the middle of it") from None

    def packets(self):
        """Yield the packets of the stream, and count them. With `skip_bad`, go on behind what cannot be
        read."""
        import av

        errors = 0
        while errors < MAX_ERRORS:
            try:
                for packet in self.demux():
                    errors = 0
                    self.report.seen += packet.size > 0
                    if packet.is_discard:
                        self.report.left_out[TRIMMED] += 1
                    self.set_clock(packet)
                    self.read_to = max(self.read_to, (packet.pos or 0) + packet.size)
                    yield packet
                return
            except av.error.FFmpegError:
                if not self.skip_bad:
                    raise
                errors += 1
                self.report.seen += 1
                self.report.left_out[UNREADABLE] += 1

    def set_clock(self, packet):
        """Shift the timestamps of a packet so that those of joined recordings are one clock."""
        tick = float(packet.time_base)
        at = packet.dts  # it rises, while `pts` goes back and forth
        if at is None or (packet.pts is not None and abs(packet.pts - at) * tick > AHEAD):
            at = packet.pts  # at a joint, FFmpeg may give one packet both clocks
        if at is None:
            return
        now = (at + self.shift) * tick
        back = now < self.now - max(BACK, 4 * self.usual)
        if self.first is not None and (back or (self.joinable and now > self.now + AHEAD)):
            self.shift = round(self.last / tick) - (at if packet.pts is None else packet.pts)
            began = self.first if self.start is None else self.start
            self.report.restarts.append(self.last - began)
        self.now = (at + self.shift) * tick
        if packet.dts is not None:
            packet.dts += self.shift
        if packet.pts is not None:
            packet.pts += self.shift
            begin = packet.pts * tick
            end = begin + ((packet.duration or 0) * tick or self.usual)
            self.gaps.add(begin, end)
            self.first = begin if self.first is None else self.first
            self.last = max(self.last, end)

    def frames(self, packet):
        """The frames that a packet completes. With `skip_bad`, none when it cannot be decoded."""
        import av

        if packet.size == 0 and packet.dts is not None:
            return []  # the frame before it stays on screen; the empty packet at the end has no time
        try:
            return packet.decode()
        except av.error.FFmpegError:
            if not self.skip_bad:
                raise
            self.report.left_out[UNDECODABLE] += packet.size > 0
            return []

    def check_end(self):
        """Count the frames that the header declares and the file does not hold. Without `skip_bad`,
        ValueError when they last over a second."""
        report = self.report
        missing = 0.0 if self.first is None else self.declared_end() - self.last
        cut_off = missing > max(1, self.usual)
        if cut_off and not self.skip_bad:
            ends = f"it ends at {report.end:.1f} s of {report.end + missing:.1f} s"
            raise ValueError(f"{self.name}: cut off or damaged, {ends}; read what is there with --skip-bad")
        unread = self.stream.frames - report.seen if self.stream.frames else round(missing / self.usual)
        if unread > 0:
            trimmed = "mp4" in self.video.format.name and not cut_off  # FFmpeg passes over such frames
            report.left_out[TRIMMED if trimmed else MISSING] += unread
            report.seen += unread

    def check_gaps(self):
        """Count the frames that were lost between others, without an error of FFmpeg, if those come at a
        constant rate. A variable rate has gaps of its own."""
        count, lost, packets = self.gaps.found()
        if 0 < count < packets / 10:
            self.report.left_out[GAPS] = lost
            self.report.seen += lost

    def declared_end(self):
        """The timestamp, in seconds, at which the stream ends by the header of its file, or 0."""
        stream = self.stream
        if self.joinable:
            return 0.0
        if stream.duration:
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        clock = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""))  # Matroska
        if clock is None:
            return 0.0
        hours, minutes, seconds = map(float, clock.groups())
        return 3600 * hours + 60 * minutes + seconds

    def check_tail(self, file):
        """ValueError when the file begins once more behind its last packet: of recordings joined with `cat`,
        FFmpeg and players read only the first in most formats. With `skip_bad`, that is counted."""
        if self.joinable:
            return
        if file.seekable():
            file.seek(0)
            head = file.read(HEAD)
            file.seek(self.read_to)
            at = file.read(TAIL).find(head)
            place = self.read_to + at
        else:
            while file.read(TAIL):
                pass
            place, at = file.again, file.again - self.read_to
        if at < 0:
            return
        if not self.skip_bad:
            second = f"tail -c +{place + 1} {shlex.quote(str(self.name))}"
            where = f"{self.name}: another recording, joined behind {self.report.end:.1f} s, is not read"
            raise ValueError(f"{where}; split it off: {second} > FILE")
        self.report.left_out[ANOTHER] += 1
        self.report.seen += 1
