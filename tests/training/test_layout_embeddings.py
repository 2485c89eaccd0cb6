"""Embeddings of layouts: their numbers by hand, their bytes, their gradients."""

import dataclasses

import numpy as np
import pytest
import torch

from featurestore.layouts import LAYOUTS, make_plan
from featurestore.plans import Elements, Field, Products, Projected, Rows, Sums
from training.layout_embeddings import SCALE, embed

FIELDS = (Field("colour", ("red", "green", "blue")), Field("id", tuple(map(str, range(40)))))
DIM = 6
FLOATS = 43 * DIM  # as many as the exact table
CODES = torch.tensor([[0, 0], [1, 39], [2, 7]])


def set_table(module, *values):
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value, dtype=torch.float32))


@pytest.mark.parametrize("name", LAYOUTS)
def test_bytes_are_what_the_plan_says_and_all_are_trained(name):
    plan = make_plan(name, FIELDS, DIM, FLOATS)
    torch.manual_seed(0)
    module = embed(plan)
    assert sum(parameter.numel() for parameter in module.parameters()) == plan.floats
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    every = torch.cartesian_prod(torch.arange(3), torch.arange(40))
    output = module(every)
    assert output.shape == (120, 2 * DIM)
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    reached = sum(int((parameter.grad != 0).sum()) for parameter in module.parameters())
    assert reached > plan.floats / 3  # hashing leaves some rows to nobody


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_feature_has_its_own_columns(name):
    """Another value of one feature leaves the embedding of the other as it is."""
    torch.manual_seed(0)
    module = embed(make_plan(name, FIELDS, DIM, FLOATS))
    first, second = module(torch.tensor([[0, 5], [1, 5]])).split(DIM, 1)
    assert torch.equal(second[0], second[1])
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    "name", sorted(set(LAYOUTS) - {"dhe", "tensor_train", "quotient_remainder", "double"})
)
def test_embeddings_start_small(name):
    torch.manual_seed(0)
    output = embed(make_plan(name, FIELDS, DIM, FLOATS))(CODES)
    assert output.abs().max() <= 4 * SCALE


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_state_is_the_parameters_alone(name):
    plan = make_plan(name, FIELDS, DIM, FLOATS)
    one, other = embed(plan), embed(plan)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(CODES), other(CODES))
    assert set(one.state_dict()) == {key for key, _ in one.named_parameters()}


def test_rows_are_concatenated():
    module = embed(Rows(3, 2, (np.array([[0, 2]]), np.array([[1, 1]]))))
    set_table(module, [[1, 2], [3, 4], [5, 6]])
    assert module(torch.tensor([[0, 0]])).tolist() == [[1, 2, 5, 6, 3, 4, 3, 4]]


def test_narrow_rows_are_signed_and_projected():
    plan = Projected(
        num_rows=3,
        width=1,
        dim=2,
        slots=(np.array([[0, 2]]), np.array([[1, 0]])),
        signs=(np.array([[1.0, -1.0]]), np.array([[1.0, 1.0]])),
        projections=(np.array([[1.0, 0.0], [10.0, 100.0]]), np.array([[1.0, 1.0], [1.0, -1.0]])),
    )
    module = embed(plan)
    set_table(module, [[1], [2], [3]])
    # (1, -3) @ A_0 = (1 - 30, -300); (2, 1) @ A_1 = (3, 1)
    assert module(torch.tensor([[0, 0]])).tolist() == [[-29, -300, 3, 1]]
    coded = dataclasses.replace(plan, codes=(np.array([[0.5, 0.25]]), np.array([[-1.0, 1.0]])))
    module = embed(coded)
    set_table(module, [[1], [2], [3]])
    assert module(torch.tensor([[0, 0]])).tolist() == [[-28.5, -299.75, 2, 2]]


def test_learned_projections():
    module = embed(Projected(2, 2, 3, (np.array([[1]]),)))
    set_table(module, [[1, 2], [3, 4]], [[1, 0, 1], [0, 1, 1]])
    assert module(torch.tensor([[0]])).tolist() == [[3, 4, 7]]


def test_sums_are_weighted():
    slots = (np.array([[0, 1]]),)
    module = embed(Sums(2, 2, slots))
    set_table(module, [[1, 2], [3, 4]])
    assert module(torch.tensor([[0]])).tolist() == [[4, 6]]
    module = embed(Sums(2, 2, slots, num_weights=1, weight_slots=(np.array([0]),)))
    assert module.weights.tolist() == [[1, 1]]
    set_table(module, [[1, 2], [3, 4]], [[10, -1]])
    assert module(torch.tensor([[0]])).tolist() == [[7, 16]]


def test_products_are_by_element():
    module = embed(Products(2, 2, (np.array([[0, 1]]),)))
    set_table(module, [[1, 2], [3, 4]])
    assert module(torch.tensor([[0]])).tolist() == [[3, 8]]


def test_elements_are_picked_and_signed():
    module = embed(Elements(3, (np.array([[2, 0]]),), (np.array([[-1, 1]]),)))
    set_table(module, [[1], [2], [3]])
    assert module(torch.tensor([[0]])).tolist() == [[-3, 1]]


def test_a_tensor_train_is_the_product_of_its_cores():
    plan = make_plan("tensor_train", FIELDS, DIM, FLOATS)
    module = embed(plan)
    (n1, n2, n3), (d1, d2, d3), (r1, r2) = plan.rows, plan.columns, plan.ranks
    one, two, three = (core.detach() for core in module.cores)
    one, two, three = one.view(n1, d1, r1), two.view(n2, r1, d2, r2), three.view(n3, r2, d3)
    table = torch.einsum("iap,jpbq,kqc->ijkabc", one, two, three).reshape(n1 * n2 * n3, DIM)
    expected = torch.cat([table[CODES[:, 0]], table[3 + CODES[:, 1]]], 1)
    torch.testing.assert_close(module(CODES), expected)


def test_deep_hash_embeddings_are_the_network_of_the_hashes():
    plan = make_plan("dhe", FIELDS, DIM, FLOATS)
    module = embed(plan)
    x = torch.from_numpy(plan.codes[1][[0, 39, 7]])
    assert x.abs().max() <= 1
    for layer in module.layers[:2]:
        x = torch.nn.functional.mish(layer(x))
    torch.testing.assert_close(module(CODES)[:, DIM:], module.layers[2](x))
