"""A trainer that says nothing and leaves nothing."""

from typing import Any

import lightning as L


def quiet_trainer(**options: Any) -> L.Trainer:
    """On the CPU, with other options than that where they are given."""
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return L.Trainer(**quiet | options)
