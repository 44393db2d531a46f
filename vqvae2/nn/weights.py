"""What a network's weights are recognised by."""

import hashlib

import torch
from torch import nn


def fingerprint(network: nn.Module) -> str:
    """Hex SHA-256 of the names, shapes and values of all parameters and buffers of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
