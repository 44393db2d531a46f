"""A tiny run with everything that an evaluation reads, and one function that evaluates it."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.quiet import quiet_trainer
from vqvae2.data.latent_shards import write_shard
from vqvae2.data.latents import LatentSpec, Level, Manifest, write_manifest
from vqvae2.evaluation.data_module import EvaluationDataModule
from vqvae2.evaluation.module import EvaluationModule
from vqvae2.metrics.quality import InfinitySizes, KernelSubsets, Neighbourhoods
from vqvae2.nn.classifier import Classifier
from vqvae2.nn.hierarchical import HierarchicalVQVAE
from vqvae2.nn.pixelsnail import PixelSNAIL
from vqvae2.nn.quantizer import update_codebooks
from vqvae2.nn.weights import fingerprint
from vqvae2.storage.checkpoint import DESCRIPTION

SIZE, CLASSES, SPLITS = 32, 3, 4
NUM = {"train": 23, "val": 9, "samples": 19}
CODES = 16
CODEBOOK = {"num_codes": CODES, "code_dim": 4, "decay": 0.99, "eps": 1e-5, "codebook_init": "data"}
LAYERS = {"channels": 3, "num_levels": 2, "factor": 4, "hidden": 8, "residual": 4, "residual_blocks": 1}
VQVAE = {**CODEBOOK, **LAYERS, "level_dropout": 0.5}  # in training only: an evaluation must not see it
GRIDS = {"top": (4, 4), "bottom": (8, 8)}
CLASSIFIER = {"num_classes": CLASSES, "channels": 3, "widths": [8, 12], "blocks": 1}
EVERYTHING = {  # that an evaluation can measure of sets as small as these
    "kid": KernelSubsets(subsets=5, subset_size=8),
    "fid_infinity": InfinitySizes(points=4, smallest=10, largest=19),
    "manifold": Neighbourhoods(k_precision=2, k_density=3),
    "queries": 3,
    "nearest": 2,
}


def prior_options(level):
    above = [] if level == "top" else [GRIDS["top"]]
    sizes = {"grid": GRIDS[level], "condition_grids": above, "condition_codes": [CODES] * len(above)}
    widths = {"hidden": 8, "residual": 8, "layers": 1, "kernel": 3, "attention_layers": 0, "output_layers": 0}
    stack = {"conditioning_hidden": 8, "conditioning_blocks": 2} if above else {}
    return {"num_codes": CODES, "num_classes": CLASSES, "dropout": 0.0, **sizes, **widths, **stack}


def save(path, kind, network, options, **facts):
    state = {f"average.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, DESCRIPTION: {"kind": kind, "network": options, **facts}}, path)
    return network.eval()


def noise(name):
    """Each image around a colour of its own, uint8 [N, H, W, 3]."""
    draw = np.random.default_rng(len(name))
    colours = draw.integers(0, 200, (NUM[name], 1, 1, 3))
    return (colours + draw.integers(0, 56, (NUM[name], SIZE, SIZE, 3))).astype(np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_class_folders(folder, pixels):
    for i, image in enumerate(pixels):
        path = folder / f"class{i % CLASSES}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))


def write_samples(folder, pixels):
    """As the sample job does: tars of KEY.png and KEY.cls."""
    folder.mkdir()
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for i, image in enumerate(pixels):
            for suffix, content in (("png", png(image)), ("cls", str(i % CLASSES).encode())):
                member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder


def write_scores(folder, scores, labels=None):
    """As the sample job does; the label of sample i is i % CLASSES."""
    labels = [i % CLASSES for i in range(len(scores))] if labels is None else labels
    rows = [f"{i},{label},{score}" for i, (label, score) in enumerate(zip(labels, scores, strict=True))]
    (folder / "scores.csv").write_text("\n".join(["index,label,critic_log_score", *rows, ""]))


def floats(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def by_class(pixels):
    """Images and labels in the order of a folder of class folders."""
    order = np.argsort(np.arange(len(pixels)) % CLASSES, kind="stable")
    return floats(pixels[order]), torch.from_numpy(order % CLASSES)


def encode(autoencoder, split):
    images, labels = by_class(noise(split))
    return *autoencoder.encode(images), labels


def write_latents(folder, autoencoder):
    levels = tuple(Level(name, *grid, CODES) for name, grid in GRIDS.items())
    spec = LatentSpec(levels, CLASSES, fingerprint(autoencoder))
    splits = {}
    for split in ("train", "val"):
        *codes, labels = (tensor.numpy() for tensor in encode(autoencoder, split))
        keys = [f"{split}{i}" for i in range(len(labels))]
        shard = write_shard(
            folder, f"{split}/000000.tar", spec, codes=codes, labels=labels, keys=keys, samples_per_record=8
        )
        splits[split] = (shard,)
    write_manifest(folder, Manifest(spec, (), {}, splits))
    return spec


@torch.no_grad()
def lively(vqvae, classifier):
    """Random networks whose codes and predictions differ from image to image."""
    images, _ = by_class(noise("train"))
    update_codebooks(vqvae.quantizers, vqvae.train()(images).statistics)
    classifier.head.weight.mul_(100)
    classifier.head.bias.zero_()
    return vqvae, classifier


def make_run(root):
    """Fills a folder with everything, and returns the networks."""
    torch.manual_seed(0)
    for split in ("train", "val"):
        write_class_folders(root / split, noise(split))
    write_samples(root / "samples", noise("samples"))
    facts = {"image_size": SIZE, "classes": [f"class{i}" for i in range(CLASSES)]}
    vqvae, classifier = lively(HierarchicalVQVAE(**VQVAE), Classifier(**CLASSIFIER))
    networks = {
        "vqvae": save(root / "vqvae.ckpt", "autoencoder", vqvae, VQVAE, image_size=SIZE),
        "classifier": save(root / "classifier.ckpt", "classifier", classifier, CLASSIFIER, **facts),
    }
    spec = write_latents(root / "latents", vqvae)
    for level in GRIDS:
        options = prior_options(level)
        prior = PixelSNAIL(**options)
        torch.nn.init.normal_(prior.to_logits.weight)
        facts = {"level": level, "latents": spec.to_dict()}
        networks[level] = save(root / f"{level}.ckpt", "prior", prior, options, **facts)
    return networks


def data_of(root, **options):
    places = {name: str(root / name) for name in ("train", "val", "samples", "latents")}
    return EvaluationDataModule(**{"image_size": SIZE, "batch_size": 4, **places, **options})


def module_of(root, **options):
    priors = [str(root / f"{level}.ckpt") for level in GRIDS]
    paths = {
        "weights": str(root / "classifier.ckpt"),
        "autoencoder": str(root / "vqvae.ckpt"),
        "priors": priors,
    }
    return EvaluationModule(**{"features": "classifier", "splits": SPLITS, **paths, **options})


def evaluate(module, data, folder):
    quiet_trainer(default_root_dir=folder).test(module, data, verbose=False)
    return json.loads(Path(folder, "metrics.json").read_text())


def row(report, key):
    """A set of an evaluation."""
    return next(found for found in report["sets"] if found["key"] == key)
