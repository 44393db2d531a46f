"""The papers' numbers, table by table, and those numbers of the paper-size configs that are ours.

Copied from the papers, not from the configs: `test_paper_numbers.py` holds the configs against them, and
`experiments/paper.py` and the README's column too. A new number in such a config needs a row here. What a
recipe has from the one that it is made from needs none, except in the fits of autoencoders and priors.

Sources: [P] Razavi, van den Oord, Vinyals, "Generating Diverse High-Fidelity Images with VQ-VAE-2", 2019;
[S] its supplement; [SN] the Sonnet code that it links; [CAS] Ravuri and Vinyals, 2019; [HR] Adiban, Stefanov,
Siniscalchi, Salvi, "Hierarchical Residual Learning Based Vector Quantized Variational Autoencoder for Image
Reconstruction and Generation", 2022; [M] McKinney and Willcocks, "Megapixel Image Generation with
Step-Unrolled Denoising Autoencoders", 2022; [SV] their code, github.com/vvvm23/sundae-vqgan; [T] the code of
Esser, Rombach and Ommer, "Taming Transformers for High-Resolution Image Synthesis", 2021; the others by name.
"""

from tests.paper_numbers import hr_vqvae, sundae, sundae_pixels, vqvae2
from tests.paper_numbers.results import README_COLUMN, RESULTS
from tests.paper_numbers.table import NONE, Table

__all__ = ["GRIDS", "NONE", "README_COLUMN", "RESULTS", "TABLES", "Table"]

TABLES = (
    *(*vqvae2.PAPERS, *hr_vqvae.PAPER, *sundae.PAPER, *sundae_pixels.TABLES),
    *(*vqvae2.OURS, *hr_vqvae.OURS, *sundae.OURS),
)

# The codes of an image, level by level, top first.
GRIDS = vqvae2.GRIDS | hr_vqvae.GRIDS | sundae.GRIDS | sundae_pixels.GRIDS
