"""A model from one ONNX file: image tower and predictor run by ONNX Runtime, the text tower by torch.

    model = Exported("model.int8.onnx")
    model.encode_image(["a.jpg", image])          # (B, Dt) float32 unit rows
    model.encode_text(["a dog on a beach"])       # (M, Dt) float32 unit rows

`python -m apps.export` writes the file. Its metadata hold the preprocessing of images, the parameters of the
text head, and the public config and record of the model.
"""

import base64
import json
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from models.dataset import check_file
from models.distributed import choose_device
from models.files import sha256
from models.predictor import TEXT_HEADS
from models.text import TextEncoder
from models.vision import pixels
from models.vljepa import VLJEPA

FORMAT = "vl-jepa onnx 3"  # metadata key 'format'; the values of all other keys are JSON
WORDS = dict(resize=("shortest", "squash"), interpolation=("bicubic", "bilinear"), margin=("round", "floor"))
LARGEST = 2**31 - 1  # bytes of a protobuf message, so of one file


class Exported:
    """The verbs of VLJEPA over an ONNX file. `config` and `record` are those of the exported model, `vision`
    is an ExportedTower, whose rows are predictions already."""

    knows_training_images = False
    reads_order = False
    encode_image = VLJEPA.encode_image
    encode_text = VLJEPA.encode_text
    classify = VLJEPA.classify
    frames = VLJEPA.frames

    def __init__(self, path, device="cpu"):
        """`device` is that of the text tower; ONNX Runtime stays on the CPU. Raises FileNotFoundError when
        there is no such file; ValueError when it is damaged or foreign, keeps weights in other files, or was
        made with another text tower than the one here."""
        session, preprocess, self.config, self.record, text_head = read(path)
        self.recipe = self.config["recipe"]
        self.vision = ExportedTower(path, session, preprocess, self.config["towers"]["vision"]["name"])
        expected = self.config["towers"]["text"]
        self.text = TextEncoder(choose_device(device), expected["name"], download=False)
        self.text_head = text_head.to(self.text.device)
        if self.text.sha256 != expected["sha256"]:
            raise ValueError(
                f"{path}: made with the text tower {expected['name']} of SHA-256 {expected['sha256']}, but "
                f"the one here has {self.text.sha256}; their embeddings do not mix"
            )

    @torch.no_grad()
    def project_text(self, rows):
        """As VLJEPA.project_text."""
        return self.text_head(rows.to(self.text.device))

    def predict(self, features, places=None, question=None):
        """(B, Dt) rows of `vision`, on the text tower's device. ValueError when there is a question."""
        if question is not None:
            raise ValueError(f"{self.vision.path}: takes no question; take the run folder (--run)")
        return features.to(self.text.device)


class ExportedTower:
    """The tower contract (models/vision), with the predictor included in `encode`."""

    clip_frames = 1
    places_dim = 0
    has_text = False

    def __init__(self, path, session, preprocess, name):
        self.path = Path(path)
        self.session = session
        self.preprocess = preprocess
        self.name = name
        self.dim = session.get_outputs()[0].shape[1]
        self.sha256 = self.key = sha256(path)  # the file holds the preprocessing too
        self.device = torch.device("cpu")

    @property
    def parts(self):
        return (self,)

    def join(self, rows):
        """(B, Dt) from a list with the rows of each of `parts`."""
        return rows[0]

    def encode(self, images, places=False):
        """(B, 3, S, S) float32, or (B, D) for joined towers, -> (B, Dt) float32 unit rows on the CPU.

        One image at a time: int8 scales are taken over the whole input, so in a batch a row would depend on
        its neighbours. Raises ValueError when the session fails, for embeddings that are not finite, and when
        asked for places."""
        if places:
            raise ValueError(f"{self.path}: has no places; take the run folder (--run)")
        try:
            rows = [self.session.run(None, {"pixels": image.cpu().numpy()})[0] for image in images.split(1)]
        except _runtime_errors() as error:
            raise ValueError(
                f"{self.path}: ONNX Runtime fails on pixels {tuple(images.shape)} ({_first_line(error)})"
            ) from None
        rows = torch.cat([torch.from_numpy(row) for row in rows])  # (B, Dt)
        if not torch.isfinite(rows).all():
            raise ValueError(f"{self.path}: gives embeddings that are not finite; export it again")
        return rows

    def encode_text(self, captions):
        """Raises ValueError: the file holds no text tower."""
        raise ValueError(f"{self.path}: holds no text tower of {self.name}")

    def release(self):
        """Does nothing: the session is small."""


