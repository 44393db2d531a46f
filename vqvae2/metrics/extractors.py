"""torch-fidelity's feature networks, with weights downloaded or in a local file; no code is ever unpickled.

torch-fidelity 0.4.0 reads local files as pickles, which can run any program, opens CLIP's TorchScript
archives, which are programs, and for DINOv2 runs what GitHub serves. Here files are read as tensors only.
"""

import os
import pickle
import re
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_clip import MODEL_METADATA as CLIP_FILES
from torch_fidelity.feature_extractor_clip import MODEL_URLS as CLIP_URLS
from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP, build_model
from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA as DINO_NAMES
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.utils import create_feature_extractor
from torchvision.models import VGG16_Weights

from vqvae2.metrics.dinov2 import dinov2
from vqvae2.metrics.labels import INCEPTION, VGG

URLS = {
    INCEPTION: URL_INCEPTION_V3,
    VGG: VGG16_Weights.IMAGENET1K_V1.url,
    **CLIP_URLS,
    **{
        name: f"https://dl.fbaipublicfiles.com/dinov2/{file}/{file}_pretrain.pth"
        for name, file in DINO_NAMES.items()
    },
}

# What reading a file of weights raises when it is damaged or something else.
DAMAGE = (
    *(OSError, RuntimeError, EOFError, TypeError, AttributeError, LookupError),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)

_TIMEOUT_S = 30.0  # for connecting, and without a byte
_POSITIONS = ("visual.positional_embedding", "visual.attnpool.positional_embedding", "pos_embed")

# What tells the networks of a family apart: the shape of the position embeddings, and the number of features.
_SHAPES = {
    "clip-rn50": ((50, 2048), 1024),
    "clip-rn101": ((50, 2048), 512),
    "clip-rn50x4": ((82, 2560), 640),
    "clip-rn50x16": ((145, 3072), 768),
    "clip-rn50x64": ((197, 4096), 1024),
    "clip-vit-b-32": ((50, 768), 512),
    "clip-vit-b-16": ((197, 768), 512),
    "clip-vit-l-14": ((257, 1024), 768),
    "clip-vit-l-14-336px": ((577, 1024), 768),
    "dinov2-vit-s-14": ((1, 1370, 384), 384),
    "dinov2-vit-b-14": ((1, 1370, 768), 768),
    "dinov2-vit-l-14": ((1, 1370, 1024), 1024),
    "dinov2-vit-g-14": ((1, 1370, 1536), 1536),
}


class _Clip(FeatureExtractorCLIP):
    """CLIP's image tower as torch-fidelity builds and asks it, from tensors."""

    def __init__(self, name: str, layers: list[str], weights: dict[str, Tensor]) -> None:
        FeatureExtractorBase.__init__(self, name, layers)
        self.feature_extractor_internal_dtype = torch.float32
        wanted = {
            key: value for key, value in weights.items() if key.startswith(("visual.", "text_projection"))
        }
        self.model = build_model(wanted, torch.float32)
        self.resolution = self.model.visual.input_resolution


class _Dino(FeatureExtractorDinoV2):
    """DINOv2 as torch-fidelity asks it, from tensors."""

    def __init__(self, name: str, layers: list[str], weights: dict[str, Tensor]) -> None:
        FeatureExtractorBase.__init__(self, name, layers)
        self.feature_extractor_internal_dtype = torch.float32
        self.model = dinov2(weights)


