"""Networks of all families in plain PyTorch: quantizers, autoencoders, priors, classifiers."""
