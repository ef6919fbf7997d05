"""What layers keep for the backward pass: as asked for, and of no consequence for gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax._src.cudnn import fused_attention_stablehlo

from omnijax import checkpoint, config, experiment, sharding
from omnijax.kernels import attention, compiler, cudnn
from omnijax.train import state as state_lib

LAYERS = 3  # no other dim is
B, S, D = tiny.DATA.rows, tiny.DATA.positions, tiny.MODEL.dim
N, K, H, F = tiny.MODEL.heads, tiny.MODEL.kv_heads, tiny.MODEL.head_dim, tiny.MODEL.mlp
MODELS = {"dense": {}, "moe": {"experts": 8, "mlp": 32, "modality_experts": (1, 1, 1)}}
ALL = config.ACTIVATIONS
SHAPES = {"input": (B, S, D), "query": (B, S, N, H), "key": (B, S, K, H), "value": (B, S, K, H),
          "attention": (B, S, N, H), "attended": (B, S, D), "gate": (B, S, F), "up": (B, S, F)}


def setup(model, seed=0, **others):
  """A model, a score of its trunk on some batch, and that batch's part of the arguments."""
  run = tiny.run(model={"layers": LAYERS, **model}, **others)
  batch = sharding.place(tiny.batch(seed))

  def score(model, x_BSD):
    lay = model.rules.lay
    hidden_BSD, _, balance = model.trunk(x_BSD, *(lay(batch[k]) for k in (
      "position", "segment", "modality")))
    return jnp.mean(jnp.sin(hidden_BSD) * hidden_BSD) + balance

  x_BSD = np.random.default_rng(seed).normal(size=(B, S, D)).astype(np.float32)
  return run, jax.value_and_grad(score, (0, 1)), sharding.RULES.lay(sharding.place(x_BSD))


def graded(model, mesh=config.Mesh(fsdp=1)):
  with jax.set_mesh(sharding.make_mesh(mesh)):
    run, score, x_BSD = setup(model)
    made = state_lib.init(run, tiny.VOCAB).model
    loss, (grads, slope_BSD) = jax.jit(score)(made, x_BSD)
    back = np.argsort(sharding.RULES.order(S))
    named = {k: np.asarray(v) for k, v in checkpoint.named(grads.blocks).items()}
    return float(loss), named | {"x": np.asarray(slope_BSD)[:, back]}


def kept(model):
  """Shapes of what the trunk's loop stacks up going forwards, and of that what is on the host."""
  run, score, x_BSD = setup(model)
  jaxpr = jax.make_jaxpr(score)(state_lib.abstract(run, tiny.VOCAB).model, x_BSD).jaxpr
  forward = next(e for e in jaxpr.eqns if e.primitive.name == "scan")
  stacked = [v.aval for v in forward.outvars if v.aval.shape[:1] == (LAYERS,) and v.aval.ndim > 1]
  shapes = lambda avals: sorted(a.shape[1:] for a in avals)
  host = [a for a in stacked if a.memory_space == jax.memory.Space.Host]
  return shapes(a for a in stacked if a not in host), shapes(host)


@pytest.mark.parametrize("policy", [
  {"remat": "minimal"}, {"remat": "names", "saved": ("query", "up")},
  {"remat": "names", "saved": ("attention",), "offloaded": ("input", "gate", "attended")},
], ids=["minimal", "saved", "offloaded"])
@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_those_without(model, policy):
  # Alone where nothing is offloaded, and over three axes of a mesh.
  mesh = config.Mesh(fsdp=1, context=2, expert=2, tensor=2) if "offloaded" in policy else None
  same(graded({**MODELS[model], **policy}, mesh or config.Mesh(fsdp=1)), plain(model))


@functools.cache
def plain(model):
  return graded(MODELS[model])


