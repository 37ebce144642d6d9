"""What reading a video without an end needs: pipes, cameras, and memory that does not grow.

file = Pipe(open(0, "rb", buffering=0))
with camera("/dev/video0") as video: ...        # an open PyAV container
gaps = Gaps(1 / 25)                             # seconds that a frame usually lasts
gaps.add(begin, end)                            # of each packet
count, lost, packets = gaps.found()
"""

import heapq

REORDERED = 64  # packets among which those stored out of order are sorted; codecs reorder 16 at most
HEAD = 12  # bytes that tell the beginning of a recording
CAMERAS = "v4l2"  # FFmpeg's name for the cameras of Linux
PIPED = "-f matroska - | python -m apps.video watch -"


class Pipe:
    """A binary file object that is read once, from front to back. `again` is the place of the last bytes
    that equal its first ones, as where another recording begins; -1 before there are any."""

    def __init__(self, file):
        self.file = file
        self.head = self.last = b""
        self.place = 0
        self.again = -1

    def seekable(self):
        return False

    def read(self, size):
        """Up to `size` bytes, as soon as there are some; b"" at the end."""
        data = self.file.read(size)
        seen = self.last + data
        start = self.place - len(self.last)
        self.head = self.head or data[:HEAD]
        at = seen.rfind(self.head)
        if start + at > 0 and at >= 0:
            self.again = start + at
        self.last = seen[-HEAD + 1 :]
        self.place += len(data)
        return data


def camera(name):
    """The open PyAV container of a device such as /dev/video0. ValueError where FFmpeg was built without
    V4L2, as in PyAV's wheels."""
    import av

    if CAMERAS not in av.formats_available:
        raise ValueError(f"{name}: this PyAV reads no cameras; pipe it: ffmpeg -f v4l2 -i {name} {PIPED}")
    return av.open(name, format=CAMERAS)


class Gaps:
    """The gaps between packets of which REORDERED are kept, so that any number takes the same memory."""

    def __init__(self, usual):
        self.usual = usual  # seconds that a packet lasts
        self.waiting = []  # (begin, end) in seconds, a heap
        self.end = None  # of the packet that came last in time
        self.packets = self.count = self.lost = 0

    def add(self, begin, end):
        self.packets += 1
        heapq.heappush(self.waiting, (begin, end))
        if len(self.waiting) > REORDERED:
            self._next()

    def _next(self):
        begin, end = heapq.heappop(self.waiting)
        gap = 0.0 if self.end is None else begin - self.end
        if gap > self.usual / 2:
            self.count += 1
            self.lost += round(gap / self.usual)
        self.end = end

    def found(self):
        """(gaps over half a frame, frames that they hold, packets). Call it after the last packet."""
        while self.waiting:
            self._next()
        return self.count, self.lost, self.packets
