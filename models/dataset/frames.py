"""From a path to frames."""

from .images import open_image


def open_frames(source):
    """A list of upright RGB PIL images: the frames of an image file (path or binary file object), which are
    one. Raises as `open_image` does."""
    return [open_image(source)]
