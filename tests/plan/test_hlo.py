"""Programs as compiled here, and lines as a TPU's compiler writes them, are read rightly."""

import jax
import jax.numpy as jnp
import pytest

from omnijax.plan import chips, cost, hlo


def compiled(f, *shapes):
  return jax.jit(f).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()


def flops(module, computation=None):
  total = 0.0
  for i in (computation or module.computations[module.entry]).values():
    total += hlo.matmul_flops(i, computation or module.computations[module.entry])
    total += sum(n * flops(module, inner) for inner, n in module.called(i))
  return total


def test_flops_of_a_loop_are_those_of_all_its_rounds():
  def f(x, ws):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

  module = hlo.parse(compiled(f, (8, 16), (5, 16, 16)).as_text())
  assert flops(module) == 5 * 2 * 8 * 16 * 16
  loop = next(i for c in module.computations.values() for i in c.values() if i.opcode == "while")
  assert module.trips(loop) == 5


def test_counting_loops_without_a_known_count():
  text = """\
HloModule m
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  ROOT %t = (s32[], f32[4]{0}) tuple(%next, %x)
}
%condition (q: (s32[], f32[4])) -> pred[] {
  %q = (s32[], f32[4]{0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %most = s32[]{:T(128)} constant(11)
  ROOT %less = pred[]{:T(512)} compare(%j, %most), direction=LT
}
ENTRY %main (x: f32[4]) -> f32[4] {
  %x.1 = f32[4]{0} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %start = (s32[], f32[4]{0}) tuple(%one, %x.1)
  %loop = (s32[], f32[4]{0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[4]{0} get-tuple-element(%loop), index=1
}
"""
  module = hlo.parse(text)
  assert module.trips(module.computations["main"]["loop"]) == 5  # 1, 3, 5, 7, 9


def line(text, **others):
  made = hlo._instruction(text)
  arrays = {k: hlo._instruction(f"  %{k} = {v} parameter(0)") for k, v in others.items()}
  return made, arrays


@pytest.mark.parametrize("text,a,b,want", [
  # A plain product; one with a batch dim written as a dilated window; a convolution that hangs
  # over both edges of 4 inputs: 2 + 3 + 3 + 2 taps.
  ("f32[8,32]{1,0:T(8,128)} convolution(%a, %b), dim_labels=bf_io->bf", "f32[8,16]", "f32[16,32]",
   2 * 8 * 16 * 32),
  ("f32[8,64,32]{2,1,0} convolution(%a, %b), window={size=8 stride=7 pad=0_0 lhs_dilate=8}, "
   "dim_labels=0bf_0io->0bf", "f32[8,64,16]", "f32[8,16,32]", 2 * 8 * 64 * 16 * 32),
  ("f32[1,4,5]{2,1,0} convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
   "f32[1,4,2]", "f32[3,2,5]", 2 * 10 * 2 * 5),
])
def test_products_written_as_convolutions(text, a, b, want):
  made, arrays = line(f"  %c = {text}", a=a, b=b)
  assert hlo.matmul_flops(made, arrays) == want


def test_what_is_no_module_is_refused():
  with pytest.raises(ValueError, match="no ENTRY computation"):
    hlo.parse("hello")


@pytest.mark.parametrize("text,group", [
  ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", [0, 1, 2, 3]),
  ("replica_groups=mesh['data'=2,'fsdp'=4] {'data'}", [0, 4]),
  ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]), ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
  ("replica_groups={{0,2},{1,3}}", [0, 2]), ("source_target_pairs={{3,4},{4,5}}", [3, 4]),
])
def test_groups_of_collectives(text, group):
  assert cost._group(f", {text}, channel_id=1") == group


