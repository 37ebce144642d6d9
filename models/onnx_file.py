"""An exported run: tower and predictor from one ONNX file, labels from the text tower here.

    model = Exported("model.int8.onnx")
    model.encode_image(["a.jpg", image])          # (B, Dt) float32 unit rows, from ONNX Runtime: no image network of torch is built
    model.encode_text(["a dog on a beach"])       # (M, Dt) float32 unit rows

The file is made by `python -m apps.export` and says itself how an image becomes pixels."""

import hashlib
import json
from functools import partial
from pathlib import Path

import torch

from models.dataset import check_file
from models.device import choose as choose_device
from models.text import TextEncoder
from models.vision import joined_pixels, pixels
from models.vljepa import VLJEPA

FORMAT = "vl-jepa onnx 1"  # under the key 'format' of the file's metadata; beside it 'preprocess' and 'state', both JSON
LARGEST = 2**31 - 1  # bytes of a protobuf message: what one file can hold


class Exported:
    """VLJEPA's verbs over an ONNX file. `vision` stands where a VisionEncoder would, `state` is what
    `apps.export` kept of the checkpoint: towers, configuration and recipe, and neither paths nor the names of
    the training images."""

    encode_image, encode_text, classify = VLJEPA.encode_image, VLJEPA.encode_text, VLJEPA.classify

    def __init__(self, path, device="cpu"):
        """FileNotFoundError when there is no such file; ValueError when it is damaged, foreign, keeps its
        weights in other files, or was made with another text tower than the one here. `device` is the text
        tower's; ONNX Runtime stays on the CPU."""
        session, preprocess, self.state = read(path)
        self.vision = ExportedTower(path, session, preprocess, self.state["towers"]["vision"]["name"])
        made_with = self.state["towers"]["text"]
        self.text = TextEncoder(choose_device(device), made_with["name"])
        if self.text.sha256 != made_with["sha256"]:
            raise ValueError(
                f"{path}: made with the text tower {made_with['name']} of SHA-256 {made_with['sha256']}, but the one here has "
                f"{self.text.sha256}; embeddings of the two don't mix"
            )

    def predict(self, image_features):
        """(B, Dt) -> the same on the text tower's device: what the file gives are predictions already."""
        return image_features.to(self.text.device)


class ExportedTower:
    """What `encode_archive` asks of a tower (`.name`, `.key`, `.preprocess`, `.encode`), with the predictor
    behind it."""

    parts = ()

    def __init__(self, path, session, preprocess, name):
        self.path, self.session, self.name = Path(path), session, name
        self.key = hashlib.sha256(
            self.path.read_bytes()
        ).hexdigest()  # pixels too: the file says how they are made
        transforms = [
            partial(pixels, *(spec[key] for key in ("size", "mean", "std", "resize"))) for spec in preprocess
        ]
        self.preprocess = partial(joined_pixels, transforms) if len(transforms) > 1 else transforms[0]

    def encode(self, images):
        """(B, 3, S, S), or (B, P) for joined towers, float32 -> (B, Dt) float32 unit rows on the CPU.

        One image at a time: the scales of dynamic int8 are taken over the whole input, so that an image's row
        would change with its neighbours."""
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

        try:
            rows = [
                torch.from_numpy(self.session.run(None, {"pixels": image.cpu().numpy()})[0])
                for image in images.split(1)
            ]
        except (Fail, InvalidArgument, RuntimeException) as error:
            raise ValueError(
                f"{self.path}: ONNX Runtime can't run it on pixels {tuple(images.shape)} ({_first_line(error)})"
            ) from None
        rows = torch.cat(rows)  # (B, Dt)
        if not torch.isfinite(rows).all():
            raise ValueError(f"{self.path}: gave non-finite embeddings; export it again")
        return rows

    def encode_text(self, captions):
        """None: the text tower that belongs to the image tower is not in the file."""


def read(path):
    """(session, preprocess, state) of a file of `apps.export`. Nothing outside the file is read, and nothing
    in it is run before its format was found to be this project's."""
    import onnxruntime
    from google.protobuf.message import DecodeError
    from onnx import ModelProto
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file; make one with python -m apps.export --out {path}")
    path = check_file(path)
    data = path.read_bytes() if path.stat().st_size <= LARGEST else b""
    foreign = f"{path}: not a whole model of this project; make one with python -m apps.export --out {path}"
    try:
        model = ModelProto.FromString(data)
    except DecodeError as error:
        raise ValueError(f"{foreign} ({error})") from None
    facts = {fact.key: fact.value for fact in model.metadata_props}
    if facts.get("format") != FORMAT:
        raise ValueError(f"{foreign} (its format is {facts.get('format')!r}, not {FORMAT!r})")
    if any(tensor.external_data or tensor.data_location for tensor in _tensors(model)):
        raise ValueError(
            f"{path}: keeps weights in other files, which are not read; a model of this project is one file"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = (
        torch.get_num_threads(),
        4,
    )  # errors come as exceptions
    try:
        preprocess, state = json.loads(facts["preprocess"]), json.loads(facts["state"])
        towers = [state["towers"][kind][fact] for kind in ("vision", "text") for fact in ("name", "sha256")]
        numbers = [value + 0.0 for spec in preprocess for value in spec["mean"] + spec["std"]]
        sizes = [
            spec["size"]
            for spec in preprocess
            if spec["resize"] in ("shortest", "squash") and type(spec["size"]) is int
        ]
        shape = [3 * sum(size**2 for size in sizes)] if len(sizes) > 1 else [3, sizes[0], sizes[0]]
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (pixels,), (embedding,) = session.get_inputs(), session.get_outputs()
        fits = (pixels.name, pixels.shape[1:], len(embedding.shape), len(numbers)) == (
            "pixels",
            shape,
            2,
            6 * len(sizes),
        )
        fits = (
            fits
            and all(isinstance(fact, str) for fact in towers)
            and all(len(spec["mean"]) == 3 for spec in preprocess)
        )
    except (
        ort.Fail,
        ort.InvalidArgument,
        ort.InvalidGraph,
        ort.InvalidProtobuf,
        ort.NotImplemented,
        ort.RuntimeException,
        ValueError,
        LookupError,
        TypeError,
        OverflowError,
    ) as error:
        raise ValueError(f"{foreign} ({type(error).__name__}: {_first_line(error)})") from None
    if not fits:
        raise ValueError(
            f"{foreign} (it takes {pixels.name} {pixels.shape}, and its metadata speak of {shape})"
        )
    return session, preprocess, state


def _tensors(message):
    """Every TensorProto inside a protobuf message, however deep: initializers, attributes, subgraphs,
    functions."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if hasattr(value, "__len__") else [value]:
            if field.message_type.name == "TensorProto":
                yield part
            else:
                yield from _tensors(part)


def _first_line(error):
    return (str(error).splitlines() or ["no reason given"])[0][:300]
