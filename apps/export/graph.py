"""A trained model as one ONNX graph: written, quantised, and compared with torch."""

import base64
import json

import onnx
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from models.onnx_file import FORMAT, LARGEST

LIMIT = 1e-4  # largest difference of an embedding's element between torch and ONNX Runtime; 3e-7 was measured
LIMIT_BF16 = 1e-2  # the same for a tower that torch runs in bfloat16: its file is in float32


class Whole(nn.Module):
    """`model.encode_image` of pixels in plain torch operations: (B, 3, S, S), or (B, D) for joined towers, ->
    (B, Dt) unit rows."""

    def __init__(self, model):
        super().__init__()
        self.vision = model.vision
        self.shapes = [torch.Size(part.pixels_shape) for part in model.vision.parts]
        self.towers = nn.ModuleList(part.network for part in model.vision.parts)
        self.predictor = model.predictor

    def forward(self, pixels):
        each = pixels.flatten(1).split([shape.numel() for shape in self.shapes], dim=1)
        each = [x.unflatten(1, shape) for x, shape in zip(each, self.shapes)]  # (B, 3, S, S) per tower
        features = self.vision.join([F.normalize(tower(x), dim=-1) for tower, x in zip(self.towers, each)])
        # The predictor reads the length of two-dimensional rows, which fixes the batch size in the graph.
        return self.predictor(features[:, None])[:, 0]  # (B, Dt)


def noise(model, batch):
    """Random pixels for the towers of a model, always the same: (batch, 3, S, S) float32, or (batch, D) for
    joined towers."""
    return torch.randn(batch, *model.vision.pixels_shape, generator=torch.Generator().manual_seed(0))


def metadata(model):
    """What the file holds beside its graph. All of it is public."""
    specs = [part.pixel_spec for part in model.vision.parts]
    captions = model.predictor.parts().get("captions")
    head = captions.text_head.state_dict() if captions else {}
    encoded = base64.b64encode(safetensors.torch.save(head)).decode()
    public = dict(preprocess=specs, config=model.config, record=model.record, identity=model.identity)
    return public | dict(text_head=encoded)


def write(model, path):
    """Write the float32 file. Raises ValueError when the operations of a tower have no ONNX counterpart, its
    weights need more than one file, or it takes clips or reads their order."""
    name = model.vision.name
    if max(part.clip_frames for part in model.vision.parts) > 1:
        raise ValueError(
            f"{name}: takes clips, and an ONNX file takes images; take a run with an image tower"
        )
    if model.reads_order:
        raise ValueError("--time change reads a video's frames, and an ONNX file one image; take --time mean")
    network = Whole(model).eval()
    size = sum(4 * p.numel() for p in network.state_dict().values())
    if size > 0.95 * LARGEST:
        raise ValueError(
            f"{name}: {size / 1e9:.1f} GB of weights, and an ONNX file holds 2; take a run with a smaller "
            "tower"
        )
    try:
        program = torch.onnx.export(
            network,
            (noise(model, 2),),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=["pixels"],
            output_names=["embedding"],
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(
            f"image tower {name} cannot be exported by torch {torch.__version__}: {reason}"
        ) from None
    _save(program.model_proto, path, metadata(model))


def quantise(path, out):
    """Write the file at `path` with int8 matrix products to `out`: weights quantised per column, inputs at
    run time (dynamic).

    Weights keep 7 bits, because products of 8 and 8 bits overflow on processors without VNNI. Convolutions
    stay float32: int8 for all of them was worse and slower, and static int8 faster but worse still
    (docs/EXPERIMENTS.md, Quantisation)."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)  # required by the quantiser
    products = ["MatMul", "Gemm"]
    quantize_dynamic(prepared, out, op_types_to_quantize=products, per_channel=True, reduce_range=True)
    kept = {
        entry.key: json.loads(entry.value)
        for entry in onnx.load(path).metadata_props
        if entry.key != "format"
    }
    _save(onnx.load(out), out, kept)


def _save(proto, path, facts):
    """Write with this project's metadata and without the exporter's, which name source lines and local
    paths."""
    onnx.helper.set_model_props(
        proto, {"format": FORMAT} | {key: json.dumps(value) for key, value in facts.items()}
    )
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(proto, path)


def check(model, exported, out):
    """The largest difference of an embedding's element between torch and ONNX Runtime, over three random
    images. ValueError when it is over the limit."""
    limit = LIMIT
    if any(part.dtype == torch.bfloat16 for part in model.vision.parts):
        limit = LIMIT_BF16
    generator = torch.Generator().manual_seed(0)
    sizes = ((250, 301), (301, 200), (40, 40))
    arrays = [torch.randint(256, (*s, 3), dtype=torch.uint8, generator=generator).numpy() for s in sizes]
    images = [Image.fromarray(array) for array in arrays]  # files of other preprocessing differ here too
    ours, theirs = model.encode_image(images).cpu(), exported.encode_image(images).cpu()  # (3, Dt)
    difference = (ours - theirs).abs().max().item()
    if not difference <= limit:
        cosine = (ours * theirs).sum(1).min().item()
        raise ValueError(
            f"{out}: not written, since ONNX Runtime's embeddings differ from torch's by {difference:.2g} "
            f"(limit {limit:g}, lowest cosine {cosine:.5f}); try other versions of torch and onnxruntime"
        )
    return difference
