"""A VGG-16 that fits a test."""

import torch
from torch import nn


class ThinVgg(nn.Module):
    """torchvision's VGG-16 with few channels: the real one takes 528 MB."""

    def __init__(self):
        super().__init__()
        layers = [(3, 4), (4, 4), "M", (4, 6), "M", (6, 6)]
        self.features = nn.Sequential(
            *(nn.MaxPool2d(2) if layer == "M" else nn.Conv2d(*layer, 3, padding=1) for layer in layers)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        head = [nn.Linear(294, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout()]
        self.classifier = nn.Sequential(*head, nn.Linear(12, 10))

    def forward(self, images):
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


def thin_vgg(folder, monkeypatch):
    monkeypatch.setattr("torchvision.models.vgg16", ThinVgg)
    torch.save(ThinVgg().state_dict(), folder / "vgg.pth")
    return folder / "vgg.pth", "vgg16"
