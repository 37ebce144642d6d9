"""Some frames of a video, without decoding all of it.

    with open("clip.mp4", "rb") as file:
        found = frames_at(file, "clip.mp4", lambda end: [0.25 * end, 0.75 * end])  # [(time, PIL image), ...]

All packets are read, and few are decoded. They say when each frame is shown and from which of them decoding
can begin. For each time that is asked for, decoding begins at the key frame
before it, unless it has come as far already.
"""

import logging
from array import array
from bisect import bisect_right
from typing import NamedTuple

from .video import MAX_HOLD, Report, intervals, look_of, reading

log = logging.getLogger(__name__)
SLACK = 1e-6  # seconds; FFmpeg's clock ticks in microseconds, so closer times are the same
INTRA = 1  # FFmpeg's AV_PICTURE_TYPE_I
TRIES = 4  # key frames, each before the last: MPEG-TS and MPEG-PS seek to a byte near a time


class Unreliable(Exception):
    """Why a video is decoded from its beginning on."""


class Packets(NamedTuple):
    """What the packets of a video say. Timestamps are in the time base of the stream."""

    number_of: dict  # {timestamp: number of the packet in the file}
    keys: list  # timestamps of the packets that decoding can begin with, in the order of the file
    last: float  # seconds at which the last frame ends
    trouble: str  # why decoding must begin at the first packet; "" for no reason


def frames_at(file, name, times):
    """[(time, RGB PIL image), ...]: what is on screen at `times(end)`, a function that gives ascending
    seconds for the length of the video. Behind the last frame, that one is shown.

    `file` is a binary file object. The frames are those that decoding everything gives. Where timestamps or
    key frames do not allow to begin in the middle, everything up to the last time is decoded, and that is
    logged. Raises ValueError for what is no video, ends early, or is damaged where it is decoded."""
    packets = _packets_of(file, name)
    try:
        if packets.trouble:
            raise Unreliable(packets.trouble)
        return _seek(file, name, times, packets)
    except Unreliable as why:
        log.info("%s: decoded from its beginning on, since %s", name, why)
    return _decode(file, name, times, packets)


def _packets_of(file, name):
    """The Packets of a video."""
    report = Report()
    number_of, keys, begins, last, trouble = {}, [], array("d"), None, ""
    with reading(file, name, report) as reader:
        for packet in reader.packets():
            at = packet.dts if packet.pts is None else packet.pts
            if not packet.size or packet.is_discard or at is None:
                continue
            if packet.pts is None or at in number_of:
                trouble = "its packets have no timestamps of their own"
            if packet.is_keyframe:
                keys.append(at)
            number_of[at] = len(number_of)
            begins.append(at * float(packet.time_base))
            ends = begins[-1] + ((packet.duration or 0) * float(packet.time_base) or reader.usual)
            last = ends if last is None else max(last, ends)
        if last is None:
            raise ValueError(f"{name}: its frames have no timestamps, so it has no length")
        report.end = last - min(begins)
        reader.check_end()
        reader.check_tail(file)
    begins = sorted(begins)
    if report.restarts or any(b - a > MAX_HOLD for a, b in zip(begins, begins[1:])):
        trouble = "its clock jumps"
    return Packets(number_of, keys, last, trouble or ("" if keys else "it names no key frames"))


def _decode(file, name, times, packets):
    """What `frames_at` gives, by decoding from the first frame on."""
    report = Report()
    found, wanted = [], None
    for end, show in intervals(file, name, report):
        if wanted is None:
            wanted = times(packets.last - report.start)
        while len(found) < len(wanted) and wanted[len(found)] + SLACK < end:
            found.append((wanted[len(found)], show()))
        if len(found) == len(wanted):
            return found
    return found + [(time, show()) for time in wanted[len(found) :]]


def _seek(file, name, times, packets):
    """What `frames_at` gives, by decoding from the key frame before each time on. Raises Unreliable."""
    with reading(file, name, Report()) as reader:
        walk = _Walk(reader, packets)
        found = []
        for time in times(packets.last - walk.start):
            walk.go(time)
            found.append((time, reader.picture(*walk.shown)))
        return found


class _Walk:
    """The decoder at some place of a video."""

    def __init__(self, reader, packets):
        self.reader, self.packets = reader, packets
        self.opened_as = reader.stream.codec_context.sample_aspect_ratio
        self.tick = float(reader.stream.time_base)
        self.now = -1  # number of the packet that was decoded last
        self.landed = 0  # timestamp of the packet at which decoding began
        self.start = None  # timestamp of the first frame, in seconds
        self.decoded = self.frames()
        self.coming = next(self.decoded, None)  # the (frame, Look) after `shown`
        if self.coming is None:
            raise ValueError(f"{reader.name}: not one frame can be decoded")
        self.shown = self.coming
        self.keys = sorted(packets.keys)

    def go(self, time):
        """Make `shown` the (frame, Look) on screen at a time, in seconds from the first frame."""
        until = self.start + time + SLACK
        at = bisect_right(self.keys, until, key=lambda key: key * self.tick) - 1
        if at >= 0 and self.packets.number_of[self.keys[at]] > self.now:
            self.seek(at)
        while self.coming is not None and self.coming[0].time <= until:
            self.shown = self.coming
            self.coming = next(self.decoded, None)

    def seek(self, at):
        """Go to the key frame `self.keys[at]`, or to one before it."""
        reader, number_of = self.reader, self.packets.number_of
        wanted = number_of[self.keys[at]]
        for key in self.keys[at::-1][:TRIES]:
            reader.video.seek(key, stream=reader.stream)
            self.landed = None
            self.decoded = self.frames()
            self.coming = next(self.decoded, None)
            if self.coming and number_of[self.landed] <= wanted:
                break
        else:
            raise Unreliable("it does not seek to its key frames")
        # Frames before a key frame may need others that were not decoded.
        while self.coming and self.coming[0].pts < self.landed:
            self.coming = next(self.decoded, None)
        frame = self.coming and self.coming[0]
        if not frame or frame.pts != self.landed or not frame.key_frame or frame.pict_type != INTRA:
            raise Unreliable("its key frames need the frames before them")

    def frames(self):
        """Yield (frame, Look) from the next key frame of the file on."""
        reader = self.reader
        for packet in reader.demux():
            if self.landed is None and packet.size and not packet.is_keyframe:
                continue
            if packet.size and not packet.is_discard:
                if packet.pts not in self.packets.number_of:
                    raise Unreliable("its timestamps differ after seeking")
                self.now = self.packets.number_of[packet.pts]
                self.landed = packet.pts if self.landed is None else self.landed
            for frame in reader.frames(packet):
                if frame.is_corrupt or frame.time is None:
                    raise Unreliable("a frame is damaged, or has no time")
                self.start = frame.time if self.start is None else self.start
                reader.report.decoded += 1
                reader.report.end = frame.time - self.start  # for the message of an error
                yield frame, look_of(reader.stream, self.opened_as)
