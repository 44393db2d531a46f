"""A figure of another network than the metric's own is never called by the plain name."""

import pytest

from vqvae2.metrics.labels import INCEPTION, METRICS, VGG, metric_key, metric_label


@pytest.mark.parametrize(
    ("metric", "network", "key", "label"),
    [
        ("fid", INCEPTION, "fid", "FID"),
        ("fid", "clip-vit-b-32", "fid_clip_vit_b_32", "FID (clip-vit-b-32)"),
        ("fid_star", "classifier", "fid_star_classifier", "FID* (classifier)"),
        ("fid_infinity", VGG, "fid_infinity_vgg16", "FID∞ (vgg16)"),
        ("is_std", "classifier", "is_std_classifier", "IS, deviation over splits (classifier)"),
        ("precision", VGG, "precision", "precision"),
        ("coverage", INCEPTION, "coverage_inception_v3_compat", "coverage (inception-v3-compat)"),
        ("class_accuracy", "classifier", "class_accuracy", "recognised as their class"),
        (
            "critic_log_score",
            INCEPTION,
            "critic_log_score",
            "mean log score by the rejection classifier, nats",
        ),
    ],
)
def test_keys_and_labels(metric, network, key, label):
    assert metric_key(metric, network) == key
    assert metric_label(metric, network) == label


def test_no_two_figures_share_a_key_or_a_label():
    networks = (INCEPTION, VGG, "classifier", "clip-vit-l-14", "clip-vit-l-14-336px", "dinov2-vit-s-14")
    own = {(metric, network) for metric in METRICS for network in networks if METRICS[metric].network}
    assert len({metric_key(*figure) for figure in own}) == len(own)
    assert len({metric_label(*figure) for figure in own}) == len(own)


def test_which_way_is_better():
    lower = {name for name, metric in METRICS.items() if metric.better == "lower"}
    neither = {name for name, metric in METRICS.items() if metric.better is None}
    assert lower == {"fid", "fid_star", "fid_infinity", "kid"}
    assert neither == {"is_std", "kid_std"}
