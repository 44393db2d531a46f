"""LPIPS against a slow reference and torchmetrics', and its files; a classifier's distance by hand."""

import math

import pytest
import torch
from torch.nn import functional as F
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision import models

from vqvae2.nn.classifier import Classifier
from vqvae2.nn.perceptual import ClassifierDistance, load_lpips
from vqvae2.training.perceptual import Perceptual, _installed_heads, load_distance

ENDS = (3, 8, 15, 22, 29)  # relu1_2 to relu5_3, by their places in torchvision's VGG-16


@pytest.fixture(scope="module")
def vgg():
    """With weights at random: trained ones are not to be had here. Biases are not 0, as they would be."""
    torch.manual_seed(1)
    features = models.vgg.make_layers(models.vgg.cfgs["D"]).eval()
    for layer in features:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return features


@pytest.fixture(scope="module")
def trunk(vgg, tmp_path_factory):
    """A file like torchvision's, in the old format of that one, with the layers that LPIPS leaves out."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    state = {f"features.{name}": value for name, value in vgg.state_dict().items()}
    torch.save(state | {"classifier.0.bias": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def lpips(trunk):
    return load_lpips(trunk, _installed_heads())


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(2)
    x = torch.rand(2, 3, 32, 24) * 2 - 1
    return x, (x + 0.3 * torch.randn_like(x)).clamp(-1, 1)


@torch.no_grad()
def slow(vgg, heads, x, y):
    """Equation 1, image by image and place by place, in float64."""
    shift, scale = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
    network = [(layer, type(layer).__name__) for layer in vgg]
    total = 0.0
    for images in zip(x, y, strict=True):
        features = [
            torch.stack([(image[c].double() - shift[c]) / scale[c] for c in range(3)])[None]
            for image in images
        ]
        for place, (layer, kind) in enumerate(network[: ENDS[-1] + 1]):
            if kind == "Conv2d":
                weight, bias = layer.weight.double(), layer.bias.double()
                features = [F.conv2d(f, weight, bias, padding=1) for f in features]
            else:
                features = [F.relu(f) if kind == "ReLU" else F.max_pool2d(f, 2) for f in features]
            if place in ENDS:
                head = heads[f"lin{ENDS.index(place)}.model.1.weight"].double().flatten()
                _, _, height, width = features[0].shape
                for i in range(height):
                    for j in range(width):
                        a, b = (f[0, :, i, j] / (f[0, :, i, j].norm() + 1e-10) for f in features)
                        total += float((head * (a - b) ** 2).sum()) / (height * width)
    return total / len(x)


def test_lpips_is_that_of_the_paper(vgg, lpips, pair):
    heads = torch.load(_installed_heads(), map_location="cpu", weights_only=True)
    assert lpips(*pair).item() == pytest.approx(slow(vgg, heads, *pair), rel=1e-4)


def test_lpips_is_that_of_torchmetrics(vgg, lpips, pair):
    theirs = _LPIPS(pretrained=True, net="vgg", pnet_rand=True, eval_mode=True)
    state = {name.split(".", 1)[1]: name for name in theirs.net.state_dict()}  # slice1.0.weight: 0.weight
    theirs.net.load_state_dict({name: vgg.state_dict()[key] for key, name in state.items()})
    with torch.no_grad():
        assert lpips(*pair).item() == pytest.approx(theirs(*pair).mean().item(), rel=1e-4)


def test_it_stays_as_it_is_and_gives_a_gradient_to_the_first_alone(lpips, pair):
    x, y = (images.clone().requires_grad_() for images in pair)
    first, second = lpips(x, y), lpips.train()(x, y)
    assert first == second  # no dropout
    assert not any(part.training for part in lpips.modules())
    first.backward()
    assert x.grad.abs().sum() > 0
    assert y.grad is None
    assert not any(p.requires_grad or p.grad is not None for p in lpips.parameters())
    assert lpips(pair[0], pair[0]) == 0


def test_grey_images_are_repeated(lpips, pair):
    grey = [images[:, :1] for images in pair]
    assert lpips(*grey) == lpips(*(images.expand(-1, 3, -1, -1) for images in grey))


def test_half_precision_shows_small_differences(lpips, pair):
    x = pair[0]
    y = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    exact, seen = lpips(x, y), []
    hooks = [part.register_forward_hook(lambda *args: seen.append(args[-1])) for part in lpips.slices]
    with torch.autocast("cpu", torch.bfloat16):
        half = lpips(x, y)
    for hook in hooks:
        hook.remove()
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.1)
    # Features are rounded; what is computed of them is not.
    units = [features.double() / features.double().norm(dim=1, keepdim=True) for features in seen]
    pairs = zip(units[::2], units[1::2], lpips.heads, strict=True)
    levels = [((a - b) ** 2 * head[:, None, None]).sum(1).mean() for a, b, head in pairs]
    assert half.item() == pytest.approx(sum(levels).item(), rel=1e-5)


def test_weights_that_are_missing_or_others_are_refused_with_where_to_get_them(trunk, tmp_path):
    with pytest.raises(ValueError, match=r"no file nowhere\.pth .*download\.pytorch\.org/models/vgg16-39"):
        load_lpips("nowhere.pth", "random")
    with pytest.raises(ValueError, match=r"no file heads\.pth .*v0\.1/vgg\.pth"):
        load_lpips("random", "heads.pth")
    with pytest.raises(ValueError, match=r"lacks features\.0\.weight"):
        load_lpips(_installed_heads(), "random")
    (tmp_path / "cut.pth").write_bytes(trunk.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged or something else"):
        load_lpips(tmp_path / "cut.pth", "random")
    narrow = {f"lin{i}.model.1.weight": torch.ones(1, 3, 1, 1) for i in range(5)}
    torch.save(narrow, tmp_path / "narrow.pth")
    with pytest.raises(ValueError, match=r"holds \(3,\) where \(64,\) is wanted"):
        load_lpips("random", tmp_path / "narrow.pth")


class Bomb:
    def __reduce__(self):
        return (math.factorial, (3,))


def test_a_pickle_in_the_place_of_weights_is_never_run(tmp_path):
    torch.save({"lin0.model.1.weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="damaged or something else"):
        load_lpips("random", tmp_path / "bomb.pth")


def test_random_weights_have_to_be_asked_for_and_are_the_same_each_time(pair):
    before = torch.get_rng_state()
    first, second = (load_lpips("random", "random") for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first(*pair) == second(*pair) > 0


def test_small_images_are_refused():
    class Data:
        image_size = 8

    with pytest.raises(ValueError, match=r"at least 16x16, these are 8x8"):
        load_distance(Perceptual("lpips-vgg", "random"), Data(), torch.device("cpu"))
    with pytest.raises(ValueError, match="8x8"):
        load_lpips("random", "random")(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("compare", ["features", "logits"])
def test_a_classifiers_distance_by_hand(compare):
    torch.manual_seed(0)
    classifier = Classifier(num_classes=3, channels=1, widths=[4, 6], blocks=1)
    distance = ClassifierDistance(classifier, compare).train()
    x, y = torch.randn(2, 1, 8, 8, requires_grad=True), torch.randn(2, 1, 8, 8, requires_grad=True)
    seen = [classifier.body(images) for images in (x, y)]
    if compare == "logits":
        seen = [classifier.head(features) for features in seen]
    values = [(a - b) ** 2 for a, b in zip(*(s.flatten().tolist() for s in seen), strict=True)]
    found = distance(x, y)
    assert found.item() == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert not classifier.training
    found.backward()
    assert x.grad.abs().sum() > 0
    assert y.grad is None


def test_what_a_classifier_lacks_is_not_compared():
    classifier = Classifier(num_classes=3, channels=1, widths=[4], blocks=1)
    with pytest.raises(ValueError, match=r"compare is pixels, wanted features or logits"):
        ClassifierDistance(classifier, "pixels")
