"""Likelihoods of the codes of three levels in an evaluation: each given those above it, and the class."""

import pytest
import torch
from torch.nn import functional as F

from tests.checkpoints import PRIOR
from vqvae2.data.latents import LatentBatch, LatentSpec, Level
from vqvae2.evaluation.likelihood import CodeFigures
from vqvae2.nn.pixelsnail import PixelSNAIL

SPEC = LatentSpec((Level("top", 4, 4, 5), Level("mid", 4, 4, 5), Level("bottom", 8, 8, 5)), 3, "none")


def prior(index: int) -> PixelSNAIL:
    *above, here = SPEC.levels[: index + 1]
    made = PixelSNAIL(
        grid=(here.height, here.width),
        num_codes=here.num_codes,
        condition_grids=[(level.height, level.width) for level in above],
        condition_codes=[level.num_codes for level in above],
        num_classes=3,
        **PRIOR,
        output_layers=0,
        conditioning_hidden=8,
        conditioning_blocks=2,
    ).eval()
    torch.nn.init.normal_(made.to_logits.weight)
    return made


@torch.no_grad()
def test_priors_are_told_the_levels_above_and_the_class():
    torch.manual_seed(0)
    priors = {level.name: prior(i) for i, level in enumerate(SPEC.levels)}
    figures_of_codes = CodeFigures("val", SPEC, priors, num_pixels=1024, channels=3)
    top, mid, bottom = codes = [torch.randint(5, (7, level.height, level.width)) for level in SPEC.levels]
    labels = torch.arange(7) % 3
    for part in (slice(0, 4), slice(4, 7)):
        figures_of_codes.update(
            LatentBatch(tuple(grid[part] for grid in codes), labels[part], torch.arange(7)[part])
        )
    logits = {
        "top": priors["top"](top, (), labels),
        "mid": priors["mid"](mid, (top,), labels),
        "bottom": priors["bottom"](bottom, (top, mid), labels),
    }
    figures = figures_of_codes.figures()
    for (level, found), grid in zip(logits.items(), codes, strict=True):
        nll = F.cross_entropy(found.double(), grid).item()
        assert figures[f"nll_{level}_val"] == pytest.approx(nll, rel=1e-6)
