"""Files that visitors send and are sent, and what they are told.

Gradio would decode an upload before this project's checks see it, and fetch an address that is sent in place
of a file. Photo and Clip pass the path of an upload on as it is, for `open_image` and `read_frames`."""

import hashlib
import html
import io
import os
import re
import shutil
from functools import wraps
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

from models.files import printable, replacing
from models.script import said

# A path that begins at the root, up to its last folder.
FOLDERS = re.compile(r"(?<![\w./])/(?:[^/\s'\":;,]+/)+")


class Upload:
    """The part that Photo and Clip share, in front of a component of Gradio."""

    def preprocess(self, payload):
        return payload and payload.path

    async def async_move_resource_to_block_cache(self, source):
        if source is not None and re.match(r"[a-z]+://", str(source), re.IGNORECASE):
            raise gr.Error("an address is not fetched; send the file itself", print_exception=False)
        return await super().async_move_resource_to_block_cache(source)


class Photo(Upload, gr.Image):
    """An image by upload, paste or camera. Its value is a path."""

    def get_block_name(self):
        return "image"


class Clip(Upload, gr.Video):
    """A video by upload or camera. Its value is a path. It is shown as it is: FFmpeg never converts it."""

    def get_block_name(self):
        return "video"

    def postprocess(self, value):
        return value and gr.FileData(path=str(value), orig_name=Path(value).name)


def served(image, form="JPEG"):
    """The path of a PIL image as a file that the page may show: one file for all equal images, written whole.
    Gradio would write it again for each visitor, while others read it."""
    image.save(data := io.BytesIO(), form, quality=90)
    path = Path(get_upload_folder(), hashlib.sha256(data.getvalue()).hexdigest(), f"image.{form.lower()}")
    if path.exists():
        os.utime(path)  # it is deleted by its age
    else:
        with replacing(path) as new:
            new.write_bytes(data.getvalue())
    return str(path)


def lent(path):
    """The path of a link to a video, which the page may then show as it is; of a copy where links cannot be
    made. A hard link would change the times of the file, which the index watches."""
    copy = Path(get_upload_folder(), hashlib.sha256(os.fsencode(path)).hexdigest(), Path(path).name)
    copy.parent.mkdir(exist_ok=True)
    copy.unlink(missing_ok=True)
    try:
        os.symlink(path, copy)
    except OSError:
        shutil.copyfile(path, copy)
    return str(copy)


def telling(function, root):
    """`function`, whose ValueError and OSError become a line on the page: escaped, and with no folder of this
    machine but those below the indexed one, `root`. Any other error is a bug: the page says that it failed,
    and the terminal why."""

    @wraps(function)
    def told(*arguments):
        try:
            return function(*arguments)
        except (OSError, ValueError) as error:
            message = said(error)
            advice = "; send another file" if get_upload_folder() in message else ""
            line = without_folders(message, root) + advice
            raise gr.Error(html.escape(line), print_exception=False) from None

    return told


def without_folders(message, root=""):
    """An error message without the folders in front of file names; those below `root` stay."""
    message = message.replace(f"{root}/", "") if root else message
    return printable(FOLDERS.sub("", message))