def same(got, want):
  np.testing.assert_allclose(got[0], want[0], atol=1e-5)
  assert all(np.abs(g).max() > 1e-6 for g in want[1].values())
  for name in want[1]:
    np.testing.assert_allclose(got[1][name], want[1][name], atol=1e-6, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("saved,offloaded", [
  (("query", "gate"), ()), ((), ("key", "attended")), (("up",), ("input", "attention")),
])
def test_what_was_asked_for_is_kept(mesh, saved, offloaded):
  here, there = kept({"remat": "names", "saved": saved, "offloaded": offloaded})
  always = () if "input" in offloaded else ("input",)
  assert here == sorted(SHAPES[n] for n in (*saved, *always))
  assert there == sorted(SHAPES[n] for n in offloaded)


def test_least_and_most_is_kept(mesh):
  assert kept({"remat": "full"}) == ([SHAPES["input"]], [])
  assert kept({"remat": "minimal"}) == (sorted(SHAPES.values()), [])
  assert len(kept({})[0]) > 2 * len(SHAPES)


def tagged(jaxpr):
  """Names that a program gives to its values, its inner programs included."""
  found = {e.params["name"] for e in jaxpr.eqns if e.primitive.name == "name"}
  for e in jaxpr.eqns:
    for inner in jax.tree.leaves(list(e.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
      inner = getattr(inner, "jaxpr", inner)
      found |= tagged(inner) if hasattr(inner, "eqns") else set()
  return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kernel", ["plain", "tpu"])
def test_names_are_those_that_the_code_gives(mesh, monkeypatch, model, kernel):
  monkeypatch.setattr(attention, "_INTERPRET", kernel == "tpu")
  settings = MODELS[model] | {"attention_blocks": (128, 128)}
  run = tiny.run(model={"layers": LAYERS, **settings}, data={"positions": 128})
  model = state_lib.abstract(run, tiny.VOCAB).model
  x = jax.ShapeDtypeStruct((1, 128, D), np.float32)
  of = lambda *shape: np.ones((1, 128, *shape), np.int32)
  f = lambda model, x: model.trunk(x, of(3), of(), of())[0]
  assert tagged(jax.make_jaxpr(f)(model, x).jaxpr) == set(ALL)


@pytest.mark.parametrize("arguments,message", [
  (["--model.remat", "names"], "remat is 'names', saved .* offloaded .* wants some of .*'gate'"),
  (["--model.saved", "gate"], "remat is 'none', saved .*'gate'"),
  (["--model.remat", "full", "--model.offloaded", "up"], "remat is 'full'"),
  (["--model.remat", "names", "--model.saved", "gates"], r"\['gates'\]; wanted some of .*'gate'"),
  (["--model.remat", "names", "--model.saved", "up", "--model.offloaded", "up"], r"\['up'\] twice"),
])
def test_bad_policies_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    experiment.override(tiny.run(), arguments, "omnijax train")


def test_policies_are_set_on_the_command_line():
  run = experiment.override(tiny.run(), ["--model.remat", "names", "--model.saved", "query", "up",
                                         "--model.offloaded", "gate"], "omnijax train")
  assert run.model.saved == ("query", "up") and run.model.offloaded == ("gate",)
  assert config.from_json(config.to_json(run)) == run


@pytest.mark.parametrize("room", [0, 7])
@pytest.mark.parametrize("remat, times", [("minimal", 1), ("full", 2)])
def test_cudnn_goes_forward_again_only_where_its_outputs_are_not_kept(room, remat, times, mesh,
                                                                      monkeypatch):
  monkeypatch.setattr(compiler, "platform", lambda: "gpu")
  monkeypatch.setattr(cudnn, "usable", lambda q: True)
  asked = []
  attend = cudnn.attend
  monkeypatch.setattr(cudnn, "attend", lambda *args, most: asked.append(most) or attend(
    *args, most=most))
  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_500)
  monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda wanted: True)
  run, score, x_BSD = setup({"remat": remat, "dtype": "bfloat16", "attention_documents": room},
                            data={"documents": room})
  model = state_lib.abstract(run, tiny.VOCAB).model
  traced = str(jax.make_jaxpr(score)(model, x_BSD.astype(jnp.bfloat16)))
  assert traced.count(f"{cudnn.SAVED}[") == times
  assert set(asked) == {room}
