"""The papers' augmentations, drawn anew for each (seed, epoch, sample).

Colours follow TensorFlow's definitions (VQ-VAE-2 supplement; tf.image.adjust_*): brightness is *added*, where
torchvision multiplies. Colour images are float `[..., 3, H, W]` in [0, 1]; results may leave that range, and
are clipped once, at the end.
"""

from dataclasses import dataclass

import numpy as np
import torch

from vqvae2.pictures.decode import Strip
from vqvae2.pixels import ImageSize


@dataclass(frozen=True)
class Augment:
    """What is done to a training image. Everything is off by default.

    Attributes:
        random_crop: crop at a random place instead of the centre.
        flip: mirror left and right with probability 1/2.
        shift: move by up to so many whole pixels in both directions, filling with black.
        brightness: add U(-brightness, brightness).
        hue: turn the hue by U(-hue, hue), in turns.
        saturation: multiply the saturation by U(1 - saturation, 1 + saturation).
        contrast: multiply the distance from each channel's mean by U(1 - contrast, 1 + contrast).
        noise_probability: how often Gaussian noise is added.
        noise_std: its standard deviation, where pixels go from 0 to 1.
    """

    random_crop: bool = False
    flip: bool = False
    shift: int = 0
    brightness: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    contrast: float = 0.0
    noise_probability: float = 0.0
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        limits = {"brightness": 1, "hue": 0.5, "saturation": 1, "contrast": 1, "noise_probability": 1}
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"augment.{name} is {getattr(self, name)}, wanted 0 to {most}.")
        for name in ("shift", "noise_std"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name} is {getattr(self, name)}, wanted at least 0.")

    @property
    def needs_colour(self) -> bool:
        return self.hue > 0 or self.saturation > 0

    @property
    def changes_values(self) -> bool:
        """Whether pixels change otherwise than by moving."""
        noisy = self.noise_probability > 0 and self.noise_std > 0
        return self.needs_colour or self.brightness > 0 or self.contrast > 0 or noisy

    @property
    def does_anything(self) -> bool:
        return self.changes_values or self.random_crop or self.flip or self.shift > 0


NOTHING = Augment()


def sample_generator(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """The one source of randomness of a sample in an epoch, the same in any process."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, sample))))


def centre_crop(pixels: np.ndarray | Strip, size: ImageSize) -> np.ndarray:
    """The middle of `[C, H, W]`, of a size."""
    _, height, width = pixels.shape
    return _crop(pixels, (height - size.height) // 2, (width - size.width) // 2, size)


def move(
    pixels: np.ndarray | Strip, size: ImageSize, augment: Augment, generator: np.random.Generator
) -> np.ndarray:
    """Crops `[C, H, W]` to a size, flips and shifts it, as drawn."""
    _, height, width = pixels.shape
    down, right, mirror = generator.random(3)
    if augment.random_crop:
        top, left = int(down * (height - size.height + 1)), int(right * (width - size.width + 1))
        pixels = _crop(pixels, top, left, size)
    else:
        pixels = centre_crop(pixels, size)
    if augment.flip and mirror < 0.5:
        pixels = pixels[:, :, ::-1]
    if augment.shift:
        pixels = shifted(pixels, *generator.integers(-augment.shift, augment.shift, 2, endpoint=True))
    return pixels


def shifted(pixels: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moves `[C, H, W]` by whole pixels; what comes in at the edge is black."""
    _, height, width = pixels.shape
    result = np.zeros_like(pixels)
    result[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = pixels[
        :, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return result


def recolour(image: torch.Tensor, augment: Augment, generator: np.random.Generator) -> torch.Tensor:
    """Draws and applies the changes of value to `[C, H, W]` in [0, 1]; the result is clipped to [0, 1]."""
    added, turn, saturation, contrast = generator.uniform(-1, 1, 4)
    if augment.brightness:
        image = adjust_brightness(image, augment.brightness * added)
    if augment.hue:
        image = adjust_hue(image, augment.hue * turn)
    if augment.saturation:
        image = adjust_saturation(image, 1 + augment.saturation * saturation)
    if augment.contrast:
        image = adjust_contrast(image, 1 + augment.contrast * contrast)
    if generator.random() < augment.noise_probability:
        noise = generator.standard_normal(tuple(image.shape), dtype=np.float32)
        image = image + augment.noise_std * torch.from_numpy(noise)
    return image.clamp(0, 1)


def adjust_brightness(images: torch.Tensor, added: float) -> torch.Tensor:
    return images + added


def adjust_hue(images: torch.Tensor, turns: float) -> torch.Tensor:
    hue, saturation, value = rgb_to_hsv(images).unbind(-3)
    return hsv_to_rgb(torch.stack([hue + turns, saturation, value], -3))


def adjust_saturation(images: torch.Tensor, factor: float) -> torch.Tensor:
    hue, saturation, value = rgb_to_hsv(images).unbind(-3)
    return hsv_to_rgb(torch.stack([hue, (saturation * factor).clamp(0, 1), value], -3))


def adjust_contrast(images: torch.Tensor, factor: float) -> torch.Tensor:
    mean = images.mean((-2, -1), keepdim=True)
    return (images - mean) * factor + mean


def rgb_to_hsv(images: torch.Tensor) -> torch.Tensor:
    """Hue in turns in [0, 1), saturation and value, stacked as the channels. Grey has hue 0."""
    red, green, blue = images.unbind(-3)
    value, lowest = images.amax(-3), images.amin(-3)
    spread = value - lowest
    safe = torch.where(spread > 0, spread, 1.0)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    saturation = torch.where(value > 0, spread / torch.where(value > 0, value, 1.0), 0.0)
    return torch.stack([(sector / 6) % 1, saturation, value], -3)


def hsv_to_rgb(images: torch.Tensor) -> torch.Tensor:
    """The inverse of `rgb_to_hsv`; the hue may be any number of turns.

    channel(n) = v − v·s·clip(min(k, 4 − k), 0, 1) with k = (n + 6·hue) mod 6 and n = 5, 3, 1 for R, G, B.
    """
    hue, saturation, value = images.unbind(-3)
    channels = []
    for n in (5, 3, 1):
        k = (n + 6 * hue) % 6
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, -3)


def _crop(pixels: np.ndarray | Strip, top: int, left: int, size: ImageSize) -> np.ndarray:
    if isinstance(pixels, Strip):
        return pixels.crop(top, left, size)
    return pixels[:, top : top + size.height, left : left + size.width]
