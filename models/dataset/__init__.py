"""Rows of a captions file, and the pixels of the images they name.

rows = read_rows("caption.csv")              # [Row(image_name, question, text, line), ...]
train, held_out = split_by_image(names, 0.1, 0)
dataset = VisionTextDataset("caption.csv", vision.preprocess)
pixels, caption = dataset[0]                 # (3, H, W) float32, str
"""

from .archive import VisionTextDataset, split_by_image
from .folders import by_class, expand, image_path, walk
from .frames import FRAMES, clip_times, frame_at, open_clip, open_frames
from .images import (
    FORMATS,
    HEIC_NEEDS,
    MAX_PIXELS,
    check_file,
    date_of,
    format_of,
    image_suffixes,
    is_video,
    open_image,
    upright_rgb,
)
from .lookalikes import Lookalikes
from .rewordings import reworded
from .rows import Row, read_questions, read_rows
from .text_files import read_class_names, read_labels, read_lines, read_text, split_lines
from .views import random_view

__all__ = [
    "FORMATS",
    "FRAMES",
    "HEIC_NEEDS",
    "MAX_PIXELS",
    "Lookalikes",
    "Row",
    "VisionTextDataset",
    "by_class",
    "check_file",
    "clip_times",
    "date_of",
    "expand",
    "format_of",
    "frame_at",
    "image_path",
    "image_suffixes",
    "is_video",
    "open_clip",
    "open_frames",
    "open_image",
    "random_view",
    "read_class_names",
    "read_labels",
    "read_lines",
    "read_questions",
    "read_rows",
    "read_text",
    "reworded",
    "split_by_image",
    "split_lines",
    "upright_rgb",
    "walk",
]