def preprocessing(specs):
    """The function from a PIL RGB image to pixels, (3, S, S) float32, or one flat row for several towers.
    `specs` are the `pixel_spec` of each tower. LookupError, TypeError or ValueError when one is malformed."""
    if not all(_is_sound(spec) for spec in specs):
        raise ValueError(f"preprocessing {specs}")
    transforms = [pixels.preprocessing(spec) for spec in specs]
    return partial(pixels.joined_pixels, transforms) if len(transforms) > 1 else transforms[0]


def _is_sound(spec):
    """Whether a `pixel_spec` is one that `models.vision.pixels` can follow, in bounded memory."""
    size, scale = spec["size"], spec.get("scale") or spec["size"]
    numbers = [[float(value) for value in spec[key]] for key in ("mean", "std")]
    return (
        type(size) is type(scale) is int
        and 0 < scale <= 4 * size
        and [len(three) for three in numbers] == [3, 3]
        and all(spec.get(key, options[0]) in options for key, options in WORDS.items())
        and set(spec) <= {"size", "scale", "mean", "std", *WORDS}
    )


def pixels_shape(specs):
    """The shape of what `preprocessing(specs)` gives: (3, S, S), or (D,) for several towers."""
    sizes = [spec["size"] for spec in specs]
    return (3 * sum(size**2 for size in sizes),) if len(sizes) > 1 else (3, sizes[0], sizes[0])


def read(path):
    """(session, preprocess, config, record, text head) of a file of `apps.export`. Raises as `Exported` does.
    Nothing outside the file is read, and its graph is not run before its format is checked."""
    import onnxruntime

    data, metadata = _one_file(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors arrive as exceptions
    try:
        specs, config, record = (json.loads(metadata[key]) for key in ("preprocess", "config", "record"))
        preprocess = preprocessing(specs)
        towers = [config["towers"][kind][key] for kind in ("vision", "text") for key in ("name", "sha256")]
        if not all(isinstance(fact, str) for fact in towers) or not isinstance(config["recipe"], dict):
            raise TypeError("its towers or recipe are malformed")
        text_head = _text_head(config["predictor"], json.loads(metadata["text_head"]))
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (inputs,), (outputs,) = session.get_inputs(), session.get_outputs()
        shape = pixels_shape(specs)
        if (inputs.name, *inputs.shape[1:], len(outputs.shape)) != ("pixels", *shape, 2):
            raise ValueError(f"it takes {inputs.name} {inputs.shape}, and its metadata describe {shape}")
    except (
        *_runtime_errors(),
        ValueError,
        LookupError,
        TypeError,
        OverflowError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise _foreign(path, f"{type(error).__name__}: {_first_line(error)}") from None
    return session, preprocess, config, record, text_head


def _text_head(sizes, encoded):
    """The text head of a predictor of these sizes, from its safetensors in base64."""
    state = safetensors.torch.load(base64.b64decode(encoded))
    with torch.device("meta"):
        head = TEXT_HEADS[sizes.get("text_head", "none")](sizes["text_dim"], sizes["dropout"])
    head.load_state_dict(state, assign=True)
    return head.eval().requires_grad_(False)


def _one_file(path):
    """(content, {key: text} of its metadata). Raises as `Exported` does."""
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file; make one with python -m apps.export --out {path}")
    path = check_file(path)
    data = path.read_bytes() if path.stat().st_size <= LARGEST else b""
    try:
        model = ModelProto.FromString(data)
    except DecodeError as error:
        raise _foreign(path, error) from None
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if metadata.get("format") != FORMAT:
        raise _foreign(path, f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
    if any(tensor.external_data or tensor.data_location for tensor in _tensors(model)):
        raise ValueError(
            f"{path}: keeps weights in other files, which are not read; a model of this project is one file"
        )
    return data, metadata


def _runtime_errors():
    """What ONNX Runtime raises for a graph or an input that it cannot run: they share no base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    graph = (ort.InvalidGraph, ort.InvalidProtobuf, ort.NotImplemented)
    return (ort.Fail, ort.InvalidArgument, ort.RuntimeException, *graph)


def _tensors(message):
    """Every TensorProto in a protobuf message, at any depth."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if hasattr(value, "__len__") else [value]:
            if field.message_type.name == "TensorProto":
                yield part
            else:
                yield from _tensors(part)


def _foreign(path, reason):
    return ValueError(
        f"{path}: not a whole model of this project ({reason}); make one: python -m apps.export --out {path}"
    )


def _first_line(error):
    return (str(error).splitlines() or ["no reason given"])[0][:300]
