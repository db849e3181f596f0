"""Costs from HLO text: of programs compiled here, and of text as libtpu writes it."""

import jax
import jax.numpy as jnp
import pytest

from etcvla.aot.costs import Collective, analyse
from etcvla.aot.hlo import arrays, parse, replica_groups
from etcvla.models import flops


def count_both(fn, *shapes):
    """Return the FLOPs of a function's jaxpr, and the costs of its compiled program."""
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(fn).lower(*args).compile().as_text()
    return flops.count(fn, *args).total(), analyse(text, 1)


def test_loops_count_once_per_iteration():
    def inner(x, w):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=3)[0]

    def outer(x, ws):
        return jax.lax.scan(lambda h, w: (inner(h, w), h.sum()), x, ws)

    expected, costs = count_both(outer, (4, 16), (5, 16, 16))
    assert costs.flops == expected == 5 * 3 * 2 * 4 * 16 * 16
    assert costs.unknown_loops == []


def test_a_loop_whose_length_depends_on_data_counts_once():
    def until_small(x):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ x, x)

    matrix = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    costs = analyse(jax.jit(until_small).lower(matrix).compile().as_text(), 1)
    assert len(costs.unknown_loops) == 1
    assert costs.flops == 2 * 8 * 8 * 8


def test_matrix_products_and_convolutions_agree_with_the_jaxpr():
    def products(x, y, image, kernel):
        batched = jnp.einsum("bqd,bkd->bqk", x, y)
        return batched, jax.lax.conv_general_dilated(image, kernel, (2, 2), "VALID")

    expected, costs = count_both(products, (3, 5, 8), (3, 6, 8), (2, 3, 12, 12), (7, 3, 4, 4))
    assert costs.flops == expected


