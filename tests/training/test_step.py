import copy
import functools

import pytest
import torch
from torch import nn

from featurestore.errors import TrainingError
from featurestore.spec import load_spec
from training.embeddings import UnifiedEmbedding
from training.models import MODELS, build_model
from training.objective import BINARY, RATING
from training.step import CompiledStep, EagerStep, GraphedStep, make_step

ROWS = 64


def batch(seed=0, rows=ROWS):
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randint(1000, (rows, 7), generator=generator, dtype=torch.int32)
    return slots, torch.randint(2, (rows,), generator=generator).float()


def fresh(name="article", *, sparse=False, device="cpu"):
    torch.manual_seed(0)
    return build_model(
        name, load_spec("article"), bias=0.5, table=functools.partial(UnifiedEmbedding, sparse=sparse)
    ).to(device)


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), lr=0.01, fused=True, **options)


def step_of(model, **options):
    return EagerStep(model, adam(model), RATING, **options)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one, other, **tolerance):
    return all(torch.allclose(one[name], other[name], **tolerance) for name in one)


@pytest.mark.parametrize("objective", [RATING, BINARY])
@pytest.mark.parametrize("name", MODELS)
def test_an_eager_step_is_the_plain_step_bit_for_bit(name, objective):
    model = fresh(name)
    plain = copy.deepcopy(model)
    optimizer = adam(plain)
    step = EagerStep(model, adam(model), objective)
    for seed in range(4):
        slots, labels = batch(seed)
        optimizer.zero_grad()
        expected = objective.loss(plain(slots), labels)
        expected.backward()
        optimizer.step()
        loss = step(slots, labels, ROWS)
        assert torch.equal(loss, expected)
        assert (loss.dtype, loss.shape, loss.requires_grad) == (torch.float32, (), False)
    assert equal(model.state_dict(), plain.state_dict())


def test_the_shares_of_two_processes_sum_to_the_whole():
    slots, labels = batch()
    whole = fresh()
    loss = step_of(whole)(slots, labels, ROWS)
    shares, sums = [], []
    for part in (slice(0, 20), slice(20, None)):
        model = fresh()
        shares.append(step_of(model)(slots[part], labels[part], ROWS))
        sums.append(gradients(model))
    assert torch.allclose(sum(shares), loss)
    both = {name: sums[0][name] + sums[1][name] for name in sums[0]}
    assert close(both, gradients(whole), atol=1e-7)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_rows_give_a_loss_and_gradients_of_zero(precision, sparse):
    model = fresh(sparse=sparse)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model.state_dict())
    loss = EagerStep(model, optimizer, RATING, precision=precision)(*batch(rows=0), global_rows=10)
    assert loss.item() == 0.0
    assert loss.dtype == torch.float32
    assert all((gradient.to_dense() == 0).all() for gradient in gradients(model).values())
    assert equal(model.state_dict(), before)


def test_bf16_is_near_fp32_and_keeps_parameters_and_loss_in_float32():
    exact, rounded = fresh(), fresh()
    for seed in range(3):
        expected = step_of(exact)(*batch(seed), ROWS)
        loss = step_of(rounded, precision="bf16")(*batch(seed), ROWS)
        assert loss.item() == pytest.approx(expected.item(), rel=0.02)
        assert loss.item() != expected.item()
        assert loss.dtype == torch.float32
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.float32}


def test_tf32_leaves_a_cpu_and_the_global_setting_alone():
    exact, same = fresh(), fresh()
    before = torch.get_float32_matmul_precision()
    expected = step_of(exact)(*batch(), ROWS)
    assert torch.equal(step_of(same, precision="tf32")(*batch(), ROWS), expected)
    assert torch.get_float32_matmul_precision() == before


