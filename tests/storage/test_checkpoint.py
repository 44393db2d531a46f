"""A checkpoint from elsewhere cannot run code, wherever one is read; what is no checkpoint is refused."""

import os
from pathlib import Path

import pytest
import torch

from tests.checkpoints import save_autoencoder
from vqvae2.jobs.rejection_classifier import load_rejection_classifier
from vqvae2.runs.checkpoint_files import StreamedCheckpoints, read_facts
from vqvae2.storage.checkpoint import DESCRIPTION, META, load_network, read_checkpoint, read_description


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


SAMPLES = {"num_classes": 1000, "channels": 3, "image_size": 32}
READERS = {
    "network": lambda path: load_network(path, "autoencoder"),
    "description": read_description,
    "whole": read_checkpoint,
    "facts of a resume": read_facts,
    "rejection classifier": lambda path: load_rejection_classifier(str(path), **SAMPLES),
    "torchvision's classifier": lambda path: load_rejection_classifier(
        f"torchvision:resnet18:{path}", **SAMPLES
    ),
}


@pytest.mark.parametrize("place", ["instead", "weights", "description"])
@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_bomb_is_refused_wherever_a_checkpoint_is_read(tmp_path, reader, place):
    path, mark = tmp_path / "last.ckpt", tmp_path / "went off"
    save_autoencoder(path)
    checkpoint = torch.load(path, weights_only=True)
    if place == "instead":
        checkpoint = Bomb(mark)
    elif place == "weights":
        checkpoint["state_dict"]["average.bomb"] = Bomb(mark)
    else:
        checkpoint[DESCRIPTION]["network"]["bomb"] = Bomb(mark)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"cannot be read"):
        READERS[reader](path)
    assert not mark.exists()


def test_a_resume_and_a_folder_of_shards_refuse_it_too(tmp_path):
    mark, folder = tmp_path / "went off", tmp_path / "folder.ckpt"
    folder.mkdir()
    torch.save({DESCRIPTION: {}, "num_shards": 1, "bomb": Bomb(mark)}, folder / META)
    torch.save(Bomb(mark), tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="cannot be read"):
        StreamedCheckpoints().load_checkpoint(folder)
    with pytest.raises(Exception, match="Weights only load failed"):
        StreamedCheckpoints().load_checkpoint(tmp_path / "last.ckpt")
    assert not mark.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.7, 0.999])
def test_a_file_cut_short_is_named(tmp_path, share):
    path = tmp_path / "last.ckpt"
    save_autoencoder(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    for read in (read_checkpoint, read_facts):
        with pytest.raises(ValueError, match=r"last\.ckpt cannot be read as a checkpoint: it is damaged"):
            read(path)


def test_the_bomb_would_go_off(tmp_path):
    mark = tmp_path / "went off"
    torch.save(Bomb(mark), tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "There is no checkpoint"), (b"", "cannot be read"), (b"no zip", "cannot be read")],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, message):
    path = tmp_path / "last.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_network(path, "autoencoder")


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of this suite"):
        load_network(tmp_path / "other.ckpt", "prior")


def test_a_best_checkpoint_that_no_validation_has_written_is_told_from_a_run_that_was_not_trained(tmp_path):
    best = tmp_path / "best.ckpt"
    with pytest.raises(ValueError, match=r"best.ckpt. Train it first: lightning fit"):
        load_network(best, "autoencoder")
    save_autoencoder(tmp_path / "last.ckpt")
    with pytest.raises(
        ValueError, match=r"no validation has written it yet. Name .*last.ckpt.*val_check_interval"
    ):
        load_network(best, "autoencoder")
    with pytest.raises(ValueError, match=r"other.ckpt. Train it first: lightning fit"):
        load_network(tmp_path / "other.ckpt", "autoencoder")