SCHEDULE = """\
HloModule m
%gather (p: bf16[64,4096]) -> bf16[4096,4096] {
  %p = bf16[64,4096]{1,0} parameter(0)
  ROOT %g = bf16[4096,4096]{1,0} all-gather(%p), replica_groups=[1,64]<=[64], dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (w: bf16[64,4096], x: bf16[SIZE,4096], y: bf16[4096,4096]) -> bf16[SIZE,4096] {
  %w = bf16[64,4096]{1,0} parameter(0)
  %x = bf16[SIZE,4096]{1,0} parameter(1)
  %y = bf16[4096,4096]{1,0} parameter(2)
  %s = ((), (), (s32[1])) call-start(), async_execution_thread="sparsecore", to_apply=%gather
  %u = ((bf16[64,4096]), bf16[4096,4096]) call-update(%s, %w)
  %other = bf16[SIZE,4096]{1,0} convolution(%x, %y), dim_labels=bf_io->bf
  %d = bf16[4096,4096]{1,0} call-done(%u)
  ROOT %out = bf16[SIZE,4096]{1,0} convolution(%other, %d), dim_labels=bf_io->bf
}
"""


# Older compilers give the operands at the start.
OLDER = SCHEDULE.replace("call-start()", "call-start(%w)").replace("call-done(%u)", "call-done(%s)")
OLDER = "".join(line for line in OLDER.splitlines(True) if "call-update" not in line)
NEWER = SCHEDULE.replace(" call-", " custom-call-").replace("to_apply=%gather",
                                                            "called_computations={%gather}")


@pytest.mark.parametrize("schedule", [SCHEDULE, OLDER, NEWER], ids=["update", "start", "custom"])
@pytest.mark.parametrize("size,hidden", [(65536, True), (8, False)])
def test_a_gather_beside_other_work_costs_only_the_wait(size, hidden, schedule):
  where = chips.parse("v5p:4x4x4")
  out = cost.Estimator(hlo.parse(schedule.replace("SIZE", str(size))), where).step()
  gather = out.collectives["all-gather", "all"]
  assert gather.count == 1 and gather.bytes == pytest.approx(4096 * 4096 * 2 * 63 / 64)
  assert (gather.exposed == 0) == hidden
  assert out.flops == 2 * 2 * size * 4096 * 4096
  work = out.by_kind["matmul"]
  assert out.seconds == pytest.approx(work + gather.exposed)
  if hidden:
    assert work == pytest.approx(out.flops / (0.9 * 459e12), rel=0.01)


NEAR = """\
HloModule m
ENTRY %main (x: f32[1024,1024], y: f32[1024,1024]) -> f32[1024,1024] {
  %x = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  %y = f32[1024,1024]{1,0:T(8,128)S(1)} parameter(1)
  %s = ((f32[1024,1024]{1,0}), f32[256,1024]{1,0:S(1)}, s32[]) slice-start(%x), slice={[0:256]}
  %d = f32[256,1024]{1,0:S(1)} slice-done(%s)
  %c = f32[1024,1024]{1,0:S(1)} custom-call(%d, %d, %d, %d), custom_call_target="ConcatBitcast"
  %a = f32[1024,1024]{1,0:S(1)} add(%c, %y)
  ROOT %b = f32[1024,1024]{1,0} add(%a, %y)
}
"""


def test_only_what_lies_in_hbm_is_moved():
  where = chips.parse("v5p:2x2x1")
  out = cost.Estimator(hlo.parse(NEAR), where).step()
  rate = cost._MEMORY * where.chip.hbm_rate
  assert out.by_kind["wait"] == pytest.approx(2**20 / rate)  # the slice, not what it is cut from
  assert out.by_kind["memory"] == pytest.approx(4 * 2**20 / rate)  # the root's output


