"""What the papers report: in `experiments/paper.py` and in the README."""

# What the papers report: numbers by table of `experiments/paper.py` and the names of its rows.
RESULTS = {
    "TABLE_1": {  # [P] table 1: train, validation
        "nll_top, NLL top": (3.40, 3.41),
        "nll_bottom, NLL bottom": (3.45, 3.45),
        "mse, MSE": (0.0047, 0.0050),
    },
    "TABLE_2": {  # [P] table 2: top-1, top-5
        "BigGAN-deep, real": (42.65, 65.92),
        "VQ-VAE-2, real": (54.83, 77.59),
        "VQ-VAE-2, reconstructed": (58.74, 80.98),
        "real data, real": (73.09, 91.47),
    },
    "FIGURE_7": {  # [P] section 5.3.1, "from roughly ~30 to ~10", "~10 instead of ~2"
        "samples, all, fid": (30.0,),
        "samples, the critic's best, fid": (10.0,),
        "reconstructions, fid": (10.0,),
        "originals, fid": (2.0,),
    },
    "CAS_PAPER": {  # read on a web page about [CAS]
        "VQ-VAE-2, is": (43.44,),
        "VQ-VAE-2, fid": (38.05,),
        "real data, is": (331.83,),
        "real data, fid": (2.47,),
    },
    "SUPPLEMENT_TABLE_5": {  # [S] table 5: PSNR in dB, bits an image
        "autoencoder, 8 dimensions": (32.41, 36_933),
        "autoencoder, 16 dimensions": (37.33, 62_047),
        "autoencoder, 32 dimensions": (45.92, 115_231),
        "autoencoder, 64 dimensions": (49.80, 196_484),
        "VQ-VAE, 512 codes": (27.19, 4919),
    },
    "CODES": {"top": (1024,), "bottom": (4096,)},  # [P] section 3.1: 32x32 and 64x64
    "PIXELS": {"": (65_536,)},  # 256x256
}

# The README's table of results: by the beginning of a row, the numbers in the paper's column.
README_COLUMN = {
    "MSE": [0.0047, 0.0050],
    "NLL top": [3.40, 3.41],
    "NLL bottom": [3.45, 3.45],
    "FID": [30, 10, 2],
    "classification accuracy score": [54.83, 58.74, 73.09],
    "from images": [8, 128],  # [S] A.1, TPU cores
}
