"""DINOv2's features (Oquab et al. 2023, arXiv:2304.07193), by torchvision's vision transformer.

torch-fidelity runs the program that GitHub serves under facebookresearch/dinov2, and reads no local file;
timm resizes the positions otherwise. Here the published weights are read as tensors.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

IMAGE_SIZE = 224  # pixels that torch-fidelity shows it
_HEAD = 64  # width of an attention head in all published networks
_NAMES = {  # published, in torchvision
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.qkv.weight": "self_attention.in_proj_weight",
    "attn.qkv.bias": "self_attention.in_proj_bias",
    "attn.proj": "self_attention.out_proj",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
}


def dinov2(weights: dict[str, Tensor]) -> nn.Module:
    """The class token's features [B, D] of images [B, 3, 224, 224] in ImageNet's normalisation.

    Args:
        weights: a published state dict; it says how wide and deep the network is.

    Raises:
        LookupError, RuntimeError: it is a state dict of something else.
    """
    patches = weights["patch_embed.proj.weight"]
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    gated = "blocks.0.mlp.w12.weight" in weights
    last = "mlp.w3" if gated else "mlp.fc2"
    width, hidden = weights[f"blocks.0.{last}.weight"].shape
    network = VisionTransformer(IMAGE_SIZE, patches.shape[-1], depth, width // _HEAD, width, hidden)
    network.heads = nn.Identity()
    state = {f"encoder.ln.{name}": weights[f"norm.{name}"] for name in ("weight", "bias")}
    state |= {f"conv_proj.{name}": weights[f"patch_embed.proj.{name}"] for name in ("weight", "bias")}
    state["class_token"] = weights["cls_token"]
    state["encoder.pos_embedding"] = _positions(weights["pos_embed"], IMAGE_SIZE // patches.shape[-1])
    for i, layer in enumerate(network.encoder.layers):
        if gated:
            layer.mlp = _GatedMlp(width, hidden)
        prefix = f"blocks.{i}."
        block = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        for scale, part in (("ls1.gamma", "attn.proj"), ("ls2.gamma", last)):  # torchvision has no scales
            gamma = block.pop(scale)
            block[f"{part}.weight"] = gamma[:, None] * block[f"{part}.weight"]
            block[f"{part}.bias"] = gamma * block[f"{part}.bias"]
        for name, tensor in block.items():
            whole, (part, _, kind) = _NAMES.get(name), name.rpartition(".")
            state[f"encoder.layers.encoder_layer_{i}.{whole or f'{_NAMES.get(part, part)}.{kind}'}"] = tensor
    network.load_state_dict(state)
    return network


def _positions(embeddings: Tensor, side: int) -> Tensor:
    """Position embeddings [1, 1 + side², D], resized from the 37 x 37 patches of the training."""
    first, grid = embeddings[:, :1], embeddings[:, 1:]
    trained = round(grid.shape[1] ** 0.5)
    grid = grid.mT.unflatten(2, (trained, trained))
    # The published networks resize by this factor, 0.1 patch too large, not to the size that results.
    factor = (side + 0.1) / trained
    grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([first, grid.flatten(2).mT], 1)


class _GatedMlp(nn.Module):
    """SwiGLU, of the giant network."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)