def test_the_gradients_are_reduced_and_then_clipped_before_the_update():
    """By hand: the one weight has the gradient 2 (w - 3) = -6, doubled to -12, clipped to -5; 0 + 0.1 * 5."""

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, slots):
            return self.weight.expand(len(slots))

    def double(model):
        model.weight.grad.mul_(2)

    def clip(model):
        seen.append(model.weight.grad.item())
        nn.utils.clip_grad_norm_(model.parameters(), 5.0, foreach=True)

    seen, model = [], Constant()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = EagerStep(model, optimizer, RATING, clip=clip, reduce=double)
    step(torch.zeros(4, 1, dtype=torch.int32), torch.full((4,), 3.0), 4)
    assert seen == [-12.0]
    assert model.weight.item() == pytest.approx(0.5)


def test_a_sparse_table_takes_the_same_steps_with_an_optimizer_for_it():
    dense, sparse = fresh(), fresh(sparse=True)
    for seed in range(3):
        losses = [
            EagerStep(model, torch.optim.SGD(model.parameters(), lr=0.1), RATING)(*batch(seed), ROWS)
            for model in (dense, sparse)
        ]
        assert torch.equal(*losses)
    assert equal(dense.state_dict(), sparse.state_dict())


def test_a_compiled_step_is_near_and_compiles_once(needs_compiler):
    eager, compiled = fresh(), fresh()
    reference = step_of(eager)
    step = make_step("compile", compiled, adam(compiled), RATING, batch_rows=ROWS)
    assert isinstance(step, CompiledStep)
    for seed, rows in enumerate([ROWS, ROWS, 10, ROWS, 0]):
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            loss = step(*batch(seed, rows), ROWS)
        assert torch.allclose(loss, reference(*batch(seed, rows), ROWS), rtol=1e-4)
    assert close(compiled.state_dict(), eager.state_dict(), atol=1e-4)


def test_without_a_compiler_the_compiled_step_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match=r"there is no 'no-such-compiler'.*--step eager"):
        make_step("compile", fresh(), None, RATING, batch_rows=ROWS)


def test_a_sparse_table_is_not_compiled(needs_compiler):
    with pytest.raises(TrainingError, match="sparse"):
        make_step("compile", fresh(sparse=True), None, RATING, batch_rows=ROWS)


def test_a_graph_needs_cuda_and_one_process():
    model = build_model("article", load_spec("article"))
    with pytest.raises(TrainingError, match="CUDA device"):
        make_step("graph", model, adam(model), RATING, batch_rows=ROWS)
    with pytest.raises(TrainingError, match="one process"):
        make_step("graph", model, adam(model), RATING, batch_rows=ROWS, reduce=lambda _: None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graphed_step_is_the_eager_step():
    eager, graphed = fresh(device="cuda"), fresh(device="cuda")
    reference = EagerStep(eager, adam(eager, capturable=True), RATING)
    step = make_step("graph", graphed, adam(graphed, capturable=True), RATING, batch_rows=ROWS)
    assert isinstance(step, GraphedStep)
    losses = []
    for seed, rows in enumerate([ROWS] * 6 + [10] + [ROWS] * 2):
        slots, labels = (tensor.cuda() for tensor in batch(seed, rows))
        losses.append((step(slots, labels, rows), reference(slots, labels, rows)))
    assert all(torch.allclose(one, other, rtol=1e-5) for one, other in losses)
    assert close(graphed.state_dict(), eager.state_dict(), atol=1e-5)


def test_auto_is_eager():
    model = fresh()
    assert type(make_step("auto", model, adam(model), RATING, batch_rows=ROWS)) is EagerStep


def test_unknown_names_are_refused():
    model = fresh()
    with pytest.raises(ValueError, match=r"no step 'eagre' \(did you mean 'eager'\?\)"):
        make_step("eagre", model, adam(model), RATING, batch_rows=ROWS)
    with pytest.raises(ValueError, match=r"no precision 'bf61' \(did you mean 'bf16'\?\)"):
        make_step("eager", model, adam(model), RATING, batch_rows=ROWS, precision="bf61")
