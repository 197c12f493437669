from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from fusetune.errors import MemberError
from fusetune.members import average as module
from fusetune.members import streaming
from fusetune.members.average import Average, ResidentAverage, StreamingAverage, plan
from fusetune.members.memory import available_bytes, required_bytes
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights

FORMS = (ResidentAverage, StreamingAverage)

Edit = Callable[[Path, Callable[[dict[str, Tensor]], None]], None]
simplex = st.lists(st.just(0.0) | st.floats(1e-6, 1.0), min_size=3, max_size=3).filter(any)
shared_fixtures = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(bits(a[n]), bits(b[n])) for n in a)


def in_model(average: Average, weights: FusionWeights) -> dict[str, Tensor]:
    average.into_model(weights)
    return {n: t.detach().clone() for n, t in average.model.state_dict().items()}


def member_file(pool: MemberPool, index: int) -> dict[str, Tensor]:
    return load_file(pool.members[index].path / "model.safetensors")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> type[Average]:
    return request.param


class TestArithmetic:
    def test_one_hot_is_the_member_bit_by_bit(
        self,
        form: Callable[..., Average],
        copied_members: Path,
        bert: PreTrainedModel,
        edit: Edit,
    ) -> None:
        def poison(tensors: dict[str, Tensor]) -> None:
            for tensor in tensors.values():
                tensor.fill_(math.nan)

        def negative_zero(tensors: dict[str, Tensor]) -> None:
            tensors["classifier.bias"].fill_(-0.0)

        edit(copied_members / "step-10", poison)
        edit(copied_members / "step-20", negative_zero)
        pool = MemberPool.open(copied_members)
        average = form(pool, bert)
        for weights in (FusionWeights((0.0, 1.0, 0.0)), FusionWeights((1e-60, 1.0, 0.0))):
            assert same(in_model(average, weights), member_file(pool, 1))
            assert same(average.tensors(weights), member_file(pool, 1))
        assert math.copysign(1.0, float(bert.state_dict()["classifier.bias"][0])) == -1.0

    def test_a_member_of_zero_weight_brings_in_no_nan(
        self,
        form: Callable[..., Average],
        copied_members: Path,
        bert: PreTrainedModel,
        edit: Edit,
    ) -> None:
        edit(copied_members / "step-20", lambda t: t["classifier.weight"].fill_(math.nan))
        average = form(MemberPool.open(copied_members), bert)
        fused = in_model(average, FusionWeights((0.5, 0.0, 0.5)))
        assert all(bool(t.isfinite().all()) for t in fused.values())
        spoilt = in_model(average, FusionWeights((0.4, 0.2, 0.4)))
        assert bool(spoilt["classifier.weight"].isnan().all())

    @shared_fixtures
    @given(raw=simplex)
    def test_agrees_with_float64(
        self,
        form: Callable[..., Average],
        bert_members: Path,
        bert: PreTrainedModel,
        raw: list[float],
    ) -> None:
        pool = MemberPool.open(bert_members)
        weights = FusionWeights.normalised(raw)
        fused = in_model(form(pool, bert), weights)
        files = [member_file(pool, i) for i in range(3)]
        for name, value in fused.items():
            terms = [w * f[name].double() for w, f in zip(weights.values, files, strict=True)]
            scale = sum(term.abs() for term in terms)
            error = (value.double() - sum(terms)).abs()
            assert bool((error <= 4e-7 * scale + 1e-30).all())

    @shared_fixtures
    @given(raw=simplex)
    def test_both_forms_and_the_state_dict_give_the_same_bits(
        self, bert_members: Path, other_bert: Callable[[], PreTrainedModel], raw: list[float]
    ) -> None:
        pool = MemberPool.open(bert_members)
        weights = FusionWeights.normalised(raw)
        resident = ResidentAverage(pool, other_bert())
        streaming = StreamingAverage(pool, other_bert())
        expected = in_model(resident, weights)
        assert same(in_model(streaming, weights), expected)
        assert same(resident.tensors(weights), expected)
        assert same(streaming.tensors(weights), expected)

    def test_many_tiles_and_threads_do_not_change_a_bit(
        self,
        raw_members: Callable[[Sequence[dict[str, Tensor]]], Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        states = [{"weight": torch.randn(70, 301), "bias": torch.randn(70)} for _ in range(5)]
        pool = MemberPool.open(raw_members(states))
        weights = FusionWeights.normalised((0.1, 0.0, 0.3, 0.2, 0.4))
        whole = in_model(ResidentAverage(pool, nn.Linear(301, 70)), weights)
        monkeypatch.setattr(module, "TILE", 4096)
        monkeypatch.setattr(streaming, "TILE", 4096)
        for threads, form in (
            (1, ResidentAverage),
            (2, ResidentAverage),
            (2, StreamingAverage),
        ):
            torch.set_num_threads(threads)
            assert same(in_model(form(pool, nn.Linear(301, 70)), weights), whole)

    @pytest.mark.parametrize("weights", [(0.2, 0.3, 0.5), (0.1, 0.9, 0.0)])
    def test_a_model_averaged_with_itself(
        self,
        form: Callable[..., Average],
        bert_members: Path,
        copied_members: Path,
        bert: PreTrainedModel,
        weights: tuple[float, ...],
    ) -> None:
        for step in ("step-20", "step-30"):
            target = copied_members / step / "model.safetensors"
            target.write_bytes((bert_members / "step-10" / "model.safetensors").read_bytes())
        pool = MemberPool.of(sorted(copied_members.iterdir()))  # `open` counts copies once
        fused = in_model(form(pool, bert), FusionWeights(weights))
        for name, value in member_file(pool, 0).items():
            torch.testing.assert_close(fused[name], value, rtol=3e-7, atol=0)

    def test_the_order_of_the_members_does_not_matter(
        self, bert_members: Path, other_bert: Callable[[], PreTrainedModel]
    ) -> None:
        pool = MemberPool.open(bert_members)
        turned = MemberPool([pool.members[i] for i in (2, 0, 1)])
        a = in_model(ResidentAverage(pool, other_bert()), FusionWeights((0.2, 0.3, 0.5)))
        b = in_model(ResidentAverage(turned, other_bert()), FusionWeights((0.5, 0.2, 0.3)))
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)

    def test_the_number_of_weights_must_be_the_number_of_members(
        self, form: Callable[..., Average], bert_members: Path, bert: PreTrainedModel
    ) -> None:
        average = form(MemberPool.open(bert_members), bert)
        with pytest.raises(ValueError, match="3 members need 3 weights; got 2"):
            average.into_model(FusionWeights((0.5, 0.5)))
        with pytest.raises(ValueError, match="3 members need 3 weights; got 4"):
            average.tensors(FusionWeights.uniform(4))


class TestGradientProducts:
    def batch(self) -> dict[str, Tensor]:
        ids = torch.randint(0, 31, (6, 5), generator=torch.Generator().manual_seed(1))
        return {"input_ids": ids, "labels": torch.tensor([0, 1, 1, 0, 1, 0])}

    def explicit(self, pool: MemberPool, model: nn.Module) -> list[float]:
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return [
            sum(float((g.double() * file[n].double()).sum()) for n, g in gradients.items())
            for file in (member_file(pool, i) for i in range(len(pool)))
        ]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_are_the_explicit_sums(
        self,
        form: Callable[..., Average],
        save_members: Callable[..., Path],
        bert: PreTrainedModel,
        dtype: torch.dtype,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for form_module in (module, streaming):
            monkeypatch.setattr(form_module, "TILE", 256)  # tensors that cross tiles
        pool = MemberPool.open(save_members(k=4, dtype=dtype))
        average = form(pool, bert)
        for weights in (FusionWeights.uniform(4), FusionWeights((0.0, 0.7, 0.0, 0.3))):
            average.into_model(weights)
            bert.zero_grad()
            bert.eval()(**self.batch()).loss.backward()
            products = average.gradient_products()
            assert products.shape == (4,)
            assert products.dtype == "float64"
            assert products == pytest.approx(self.explicit(pool, bert), rel=1e-4, abs=1e-5)

    def test_are_the_derivative_of_the_loss(
        self,
        form: Callable[..., Average],
        save_members: Callable[..., Path],
        bert: PreTrainedModel,
    ) -> None:
        pool = MemberPool.open(save_members(dtype=torch.float64))
        average = form(pool, bert.double().eval())

        def loss(w: tuple[float, ...]) -> Tensor:
            average.into_model(FusionWeights(w))
            value: Tensor = bert(**self.batch()).loss
            return value

        loss((0.4, 0.3, 0.3)).backward()
        products = average.gradient_products()
        step = 1e-5
        with torch.no_grad():
            difference = loss((0.4 + step, 0.3 - step, 0.3)) - loss(
                (0.4 - step, 0.3 + step, 0.3)
            )
        assert products[0] - products[1] == pytest.approx(
            float(difference) / (2 * step), rel=1e-4
        )

    def test_both_forms_give_the_same_bits(
        self, bert_members: Path, other_bert: Callable[[], PreTrainedModel]
    ) -> None:
        pool = MemberPool.open(bert_members)
        found = []
        for form in FORMS:
            model = other_bert().eval()
            average = form(pool, model)
            average.into_model(FusionWeights((0.2, 0.3, 0.5)))
            model(**self.batch()).loss.backward()
            found.append(average.gradient_products().tolist())
        assert found[0] == found[1]

    def test_what_has_no_gradient_counts_zero_whatever_it_holds(
        self,
        form: Callable[..., Average],
        copied_members: Path,
        bert: PreTrainedModel,
        edit: Edit,
    ) -> None:
        name = "bert.embeddings.position_embeddings.weight"
        edit(copied_members / "step-20", lambda t: t[name].fill_(math.inf))
        pool = MemberPool.open(copied_members)
        average = form(pool, bert.eval())
        assert average.gradient_products().tolist() == [0.0, 0.0, 0.0]
        bert.get_parameter(name).requires_grad_(False)
        average.into_model(FusionWeights((0.5, 0.0, 0.5)))
        bert(**self.batch()).loss.backward()
        products = average.gradient_products()
        assert products == pytest.approx(self.explicit(pool, bert), rel=1e-4, abs=1e-5)

    def test_parameters_that_share_memory_count_together(
        self, form: Callable[..., Average], raw_members: Callable[..., Path]
    ) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Parameter(torch.zeros(3))
                self.b = nn.Parameter(self.a.detach())  # another object, the same memory

        states = [{"a": torch.arange(3.0) + i} for i in range(2)]
        model = Twice()
        average = form(MemberPool.open(raw_members(states)), model)
        average.into_model(FusionWeights.uniform(2))
        (model.a.sum() + 2.0 * model.b.sum()).backward()
        assert average.gradient_products().tolist() == [9.0, 18.0]


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_16_bit_members_are_summed_in_float32_and_rounded_once(
        self,
        form: Callable[..., Average],
        save_members: Callable[..., Path],
        bert: PreTrainedModel,
        dtype: torch.dtype,
    ) -> None:
        pool = MemberPool.open(save_members(k=7, dtype=dtype))
        weights = FusionWeights.normalised(math.sqrt(p) for p in (2, 3, 5, 7, 11, 13, 17))
        average = form(pool, bert)
        fused = in_model(average, weights)
        stored = average.tensors(weights)
        files = [member_file(pool, i) for i in range(7)]
        off = total = 0
        for name, value in stored.items():
            exact = sum(
                w * f[name].double() for w, f in zip(weights.values, files, strict=True)
            )
            assert value.dtype == dtype
            assert fused[name].dtype == torch.float32
            assert torch.equal(fused[name], value.float())
            off += int((value != exact.to(dtype)).sum())
            total += value.numel()
        # Sums in 16 bits miss the nearest value in half of the elements; those in float32
        # only where the exact sum is within some 1e-7 of the middle between two values.
        assert off <= total / 1000

    def test_16_bit_members_averaged_with_themselves_do_not_change(
        self,
        form: Callable[..., Average],
        save_members: Callable[..., Path],
        bert: PreTrainedModel,
    ) -> None:
        folder = save_members(k=3, dtype=torch.bfloat16)
        for step in ("step-20", "step-30"):
            source = folder / "step-10" / "model.safetensors"
            (folder / step / "model.safetensors").write_bytes(source.read_bytes())
        pool = MemberPool.of(sorted(folder.iterdir()))  # `open` counts copies once
        assert same(
            form(pool, bert).tensors(FusionWeights((0.3, 0.3, 0.4))), member_file(pool, 0)
        )

    def test_a_model_in_16_bits_takes_what_the_file_would_hold(
        self,
        form: Callable[..., Average],
        save_members: Callable[..., Path],
        bert: PreTrainedModel,
    ) -> None:
        pool = MemberPool.open(save_members(dtype=torch.bfloat16))
        average = form(pool, bert.to(torch.bfloat16))
        weights = FusionWeights.uniform(3)
        assert same(in_model(average, weights), average.tensors(weights))

    def test_float64_is_summed_in_float64(
        self,
        form: Callable[..., Average],
        raw_members: Callable[[Sequence[dict[str, Tensor]]], Path],
    ) -> None:
        states = [
            {"weight": torch.randn(3, 5).double(), "bias": torch.randn(3).double()}
            for _ in range(2)
        ]
        average = form(MemberPool.open(raw_members(states)), nn.Linear(5, 3).double())
        fused = in_model(average, FusionWeights((0.3, 0.7)))
        exact = 0.3 * states[0]["weight"] + 0.7 * states[1]["weight"]
        torch.testing.assert_close(fused["weight"], exact, rtol=1e-14, atol=1e-15)


class TestBuffers:
    def states(self, counts: tuple[int, int]) -> list[dict[str, Tensor]]:
        states = []
        for count in counts:
            norm = nn.BatchNorm1d(4)
            norm.num_batches_tracked.fill_(count)
            norm.running_mean.fill_(float(len(states)))
            states.append({n: t.detach().clone() for n, t in norm.state_dict().items()})
        return states

    def test_float_buffers_are_averaged_and_integers_are_kept(
        self, form: Callable[..., Average], raw_members: Callable[..., Path]
    ) -> None:
        average = form(MemberPool.open(raw_members(self.states((7, 7)))), nn.BatchNorm1d(4))
        fused = in_model(average, FusionWeights((0.25, 0.75)))
        assert fused["running_mean"].tolist() == [0.75] * 4
        assert fused["num_batches_tracked"].item() == 7
        assert fused["num_batches_tracked"].dtype == torch.int64
        assert average.tensors(FusionWeights((0.25, 0.75)))["num_batches_tracked"].item() == 7

    def test_counts_of_batches_are_the_last_members(
        self, form: Callable[..., Average], raw_members: Callable[..., Path]
    ) -> None:
        average = form(MemberPool.open(raw_members(self.states((7, 8)))), nn.BatchNorm1d(4))
        fused = in_model(average, FusionWeights((0.25, 0.75)))
        assert fused["num_batches_tracked"].item() == 8
        assert average.tensors(FusionWeights((0.25, 0.75)))["num_batches_tracked"].item() == 8

    def test_integers_that_differ_are_refused_by_name(
        self, form: Callable[..., Average], raw_members: Callable[..., Path]
    ) -> None:
        states = [{"weight": torch.zeros(2), "order": torch.tensor([i])} for i in range(2)]
        model = nn.ParameterDict({"weight": torch.zeros(2)})
        model.register_buffer("order", torch.tensor([0]))
        with pytest.raises(MemberError, match=r"order is torch\.int64 and differs"):
            form(MemberPool.open(raw_members(states)), model)

    def test_non_persistent_buffers_are_not_touched(
        self,
        form: Callable[..., Average],
        copied_members: Path,
        bert: PreTrainedModel,
        edit: Edit,
    ) -> None:
        def as_old_checkpoints(tensors: dict[str, Tensor]) -> None:
            tensors["bert.embeddings.position_ids"] = torch.zeros(1, 10, dtype=torch.int64)

        for folder in copied_members.iterdir():
            edit(folder, as_old_checkpoints)
        before = dict(bert.named_buffers())["bert.embeddings.position_ids"].clone()
        form(MemberPool.open(copied_members), bert).into_model(FusionWeights.uniform(3))
        after = dict(bert.named_buffers())["bert.embeddings.position_ids"]
        assert torch.equal(before, after)
        assert after[0, 1] == 1


class TestBinding:
    def test_what_fits_not_is_listed(
        self, bert_members: Path, bare_bert: PreTrainedModel, form: Callable[..., Average]
    ) -> None:
        with pytest.raises(MemberError) as caught:
            form(MemberPool.open(bert_members), bare_bert)
        said = str(caught.value)
        assert "2 of the members not in the model (classifier.bias, classifier.weight)" in said
        assert "of the model not in the members" not in said  # the body has its prefix or not
        assert "Load the model from one of the members" in caught.value.hint

    def test_another_head_is_named_with_both_shapes(
        self, bert_members: Path, other_bert: Callable[..., PreTrainedModel]
    ) -> None:
        with pytest.raises(
            MemberError, match=r"classifier\.weight \(\(5, 8\) in the model, \(2, 8\) in"
        ):
            ResidentAverage(MemberPool.open(bert_members), other_bert(num_labels=5))

    def test_parameters_are_aligned_views_on_one_buffer(
        self, bert_members: Path, bert: PreTrainedModel
    ) -> None:
        average = ResidentAverage(MemberPool.open(bert_members), bert)
        storages = {p.untyped_storage().data_ptr() for p in bert.parameters()}
        assert len(storages) == 1
        assert all(p.data_ptr() % 64 == 0 and p.requires_grad for p in bert.parameters())
        addresses = [p.data_ptr() for p in bert.parameters()]
        average.into_model(FusionWeights.uniform(3))
        assert addresses == [p.data_ptr() for p in bert.parameters()]

    def test_the_model_keeps_its_values_until_it_is_filled(
        self, bert_members: Path, bert: PreTrainedModel
    ) -> None:
        before = {n: t.clone() for n, t in bert.state_dict().items()}
        ResidentAverage(MemberPool.open(bert_members), bert)
        assert same(dict(bert.state_dict()), before)

    def test_a_model_can_be_taken_back_but_not_cast(
        self, bert_members: Path, bert: PreTrainedModel
    ) -> None:
        pool = MemberPool.open(bert_members)
        first = ResidentAverage(pool, bert)
        second = ResidentAverage(pool, bert)
        for average, index in ((second, 0), (first, 1), (second, 2)):
            weights = FusionWeights.one_hot(index, 3)
            assert same(in_model(average, weights), member_file(pool, index))
        bert.to(torch.bfloat16)
        with pytest.raises(ValueError, match=r"was moved to cpu, torch\.bfloat16 after"):
            first.into_model(FusionWeights.uniform(3))

    def test_works_under_inference_mode(
        self, form: Callable[..., Average], bert_members: Path, bert: PreTrainedModel
    ) -> None:
        average = form(MemberPool.open(bert_members), bert.eval())
        tokens = torch.tensor([[1, 2, 3]])
        with torch.inference_mode():
            average.into_model(FusionWeights.one_hot(0, 3))
            first = bert(input_ids=tokens).logits.clone()
            average.into_model(FusionWeights.one_hot(1, 3))
            assert not torch.equal(first, bert(input_ids=tokens).logits)


class TestPlan:
    def test_takes_the_resident_form_when_it_fits(
        self, bert_members: Path, bert: PreTrainedModel
    ) -> None:
        pool = MemberPool.open(bert_members)
        needed = required_bytes(pool)
        assert pool.nbytes * 4 / 3 <= needed <= 2 * pool.nbytes
        assert isinstance(plan(pool, bert, limit=needed), ResidentAverage)
        assert isinstance(plan(pool, bert), ResidentAverage)

    def test_streams_when_it_does_not_and_says_so(
        self, bert_members: Path, bert: PreTrainedModel, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = MemberPool.open(bert_members)
        with caplog.at_level(logging.WARNING):
            average = plan(pool, bert, limit=required_bytes(pool) - 1)
        assert isinstance(average, StreamingAverage)
        assert "The memory does not hold all members: 3 members of" in caplog.text
        assert "on the disk" in caplog.text

    def test_a_container_s_limit_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fusetune.members import memory

        monkeypatch.setattr(memory, "CGROUP", tmp_path)
        host = available_bytes(torch.device("cpu"))
        (tmp_path / "memory.max").write_text("5000\n")
        (tmp_path / "memory.current").write_text("4000\n")
        (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 3000\n")
        assert available_bytes(torch.device("cpu")) == 4000
        (tmp_path / "memory.max").write_text("max\n")
        assert available_bytes(torch.device("cpu")) > host // 2