def test_the_branch_with_more_flops_counts():
    def branches(flag, x):
        return jax.lax.cond(flag[0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    expected, costs = count_both(branches, (1,), (8, 8))
    assert costs.flops == expected == 2 * 2 * 8**3


# ---- text as libtpu writes it ------------------------------------------------------------------


def make_module(entry, *others):
    return "\n".join(
        [
            "HloModule jit_step, is_scheduled=true",
            *others,
            "ENTRY %main (p: f32[4]) -> f32[4] {",
            *(f"  {line}" for line in entry.splitlines()),
            "}",
        ]
    )


def test_dilation_zeros_of_a_batched_product_do_not_count():
    costs = analyse(
        make_module("""\
%a = bf16[4,82,152]{2,1,0:T(8,128)(2,1)} parameter(0)
%b = bf16[4,152,64]{2,1,0:T(8,128)(2,1)} parameter(1)
ROOT %c = f32[4,82,64]{1,2,0:T(8,128)S(1)} convolution(%a, %b), window={size=4 stride=3 lhs_dilate=4}, \
dim_labels=0bf_0io->0bf, metadata={op_name="jit(step)/bkqs,bskh->bkqh/dot_general"}"""),
        1,
    )
    assert costs.flops == 2 * 4 * 82 * 152 * 64


def test_padding_of_a_convolution_does_not_count():
    costs = analyse(
        make_module("""\
%x = f32[1,8,3]{2,1,0} parameter(0)
%w = f32[3,3,5]{2,1,0} parameter(1)
ROOT %y = f32[1,8,5]{2,1,0} convolution(%x, %w), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"""),
        1,
    )
    assert costs.flops == 2 * 3 * 5 * (8 * 3 - 2)


LOOP = """\
%cond (p: (s32[], f32[8,8], s32[])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %limit = s32[]{:T(128)} get-tuple-element(%p), index=2
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (q: (s32[], f32[8,8], s32[])) -> (s32[], f32[8,8], s32[]) {
  %q = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %step = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%j, %step)
  %x = f32[8,8]{1,0:T(8,128)} get-tuple-element(%q), index=1
  %n = s32[]{:T(128)} get-tuple-element(%q), index=2
  %y = f32[8,8]{1,0:T(8,128)} convolution(%x, %x), dim_labels=bf_io->bf
  ROOT %r = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%next, %y, %n)
}
"""


@pytest.mark.parametrize(("step", "iterations"), [(1, 18), (2, 9), (5, 4)])
def test_constant_loop_bounds_are_found_through_copies(step, iterations):
    costs = analyse(
        make_module(
            """\
%zero = s32[]{:T(128)} constant(0)
%start = s32[]{:T(128)} copy(%zero)
%end = s32[]{:T(128)} constant(18)
%x = f32[8,8]{1,0:T(8,128)} parameter(0)
%t = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%start, %x, %end)
ROOT %w = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}, s32[]{:T(128)}) while(%t), condition=%cond, body=%body""",
            LOOP.replace("STEP", str(step)),
        ),
        1,
    )
    assert costs.flops == iterations * 2 * 8**3
    # An iteration reads a matrix twice and writes one; counting reads and writes a few numbers.
    assert costs.hbm_bytes == pytest.approx(iterations * 3 * 256, rel=0.1)


@pytest.mark.parametrize(
    ("line", "kind", "num_bytes"),
    [
        (
            "bf16[16,8]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}",
            "all-gather",
            3 * 64,
        ),
        (
            "bf16[4,8]{1,0} all-reduce(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%sum",
            "all-reduce",
            64,
        ),
        (
            "bf16[1,8]{1,0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}",
            "reduce-scatter",
            48,
        ),
        ("bf16[4,8]{1,0} all-to-all(%x), replica_groups={}, dimensions={0}", "all-to-all", 56),
        (
            "(bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%x), replica_groups=[4,2]<=[2,4]T(1,0)",
            "all-gather",
            64,
        ),
        (
            "(bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]{:S(2)}) collective-permute-start(%x), "
            "source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            64,
        ),
    ],
)
def test_wire_bytes_of_each_collective(line, kind, num_bytes):
    costs = analyse(
        make_module(f"%x = bf16[4,8]{{1,0:T(4,128)(2,1)}} parameter(0)\nROOT %y = {line}"), 8
    )
    assert [(group.kind, size) for group, size in costs.wire_bytes.items()] == [(kind, num_bytes)]


def test_split_collectives_count_once_and_sliced_reductions_are_reduce_scatters():
    piece = """\
%fused.{0} (a: f32[4,8]) -> f32[8,8] {{
  %a.{0} = f32[4,8]{{1,0}} parameter(0)
  ROOT %g.{0} = f32[8,8]{{1,0}} all-gather(%a.{0}), replica_groups=[1,2]<=[2], frontend_attributes={{chain_id="7"}}
}}"""
    scatter = """\
%all-reduce-scatter.3 (b: f32[8,8]) -> f32[4,8] {
  %b = f32[8,8]{1,0} parameter(0)
  %r = f32[8,8]{1,0} all-reduce(%b), replica_groups={{0,1}}, to_apply=%sum
  %i = s32[] partition-id()
  ROOT %s = f32[4,8]{1,0} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={4,8}
}"""
    costs = analyse(
        make_module(
            """\
%x = f32[4,8]{1,0} parameter(0)
%y = f32[8,8]{1,0} fusion(%x), kind=kCustom, calls=%fused.1
%z = f32[8,8]{1,0} fusion(%x), kind=kCustom, calls=%fused.2
ROOT %w = f32[4,8]{1,0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.3""",
            piece.format(1),
            piece.format(2),
            scatter,
        ),
        2,
    )
    assert costs.wire_bytes == {
        Collective("all-gather", "[1,2]<=[2]"): 128,
        Collective("reduce-scatter", "{{0,1}}"): 128,
    }


def test_slices_count_as_slices_and_on_chip_memory_does_not_count():
    fused = """\
%update (stack: f32[18,8,8], slice: f32[8,8], at: s32[]) -> f32[18,8,8] {
  %stack = f32[18,8,8]{2,1,0:T(8,128)} parameter(0)
  %slice = f32[8,8]{1,0:T(8,128)S(1)} parameter(1)
  %at = s32[]{:T(128)} parameter(2)
  %one = f32[1,8,8]{2,1,0:T(8,128)} bitcast(%slice)
  ROOT %new = f32[18,8,8]{2,1,0:T(8,128)} dynamic-update-slice(%stack, %one, %at, %at, %at)
}

%read (stack: f32[18,8,8], at: s32[]) -> f32[8,8] {
  %stack.1 = f32[18,8,8]{2,1,0:T(8,128)} parameter(0)
  %at.1 = s32[]{:T(128)} parameter(1)
  %taken = f32[1,8,8]{2,1,0:T(8,128)} dynamic-slice(%stack.1, %at.1, %at.1, %at.1), dynamic_slice_sizes={1,8,8}
  ROOT %flat = f32[8,8]{1,0:T(8,128)S(1)} bitcast(%taken)
}"""
    entry = """\
%s = f32[18,8,8]{2,1,0:T(8,128)} parameter(0)
%i = s32[]{:T(128)S(6)} parameter(1)
%x = f32[8,8]{1,0:T(8,128)S(1)} fusion(%s, %i), kind=kLoop, calls=%read
%y = f32[8,8]{1,0:T(8,128)S(1)} negate(%x)
%start = (f32[8,8]{1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%y)
%out = f32[8,8]{1,0:T(8,128)} copy-done(%start)
ROOT %t = f32[18,8,8]{2,1,0:T(8,128)} fusion(%s, %y, %i), kind=kLoop, calls=%update"""
    costs = analyse(make_module(entry, fused), 1)
    assert costs.hbm_bytes == 3 * 256  # one slice read, one copied out, one written


def test_replica_groups_of_all_notations():
    assert replica_groups("{{0,1},{2,3}}", 4) == [[0, 1], [2, 3]]
    assert replica_groups("{}", 3) == [[0, 1, 2]]
    assert replica_groups("[2,3]<=[6]", 6) == [[0, 1, 2], [3, 4, 5]]
    assert replica_groups("[3,2]<=[2,3]T(1,0)", 6) == [[0, 3], [1, 4], [2, 5]]
    assert replica_groups("mesh['a'=2,'b'=3] {'a'}", 6) == [[0, 3], [1, 4], [2, 5]]
    assert replica_groups("mesh['a'=2,'b'=3] {'a','b'}", 6) == [[0, 1, 2, 3, 4, 5]]
    with pytest.raises(ValueError, match="cannot read the groups"):
        replica_groups("mesh['a'=4] {'a':(1)2}", 4)


def test_shapes_are_parsed_and_other_text_is_refused():
    parsed = arrays(
        "(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, pred[]{:T(512)}, s4[3]{0}, f8e4m3fn[2]{0:S(0)})"
    )
    assert [(a.dims, a.num_bytes, a.in_hbm) for a in parsed] == [
        ((4, 8), 64, False),
        ((), 1, True),
        ((3,), 2, True),
        ((2,), 2, True),
    ]
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("module @jit_step {}")
