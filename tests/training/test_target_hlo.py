"""Reading a compiled program: what runs how often, what kernels read, write and compute, what devices send."""

import pytest

from jaxgpt.training.target import bounds, cards, hlo
from jaxgpt.training.target.collectives import collectives
from jaxgpt.training.target.kernels import kernels, part_of

TEXT = """HloModule jit_dispatch, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_slice (p: f32[8,1024], i: s32[]) -> f32[1,1024] {
  %p = f32[8,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,1024]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,1024}
  ROOT %twice = f32[1,1024]{1,0} add(%cut, %cut)
}

%fused_dot (x: bf16[16,32], y: bf16[32,64]) -> bf16[16,64] {
  %x = bf16[16,32]{1,0} parameter(0)
  %y = bf16[32,64]{1,0} parameter(1)
  ROOT %d = bf16[16,64]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_bits (w: u32[1000]) -> u32[1000] {
  %w = u32[1000]{0} parameter(0)
  %x1 = u32[1000]{0} xor(%w, %w)
  ROOT %x2 = u32[1000]{0} add(%x1, %w)
}

%body (t: (s32[], f32[8,1024])) -> (s32[], f32[8,1024]) {
  %t = (s32[], /*index=1*/f32[8,1024]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%t), index=0
  %table = f32[8,1024]{1,0} get-tuple-element(%t), index=1
  %row = f32[1,1024]{1,0} fusion(%table, %n), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(dispatch)/while/body/jvp(GPT.features)/block_0/mlp/add"}
  %start = f32[1,1024]{1,0} all-reduce-start(%row), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %other = f32[1,1024]{1,0} fusion(%table, %n), kind=kLoop, calls=%fused_slice
  %done = f32[1,1024]{1,0} all-reduce-done(%start)
  ROOT %r = (s32[], f32[8,1024]{1,0}) tuple(%n, %table)
}

%condition (c: (s32[], f32[8,1024])) -> pred[] {
  %c = (s32[], f32[8,1024]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x.1: bf16[16,32], y.1: bf16[32,64], s: (s32[], f32[8,1024]), w.1: u32[1000]) -> bf16[16,64] {
  %x.1 = bf16[16,32]{1,0} parameter(0)
  %y.1 = bf16[32,64]{1,0} parameter(1)
  %s = (s32[], f32[8,1024]{1,0}) parameter(2)
  %w.1 = u32[1000]{0} parameter(3)
  %bits = u32[1000]{0} fusion(%w.1), kind=kLoop, calls=%fused_bits
  %loop = (s32[], f32[8,1024]{1,0}) while(%s), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %gather = (bf16[4,64]{1,0}, bf16[16,64]{1,0}) all-gather-start(%part), replica_groups=[2,4]<=[8], dimensions={0}
  %part = bf16[4,64]{1,0} parameter(4)
  %whole = bf16[16,64]{1,0} all-gather-done(%gather)
  ROOT %out = bf16[16,64]{1,0} fusion(%x.1, %y.1), kind=kOutput, calls=%fused_dot, metadata={op_name="jit(dispatch)/transpose(jvp(GPT.features))/block_0/mlp/up/dot_general"}
}
"""
FOUND = {kernel.name: kernel for kernel in kernels(hlo.read(TEXT))}


def test_a_loops_body_runs_as_often_as_the_compiler_says():
    assert {name: kernel.times for name, kernel in FOUND.items()} == {
        "bits": 1,
        "row": 5,
        "other": 5,
        "out": 1,
    }


def test_a_slice_reads_what_it_takes():
    assert (FOUND["row"].read, FOUND["row"].written) == (pytest.approx(4096 + 4), 4096)
    assert (FOUND["bits"].read, FOUND["bits"].written) == (4000, 4000)


def test_work_and_parts():
    assert (FOUND["out"].flops, FOUND["out"].dtype) == (2 * 16 * 32 * 64, "bf16")
    assert FOUND["bits"].integers == 2000
    assert (FOUND["out"].part, FOUND["row"].part) == ("block products", "norms, activations, biases")
    assert part_of("jit(dispatch)/jvp(GPT.features)/block_0/attention/softmax", "") == "attention"
    assert part_of("jit(dispatch)/jvp(GPT.features)/block_0/attention/query/dot", "bf16") == "block products"
    assert part_of("jit(dispatch)/jvp()/while/body/dot", "bf16") == "loss products"
    assert part_of("jit(dispatch)/dot_general", "f32") == "optimizer products"


def test_collectives_have_their_size_their_devices_and_what_runs_meanwhile():
    reduced, gathered = sorted(collectives(hlo.read(TEXT), 8), key=lambda x: -x.times)
    assert (reduced.op, reduced.times, reduced.size, reduced.devices) == ("all-reduce", 5, 4096, 4)
    assert reduced.sent == 2 * 3 / 4 * 4096 and reduced.asynchronous
    assert [kernel.name for kernel in reduced.meanwhile] == ["other"]
    assert (gathered.op, gathered.size, gathered.devices, gathered.sent) == ("all-gather", 2048, 4, 1536)


@pytest.mark.parametrize(
    "groups, devices",
    [
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", 2),
        ("mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("mesh['a'=8] {'a':(2)4}", 4),
        ("mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", 4),
        ("[4,2]<=[8]", 2),
        ("{{0,1,2},{3,4,5}}", 3),
        ("{}", 8),
    ],
)
def test_groups_of_devices(groups, devices):
    text = TEXT.replace("{{0,1,2,3},{4,5,6,7}}", groups)
    assert max(collectives(hlo.read(text), 8), key=lambda x: x.times).devices == devices


def test_a_kernel_takes_the_longest_of_its_work():
    card, (bound, large, _) = cards.CARDS["h100"], bounds.SHARES
    assert bounds.kernel_seconds(card, bound, FOUND["row"]) == pytest.approx(8196 / card.bandwidth)
    found = bounds.parts(card, list(FOUND.values()), steps=1)
    assert sum(part.launches for part in found) == 12
    sent = bounds.sending(card, collectives(hlo.read(TEXT), 8), steps=1)
    hidden = next(x for x in sent if x.op == "all-reduce")
    assert hidden.hidden[0] == pytest.approx(5 * bounds.kernel_seconds(card, bound, FOUND["other"]))
    assert hidden.overlapped == hidden.launches == 5 and sum(x.overlapped for x in sent) == 5
    overlap = bounds.overlaps(sent)[0]
    assert (overlap.share, overlap.hidden) == ("data sheet", hidden.hidden[0])
    assert overlap.part == pytest.approx(hidden.hidden[0] / sum(x.seconds for x in sent))
    assert bounds.overlaps([])[0].part == 0
    seconds = bounds.step_seconds(found, sent)
    assert seconds[0] <= seconds[1] <= seconds[2]
    product = max(FOUND.values(), key=lambda kernel: kernel.flops)
    assert bounds.kernel_seconds(card, large, product) >= product.flops / (0.8 * card.bf16)
