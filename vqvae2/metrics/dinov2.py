"""DINOv2's vision transformer (Oquab et al. 2023, arXiv:2304.07193), as far as its features need it.

torch-fidelity runs the program that GitHub serves under facebookresearch/dinov2, and reads no local file.
This network takes the same weights, by the same names, gives the same features, and runs nothing downloaded.
"""

# B images, T tokens: the class token, then 16 x 16 patches of 14 x 14 pixels; D width.

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HEAD = 64  # width of an attention head in all published networks
_EPSILON = 1e-6  # of the norms


class DinoV2(nn.Module):
    """The class token's features [B, D] of images [B, 3, H, W] in ImageNet's normalisation, H = W.

    Args:
        weights: a published state dict; it says how wide and deep the network is.

    Raises:
        KeyError, RuntimeError: it is a state dict of something else.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        weights = {name: tensor for name, tensor in weights.items() if name != "mask_token"}  # for training
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        gated = "blocks.0.mlp.w12.weight" in weights
        hidden = weights[f"blocks.0.mlp.{'w3' if gated else 'fc2'}.weight"].shape[1]
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty_like(weights["pos_embed"]))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.Sequential(*(_Block(width, hidden, gated) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, _EPSILON)
        self.load_state_dict(weights)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](images)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).mT], 1)
        return self.norm(self.blocks(tokens + self._positions(patches.shape[-1])))[:, 0]

    def _positions(self, side: int) -> Tensor:
        """Position embeddings [1, T, D], resized from the 37 x 37 patches of the training."""
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        trained = round(grid.shape[1] ** 0.5)
        if side == trained:
            return self.pos_embed
        grid = grid.mT.unflatten(2, (trained, trained))
        # The published networks resize by this factor, 0.1 patch too large, not to the size that results.
        factor = (side + 0.1) / trained
        grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
        return torch.cat([first, grid.flatten(2).mT], 1)


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPSILON)
        self.attn = _Attention(width)
        self.ls1 = _Scale(width)
        self.norm2 = nn.LayerNorm(width, _EPSILON)
        self.mlp = _GatedMlp(width, hidden) if gated else _Mlp(width, hidden)
        self.ls2 = _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).unflatten(2, (3, -1, _HEAD)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _GatedMlp(nn.Module):
    """SwiGLU, of the giant network."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)
