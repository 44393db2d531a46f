"""Weights of feature networks: what torch-fidelity makes of them, without running what a file may hold."""

import hashlib
import os
import pickle
import socket
import zipfile

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_clip import CLIPVisual, convert_weights
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from tests.metrics.thin_vgg import thin_vgg
from vqvae2.metrics.extractors import URLS, read_tensors
from vqvae2.metrics.features import FeatureNetwork, to_rgb_bytes
from vqvae2.metrics.labels import INCEPTION

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*", "ignore:.*TorchScript.*"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A machine without a network and without any weights."""

    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (INCEPTION, r"weights-inception-2015-12-05-\w+\.pth"),
        ("vgg16", r"https://download\.pytorch\.org/models/vgg16-397923af\.pth"),
        ("clip-vit-b-16", r"https://openaipublic.*/ViT-B-16\.pt"),
        (
            "dinov2-vit-g-14",
            r"https://dl\.fbaipublicfiles\.com/dinov2/dinov2_vitg14/dinov2_vitg14_pretrain\.pth",
        ),
    ],
)
def test_weights_that_cannot_be_downloaded_name_the_file_and_the_option(no_network, tmp_path, name, file):
    message = (
        rf"weights of '{name}' cannot be downloaded \(.*not known.*\)\. Download \S*{file} .*file as "
        r"model\.init_args\.manifold_weights\. Or .*model\.init_args\.manifold_features=classifier"
    )
    with pytest.raises(ValueError, match=message):
        FeatureNetwork(name, option="manifold_weights")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_every_network_of_torch_fidelity_is_known_by_its_url():
    own = {name for name, kind in FEATURE_EXTRACTORS_REGISTRY.items() if "torch_fidelity" in kind.__module__}
    assert set(URLS) == own
    assert len(set(URLS.values())) == len(own)