def create_extractor(name: str, layers: list[str], weights: str | None) -> nn.Module:
    """A registered feature network, frozen, on the CPU.

    Args:
        name: in torch-fidelity's registry.
        layers: what it is to give, in this order.
        weights: file of its weights. A state dict, or for CLIP one of OpenAI's TorchScript archives, of which
            the tensors are read and no code is run. None leaves it to the network to say what it needs.

    Raises:
        any of DAMAGE: the file does not hold such weights.
        ValueError: it holds those of another network of the family, or the network says what it needs.
    """
    # PyTorch's own switch, read at each load: no torch.load in here unpickles code, whatever its caller says.
    with mock.patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):
        if name not in _SHAPES or weights is None:
            return create_feature_extractor(
                name, layers, cuda=False, verbose=False, feature_extractor_weights_path=weights
            )
        tensors = read_tensors(Path(weights))
    _check_shapes(name, tensors, weights)
    extractor = (_Clip if name in CLIP_URLS else _Dino)(name, layers, tensors)
    return extractor.requires_grad_(False).eval()


def download(name: str) -> str:
    """Path of the published weights, which are downloaded if they are not in torch.hub's folder yet.

    Raises:
        OSError, RuntimeError, http.client.HTTPException: no download, or not the published weights.
    """
    url = URLS[name]
    file = f"{name}-{CLIP_FILES[name]['hash']}.pt" if name in CLIP_FILES else url.rpartition("/")[2]
    path = Path(torch.hub.get_dir(), "checkpoints", file)  # where torch-fidelity keeps them too
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sha256 = re.search(r"-([0-9a-f]{8,64})\.\w+$", file)  # torch.hub's convention; DINOv2's have none
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_TIMEOUT_S)
        try:
            torch.hub.download_url_to_file(url, str(path), sha256 and sha256[1])
        finally:
            socket.setdefaulttimeout(before)
    return str(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that was saved with `torch.save`, or of a TorchScript archive, by name.

    Raises:
        any of DAMAGE: it is something else.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            folder = archive.namelist()[0].partition("/")[0]
            if f"{folder}/constants.pkl" in archive.namelist():  # TorchScript has it, torch.save has not
                with archive.open(f"{folder}/data.pkl") as data:
                    return dict(_tensors_below(_TensorsOnly(data, archive, folder).load()))
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise RuntimeError("it is no dictionary of tensors")
    return found


def _check_shapes(name: str, weights: dict[str, Tensor], path: str) -> None:
    positions = next((weights[key].shape for key in _POSITIONS if key in weights), None)
    if positions is None:
        raise RuntimeError("it has no position embeddings")
    width = weights["text_projection"].shape[1] if name in CLIP_URLS else positions[-1]
    found = (tuple(positions), width)
    if found != _SHAPES[name]:
        others = [other for other, shapes in _SHAPES.items() if shapes == found]
        advice = f" It fits '{others[0]}'." if others else ""
        raise ValueError(
            f"{path} holds position embeddings {list(positions)} and gives {width} features, '{name}' has "
            f"{list(_SHAPES[name][0])} and {_SHAPES[name][1]}.{advice}"
        )


class _Part:
    """Replaces an object of a TorchScript class: only its attributes."""


class _TensorsOnly(pickle.Unpickler):
    """Reads what a TorchScript archive holds: numbers, texts, tensors, containers and `_Part`s of them.

    By hand, because `torch.load` refuses such archives and `torch.jit.load` runs their code.
    """

    _DTYPES = {  # noqa: RUF012
        "BoolStorage": torch.bool,
        "ByteStorage": torch.uint8,
        "IntStorage": torch.int32,
        "LongStorage": torch.int64,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "FloatStorage": torch.float32,
        "DoubleStorage": torch.float64,
    }

    def __init__(self, data: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(data)
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Part
        if module == "torch" and name in self._DTYPES:
            return self._DTYPES[name]
        if module == "torch.jit._pickle":  # build_intlist and its like, which mark the type of a list
            return lambda values, *_: values
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda values, start, size, stride, *_: values.as_strided(size, stride, start).clone()
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which holds no tensor")

    def persistent_load(self, storage: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        _, dtype, key, _, _ = storage
        values = bytearray(self._archive.read(f"{self._folder}/data/{key}"))
        return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)


def _tensors_below(part: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Part):
            yield from _tensors_below(value, f"{prefix}{name}.")