LAYERS = """\
HloModule m
%take (w: bf16[20,512,1024], i: s32[]) -> bf16[512,1024] {
  %i = s32[] parameter(1)
  %w = bf16[20,512,1024]{2,1,0} parameter(0)
  ROOT %s = bf16[1,512,1024]{2,1,0} dynamic-slice(%w, %i, %i, %i), dynamic_slice_sizes={1,512,1024}
}
%layer (x: bf16[8,512], w: bf16[20,512,1024], i: s32[]) -> bf16[8,1024] {
  %x.1 = bf16[8,512]{1,0:S(1)} parameter(0)
  %w.1 = bf16[20,512,1024]{2,1,0} parameter(1)
  %i.1 = s32[]{:S(6)} parameter(2)
  %t = bf16[512,1024]{1,0} fusion(%w.1, %i.1), kind=kLoop, calls=%take
  ROOT %c = bf16[8,1024]{1,0:S(1)} convolution(%x.1, %t), dim_labels=bf_io->bf
}
ENTRY %main (x: bf16[8,512], w: bf16[20,512,1024], i: s32[]) -> bf16[8,1024] {
  %x.2 = bf16[8,512]{1,0:S(1)} parameter(0)
  %w.2 = bf16[20,512,1024]{2,1,0} parameter(1)
  %i.2 = s32[]{:S(6)} parameter(2)
  ROOT %f = bf16[8,1024]{1,0:S(1)} fusion(%x.2, %w.2, %i.2), kind=kOutput, calls=%layer
}
"""


def test_a_layer_of_stacked_weights_is_read_alone():
  module = hlo.parse(LAYERS)
  entry = module.computations["main"]
  made = cost.Estimator(module, chips.parse("v5e:2x2"))
  assert made._bytes(entry["f"], entry) == 512 * 1024 * 2 + 4


UNTIL = """\
HloModule m
%speak (a: f32[1000]) -> f32[1000] {
  %a = f32[1000]{0} parameter(0)
  ROOT %n = f32[1000]{0} negate(%a), metadata={op_name="jit(run)/while/body/frame/neg"}
}
%still (b: f32[1000]) -> f32[1000] {
  ROOT %b = f32[1000]{0} parameter(0)
}
%draw (c: f32[1000]) -> f32[1000] {
  %c = f32[1000]{0} parameter(0)
  ROOT %e = f32[1000]{0} exponential(%c), metadata={op_name="jit(run)/while/body/draw"}
}
%body (p: (pred[], f32[1000])) -> (pred[], f32[1000]) {
  %p = (pred[], f32[1000]{0}) parameter(0)
  %go = pred[] get-tuple-element(%p), index=0
  %x = f32[1000]{0} get-tuple-element(%p), index=1
  %one = f32[1000]{0} conditional(%go, %x, %x), branch_computations={%still, %speak}
  %two = f32[1000]{0} conditional(%go, %one, %one), true_computation=%draw, false_computation=%still
  ROOT %t = (pred[], f32[1000]{0}) tuple(%go, %two)
}
%condition (q: (pred[], f32[1000])) -> pred[] {
  %q = (pred[], f32[1000]{0}) parameter(0)
  ROOT %go.1 = pred[] get-tuple-element(%q), index=0
}
ENTRY %main (x: pred[], y: f32[1000]) -> (pred[], f32[1000]) {
  %x.1 = pred[] parameter(0)
  %y.1 = f32[1000]{0} parameter(1)
  %first = f32[1000]{0} negate(%y.1)
  %s = (pred[], f32[1000]{0}) tuple(%x.1, %first)
  ROOT %loop = (pred[], f32[1000]{0}) while(%s), condition=%condition, body=%body
}
"""


def test_a_round_of_an_endless_loop_does_what_may_happen():
  module, where = hlo.parse(UNTIL), chips.parse("v5e:2x2")
  once = 2 * 4000 / (0.85 * 819e9)
  assert cost.Estimator(module, where).round().seconds == pytest.approx(2 * once)
  silent = cost.Estimator(module, where, without="frame").round()
  assert silent.seconds == pytest.approx(once)
  with pytest.raises(ValueError, match="no loop that goes on"):
    cost.Estimator(hlo.parse(NETWORK), where).round()


NETWORK = """\
HloModule m
ENTRY %main (x: f32[1000]) -> f32[1000] {
  %x = f32[1000]{0} parameter(0)
  %t = token[] after-all()
  %s = (f32[1000]{0}, u32[], token[]) send(%x, %t), frontend_attributes={HANDSHAKE}
  %r = (f32[1000]{0}, u32[], token[]) recv(%t), frontend_attributes={HANDSHAKE}
  %sd = token[] send-done(%s)
  ROOT %rd = (f32[1000]{0}, token[]) recv-done(%r)
}
""".replace("HANDSHAKE", '_xla_host_transfer_rendezvous="all-reduce.1"')