def test_a_server_that_says_nothing_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("vqvae2.metrics.extractors._TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setitem(URLS, "vgg16", f"http://127.0.0.1:{silent.getsockname()[1]}/vgg16-397923af.pth")
        with pytest.raises(ValueError, match=r"'vgg16' cannot be downloaded \(timed out\)"):
            FeatureNetwork("vgg16")
    assert socket.getdefaulttimeout() is None


def test_a_download_is_kept_checked_and_damage_says_what_to_remove(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    content = b"not weights"
    (tmp_path / "served").write_bytes(content)
    served = (tmp_path / "served").as_uri()
    for start, message in (
        ("0" * 8, "cannot be downloaded .*invalid hash value"),
        (
            hashlib.sha256(content).hexdigest()[:8],
            "does not hold the weights of 'vgg16'.*Remove it to download",
        ),
    ):
        (tmp_path / f"vgg16-{start}.pth").write_bytes(content)
        monkeypatch.setitem(URLS, "vgg16", served.replace("served", f"vgg16-{start}.pth"))
        with pytest.raises(ValueError, match=message):
            FeatureNetwork("vgg16")
    (kept,) = (tmp_path / "home").rglob("*.pth")
    assert kept.parent.name == "checkpoints"


def test_weights_of_something_else(tmp_path, monkeypatch):
    thin_vgg(tmp_path, monkeypatch)
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    files = ("text.pth", "other.pth", "list.pth", "script.pt", "empty.zip")
    for name in ("vgg16", "clip-rn50", "dinov2-vit-s-14", INCEPTION):
        for file in files if name != INCEPTION else files[:2]:  # Inception is slow to build
            with pytest.raises(ValueError, match=f"{file} does not hold the weights of '{name}': "):
                FeatureNetwork(name, str(tmp_path / file))


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize("name", ["vgg16", "clip-vit-b-32", "dinov2-vit-s-14"])
def test_code_in_a_file_is_never_run(tmp_path, monkeypatch, name):
    thin_vgg(tmp_path, monkeypatch)
    torch.save({"pos_embed": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Bomb(tmp_path / "exploded")))
        archive.writestr("x/constants.pkl", b"")
    for file in ("bomb.pth", "bomb.pt"):
        with pytest.raises(ValueError, match=f"{file} does not hold the weights of '{name}'"):
            FeatureNetwork(name, str(tmp_path / file))
        assert not (tmp_path / "exploded").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


class Odd(nn.Module):
    """Tensors of several types, some of them views, two levels deep."""

    def __init__(self, depth=1):
        super().__init__()
        base = torch.arange(60)
        for dtype in (
            torch.bool,
            torch.uint8,
            torch.int32,
            torch.int64,
            torch.float16,
            torch.bfloat16,
            torch.float64,
        ):
            self.register_buffer(f"of_{str(dtype)[6:]}", base.to(dtype)[depth:])
        self.register_buffer("turned", base.view(3, 4, 5).transpose(0, 2)[1:, :, 1])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.weight = nn.Parameter(base.float().view(6, 10)[2:4, 3:])
        self.inside = Odd(depth - 1) if depth else nn.Identity()
        self.sizes = [1, 2]
        self.facts = {"a": 1.5}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight[0, 0] + float(self.sizes[0])


def test_tensors_of_an_archive_are_those_that_torchscript_loads(tmp_path):
    torch.jit.save(torch.jit.script(Odd()), tmp_path / "odd.pt")
    expected = torch.jit.load(tmp_path / "odd.pt").state_dict()
    found = read_tensors(tmp_path / "odd.pt")
    assert found.keys() == expected.keys()
    assert len(found) == 20
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_inception_from_a_local_file_gives_features_and_unbiased_logits(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    torch.manual_seed(0)
    random = object.__new__(FeatureExtractorInceptionV3)
    with monkeypatch.context() as patched:  # build it with its random weights: no file to read
        patched.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {}
        )
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        random.__init__(INCEPTION, ["2048"])
    torch.save(random.state_dict(), tmp_path / "inception.pth")
    network = FeatureNetwork(INCEPTION, str(tmp_path / "inception.pth"))
    images = torch.rand(2, 3, 20, 20) * 2 - 1
    seen = network(images)
    assert network.layers == ["2048", "logits_unbiased"]
    assert torch.equal(seen.features, random(to_rgb_bytes(images))[0])
    torch.testing.assert_close(seen.logits, seen.features @ random.fc.weight.T)


def clip_tower(name):
    """A shallow random CLIP with a text side, as OpenAI's archives have one."""
    resnet = name == "clip-rn50"
    shape = {"embed_dim": 1024, "vision_layers": (1, 1, 1, 1), "vision_width": 64, "vision_patch_size": None}
    if not resnet:
        shape = {"embed_dim": 512, "vision_layers": 1, "vision_width": 768, "vision_patch_size": 32}
    tower = CLIPVisual(image_resolution=224, **shape)
    tower.text_projection = nn.Parameter(torch.randn(4, shape["embed_dim"]))
    tower.register_buffer("input_resolution", torch.tensor(224))
    tower.ln_final = nn.LayerNorm(4)
    tower.forward = tower.visual.forward
    return convert_weights(tower) or tower


def clip_archive(folder, name):
    torch.jit.save(
        torch.jit.trace(clip_tower(name).float(), torch.rand(1, 3, 224, 224)).half(), folder / "clip.pt"
    )
    return folder / "clip.pt", name


@pytest.mark.parametrize("name", ["vgg16", "clip-rn50", "clip-vit-b-32"])
def test_a_local_file_gives_torch_fidelitys_features(monkeypatch, tmp_path, name):
    torch.manual_seed(0)
    path, _ = thin_vgg(tmp_path, monkeypatch) if name == "vgg16" else clip_archive(tmp_path, name)
    kind = FEATURE_EXTRACTORS_REGISTRY[name]
    direct = kind(name, [kind.get_default_feature_layer_for_metric("fid")], str(path))
    network = FeatureNetwork(name, str(path))
    images = torch.rand(2, 1, 20, 30) * 2 - 1
    seen = network(images)
    expected = direct(to_rgb_bytes(images))[0]
    assert expected.std() > 0
    assert torch.equal(seen.features, expected)
    assert seen.logits is None


def test_clip_from_a_state_dict_equals_its_archive(tmp_path):
    torch.manual_seed(0)
    path, name = clip_archive(tmp_path, "clip-vit-b-32")
    torch.save(torch.jit.load(path).state_dict(), tmp_path / "clip.pth")
    archive, state = (FeatureNetwork(name, str(file)) for file in (path, tmp_path / "clip.pth"))
    assert archive.fingerprint == state.fingerprint
    with pytest.raises(ValueError, match=r"'clip-rn50' has .*It fits 'clip-vit-b-32'"):
        FeatureNetwork("clip-rn50", str(path))


class SlowDino(nn.Module):
    """DINOv2 from PyTorch's own transformer layers: the layer scales are folded into the projections."""

    def __init__(self, weights, heads):
        super().__init__()
        self.weights = weights
        depth = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))
        self.layers = nn.ModuleList(self.layer(f"blocks.{i}.", heads) for i in range(depth))

    def layer(self, prefix, heads):
        w = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
        hidden, width = w["mlp.fc1.weight"].shape
        options = {"activation": "gelu", "layer_norm_eps": 1e-6, "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(width, heads, hidden, 0.0, **options)
        first, second = w["ls1.gamma"], w["ls2.gamma"]
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": w["attn.qkv.weight"],
                "self_attn.in_proj_bias": w["attn.qkv.bias"],
                "self_attn.out_proj.weight": first[:, None] * w["attn.proj.weight"],
                "self_attn.out_proj.bias": first * w["attn.proj.bias"],
                "linear1.weight": w["mlp.fc1.weight"],
                "linear1.bias": w["mlp.fc1.bias"],
                "linear2.weight": second[:, None] * w["mlp.fc2.weight"],
                "linear2.bias": second * w["mlp.fc2.bias"],
                **{f"norm{i}.{kind}": w[f"norm{i}.{kind}"] for i in (1, 2) for kind in ("weight", "bias")},
            }
        )
        return layer

    def forward(self, images):
        w = self.weights
        width = w["cls_token"].shape[-1]
        patches = (
            images.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        )
        tokens = patches @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
        positions = w["pos_embed"][0, 1:].T.reshape(1, width, 37, 37)
        positions = F.interpolate(positions, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
        tokens = tokens + positions.reshape(width, -1).T
        first = (w["cls_token"] + w["pos_embed"][:, :1]).expand(len(images), -1, -1)
        x = torch.cat([first, tokens], 1)
        for layer in self.layers:
            x = layer(x)
        return F.layer_norm(x, (width,), w["norm.weight"], w["norm.bias"], 1e-6)[:, 0]


def dino_weights(width=384, depth=2):
    """A shallow random network of the published names and shapes."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1370, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
    }
    block = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    for i in range(depth):
        for part, shape in block.items():
            shapes |= {f"blocks.{i}.{part}.weight": shape, f"blocks.{i}.{part}.bias": shape[:1]}
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{part}"] = (width,)
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    return {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}


def test_dinov2_from_a_local_file_equals_pytorchs_own_layers(tmp_path):
    torch.manual_seed(0)
    weights = dino_weights()
    torch.save(weights, tmp_path / "dino.pth")
    network = FeatureNetwork("dinov2-vit-s-14", str(tmp_path / "dino.pth"))
    slow = SlowDino(weights, heads=6)
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normal = (to_rgb_bytes(images) / 255 - mean) / deviation
    seen = network(images)
    with torch.no_grad():
        torch.testing.assert_close(seen.features, slow(normal), rtol=1e-4, atol=1e-4)
    assert seen.logits is None
    with pytest.raises(ValueError, match=r"384 features, 'dinov2-vit-b-14' has .*It fits 'dinov2-vit-s-14'"):
        FeatureNetwork("dinov2-vit-b-14", str(tmp_path / "dino.pth"))
