"""Residual levels of linked codes as the specification says them: float64, one vector and one node a time."""

import torch

from vqvae2.nn.linked_quantizer import LinkedQuantizer


def make(**changes) -> LinkedQuantizer:
    """3 levels of 3 children, in 5 dimensions."""
    options = {"branch": 3, "depth": 3, "dim": 5, "linked": True, "residual_gradient": "stop", "beta": 0.4}
    options |= {"decay": 0.99, "eps": 1e-5, "init": "normal", "revive_below": 0.0}
    return LinkedQuantizer(**options | changes)


def rows_of(z):
    """The vectors [N, D] of a grid [B, D, H, W], in float64."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).double()


def tables_of(quantizer):
    return [level.codebook.double().clone() for level in quantizer.levels]


def path(tables, vector, branch, linked):
    """On each level: the node, what the levels above have left, the code. Of equally near ones the first."""
    steps, residual, node = [], vector, 0
    for table in tables:
        first = node * branch if linked else 0
        children = range(first, first + branch)
        node = min(children, key=lambda child: float(((residual - table[child]) ** 2).sum()))
        steps.append((node, residual, table[node]))
        residual = residual - table[node]
    return steps


def leaf_of(steps, branch):
    leaf = 0
    for node, _, _ in steps:
        leaf = leaf * branch + node % branch
    return leaf


def target(steps, level, beta):
    """The weighted mean of what the loss asks a code to be.

    |sg xi - e|^2 asks for xi. beta |sg e' - xi'|^2 of a level below, whose xi' = xi - e - (codes between),
    asks for xi - (codes between) - e'.
    """
    residual = steps[level][1]
    asked, weights = residual.clone(), 1.0
    for deeper in range(level + 1, len(steps)):
        asked = asked + beta * (residual - sum(code for _, _, code in steps[level + 1 : deeper + 1]))
        weights += beta
    return asked / weights


class Reference:
    """Tables of a quantizer, its moving averages, and steps of learning."""

    def __init__(self, quantizer: LinkedQuantizer):
        level = quantizer.levels[0]
        self.branch, self.linked, self.decay, self.eps = (
            quantizer.branch,
            quantizer.linked,
            level.decay,
            level.eps,
        )
        self.beta = quantizer.beta if quantizer.residual_gradient == "full" else 0.0
        self.tables = tables_of(quantizer)
        self.counts = [torch.zeros(len(table)).double() for table in self.tables]
        self.sums = [torch.zeros_like(table) for table in self.tables]
        self.steps = 0

    def step(self, z) -> list[int]:
        """Learns from a grid; returns its leaf indices."""
        paths = [path(self.tables, row, self.branch, self.linked) for row in rows_of(z)]
        self.steps += 1
        unbias = 1 - self.decay**self.steps
        learned = []
        for i, table in enumerate(self.tables):
            table, counts, sums = table.clone(), self.counts[i], self.sums[i]
            visits = [
                [target(steps, i, self.beta) for steps in paths if steps[i][0] == node]
                for node in range(len(table))
            ]
            for node, mine in enumerate(visits):
                counts[node] = self.decay * counts[node] + (1 - self.decay) * len(mine)
                sums[node] = self.decay * sums[node] + (1 - self.decay) * sum(
                    mine, torch.zeros(table.shape[1]).double()
                )
            total = counts.sum() / unbias  # over all nodes of the level
            for node, mine in enumerate(visits):
                if mine:  # others keep their value
                    smoothed = (counts[node] / unbias + self.eps) / (total + len(table) * self.eps) * total
                    table[node] = sums[node] / unbias / smoothed
            learned.append(table)
        self.tables = learned
        return [leaf_of(steps, self.branch) for steps in paths]
