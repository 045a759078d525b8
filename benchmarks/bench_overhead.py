"""What a call costs when there is next to nothing to do: checks, dispatch, choice of backend."""

import pytest
import torch

from hetmerge.ops import Moments, cka, linear_sum_assignment, project, zip_match


def moments():
    found, features = Moments([2, 2]), [torch.randn(8, 2), torch.randn(8, 2)]
    return lambda: found.update(*features)


def similarity():
    features = [torch.randn(8, 2)]
    return lambda: cka(features, features)


def zipping():
    matrix = torch.eye(4)
    return lambda: zip_match(matrix, [2, 2])


def assignment():
    score = torch.randn(4, 4)
    return lambda: linear_sum_assignment(score)


def projection():
    weights, labels = [torch.randn(4, 4)] * 2, [torch.arange(4, dtype=torch.int32)] * 2
    return lambda: project(weights, labels, labels, 4, 4)


CALLS = {f.__name__: f for f in (moments, similarity, zipping, assignment, projection)}


@pytest.mark.parametrize("name", CALLS)
def test_small_call(measure, name):
    call = CALLS[name]()

    def thousand():
        for _ in range(1000):
            call()

    measure(thousand, f"1000 small calls of {name}", rounds=5)
