"""VQ-GAN's encoder and decoder once more, from their description: float64, no layer of torch, one image.

Weights come as an iterator in the order in which the layers see the image; none may be left.
"""

import math

import torch


def conv(x, weight, bias, *, stride=1, before=0, after=0):
    """Every output value by itself: [C, H, W] with `before` and `after` rows and columns of zeros."""
    out, _, k, _ = weight.shape
    c, h, w = x.shape
    padded = x.new_zeros(c, h + before + after, w + before + after)
    padded[:, before : before + h, before : before + w] = x
    height, width = ((side + before + after - k) // stride + 1 for side in (h, w))
    y = x.new_zeros(out, height, width)
    for row in range(height):
        for column in range(width):
            patch = padded[:, row * stride : row * stride + k, column * stride : column * stride + k]
            y[:, row, column] = (weight * patch).sum((1, 2, 3)) + bias
    return y


def group_norm(x, weight, bias, groups):
    parts = []
    for part in x.chunk(groups):
        mean = part.mean()
        parts.append((part - mean) / ((part - mean) ** 2).mean().add(1e-6).sqrt())
    return torch.cat(parts) * weight[:, None, None] + bias[:, None, None]


def swish(x):
    return x / (1 + torch.exp(-x))


def take(weights, count):
    return [next(weights).double() for _ in range(count)]


def residual(x, weights, groups, width):
    norm1, conv1, norm2, conv2 = (take(weights, 2) for _ in range(4))
    y = conv(swish(group_norm(x, *norm1, groups)), *conv1, before=1, after=1)
    y = conv(swish(group_norm(y, *norm2, groups)), *conv2, before=1, after=1)
    return y + (conv(x, *take(weights, 2)) if len(x) != width else x)


def attention(x, weights, groups):
    norm, qkv, out = (take(weights, 2) for _ in range(3))
    c, h, w = x.shape
    q, k, v = conv(group_norm(x, *norm, groups), *qkv).reshape(3, c, h * w)
    y = torch.zeros_like(v)
    for place in range(h * w):
        scores = (q[:, place, None] * k).sum(0) / math.sqrt(c)
        shares = torch.exp(scores - scores.max())
        y[:, place] = (v * shares / shares.sum()).sum(1)
    return x + conv(y.reshape(c, h, w), *out)


def middle(x, weights, groups):
    x = residual(x, weights, groups, len(x))
    return residual(attention(x, weights, groups), weights, groups, len(x))


def encode(x, weights, *, widths, blocks, attends, groups):
    x = conv(x.double(), *take(weights, 2), before=1, after=1)
    for level, width in enumerate(widths):
        for _ in range(blocks):
            x = residual(x, weights, groups, width)
            x = attention(x, weights, groups) if attends[level] else x
        if level < len(widths) - 1:
            x = conv(x, *take(weights, 2), stride=2, after=1)
    x = middle(x, weights, groups)
    return conv(swish(group_norm(x, *take(weights, 2), groups)), *take(weights, 2), before=1, after=1)


def decode(x, weights, *, widths, blocks, attends, groups):
    x = middle(conv(x.double(), *take(weights, 2), before=1, after=1), weights, groups)
    for level in reversed(range(len(widths))):
        for _ in range(blocks + 1):
            x = residual(x, weights, groups, widths[level])
            x = attention(x, weights, groups) if attends[level] else x
        if level:
            larger = x.new_zeros(len(x), 2 * x.shape[1], 2 * x.shape[2])
            for row in range(larger.shape[1]):
                for column in range(larger.shape[2]):
                    larger[:, row, column] = x[:, row // 2, column // 2]
            x = conv(larger, *take(weights, 2), before=1, after=1)
    return conv(swish(group_norm(x, *take(weights, 2), groups)), *take(weights, 2), before=1, after=1)