def test_sums_over_slices_go_by_the_network():
  out = cost.Estimator(hlo.parse(NETWORK), chips.parse("v5e:4x4", 4)).step()
  over = out.collectives["all-reduce", "slices"]
  assert over.bytes == 2 * 4000 * 3 / 4
  assert out.seconds == pytest.approx(over.bytes / 6.25e9)


HOST = """\
HloModule m
ENTRY %main (x: bf16[1,4096,4096], a: bf16[65536,4096], b: bf16[4096,4096]) -> bf16[65536,4096] {
  %x = bf16[1,4096,4096]{2,1,0} parameter(0)
  %a = bf16[65536,4096]{1,0} parameter(1)
  %b = bf16[4096,4096]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %h = bf16[8,4096,4096]{2,1,0:T(8,128)(2,1)S(5)} custom-call(), custom_call_target="AllocateBuffer"
  %s = ((bf16[8,4096,4096]{2,1,0:S(5)}, bf16[1,4096,4096]{2,1,0}, s32[]),
    bf16[8,4096,4096]{2,1,0:S(5)}, u32[]{:S(2)}) dynamic-update-slice-start(%h, %x, %zero,
    %zero, %zero)
  %work = bf16[65536,4096]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
  %d = bf16[8,4096,4096]{2,1,0:S(5)} dynamic-update-slice-done(%s)
  %t = ((bf16[8,4096,4096]{2,1,0:S(5)}, s32[]), bf16[1,4096,4096]{2,1,0}, u32[]{:S(2)})
    dynamic-slice-start(%d, %zero, %zero, %zero), dynamic_slice_sizes={1,4096,4096}
  %e = bf16[1,4096,4096]{2,1,0} dynamic-slice-done(%t)
  ROOT %out = bf16[65536,4096]{1,0} convolution(%work, %b), dim_labels=bf_io->bf
}
"""


def test_copies_to_the_host_and_back_go_by_its_wire():
  out = cost.Estimator(hlo.parse(HOST), chips.parse("v5p:2x2x1")).step()
  copies, one = out.collectives["copy", "host"], 4096 * 4096 * 2
  assert (copies.count, copies.bytes) == (2, 2 * one)
  work = out.by_kind["matmul"] / 2
  assert work > one / 16e9  # so that the way there is hidden, and the way back is waited for
  assert copies.exposed == pytest.approx(one / 16e9)
  assert out.seconds == pytest.approx(2 * work + one / 16e9)


@pytest.mark.parametrize("chip,twice", [("v5p:2x2x1", "s8"), ("tpu7x:2x2x1", "f8e4m3fn")])
@pytest.mark.parametrize("kind", ["bf16", "s8", "f8e4m3fn"])
def test_products_of_8_bits_take_half_as_long_where_they_do(chip, twice, kind):
  text = """\
HloModule m
ENTRY %main (a: KIND[4096,4096], b: KIND[4096,4096]) -> f32[4096,4096] {
  %a = KIND[4096,4096]{1,0} parameter(0)
  %b = KIND[4096,4096]{1,0} parameter(1)
  ROOT %c = f32[4096,4096]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
  where = chips.parse(chip)
  out = cost.Estimator(hlo.parse(text.replace("KIND", kind)), where).step()
  assert out.flops == 2 * 4096**3
  want = out.flops / (0.9 * where.chip.flops) / (2 if kind == twice else 1)
  assert out.seconds == pytest.approx(want)


def test_topologies_are_told_apart_and_bad_ones_refused():
  two = chips.parse("v5e:16x16", 4)
  assert (two.chips, two.chip.name, two.name) == (1024, "v5e", "v5e:16x16")
  for bad in ("v5p:4x4", "v9:2x2", "v5p", "v5e:0x4", ""):
    with pytest.raises(ValueError, match=r"v5e:16x16.*v5p:4x4x4"):
      chips.parse(bad)
  with pytest.raises(ValueError, match=r"--slices is 0; wanted 1 or more"):
    chips.parse("v5e:4x4", 0)
