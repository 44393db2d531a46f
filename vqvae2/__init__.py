"""VQ-VAE-2: train, sample and evaluate hierarchical vector-quantised image models."""

import os
import sys

# Threads of OpenMP that have nothing to do sleep instead of spinning. Beside another busy process a spinning
# thread takes the processor from the one that it waits for: steps took up to 50 times as long. It must be set
# before torch starts them; who has set it, or imported torch before, is left alone.
if "torch" not in sys.modules and "GOMP_SPINCOUNT" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
