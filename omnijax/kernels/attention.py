"""Causal attention within segments: of packed rows, chosen by backend, and against a cache.

B batch  T queries  S keys  K kv heads  G queries per kv head  N = K * G heads  M = G * T
H head dim
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnijax.kernels import compiler, context, sums

MASKED = -1e30  # finite, so that a query with no key gives a mean and not NaN
SAVED = "attention"  # what the backward pass needs of the forward one, for remat policies
_CHUNK = 512  # queries that the plain attention takes at once
_LANES = 128  # of a TPU's vector unit
_INTERPRET = False  # for tests: the TPU's kernel in plain operations


def rows(q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segment_BS: jax.Array, *,
         order_S: np.ndarray, blocks: tuple[int, int]) -> jax.Array:
  """Attention of packed rows: each position to those before it in its segment.

  B and heads may be sharded; and S, too: then keys and values are gathered, and each device works
  on its own queries (context parallelism as in Llama 3).

  Args:
    q_BSNH: queries.
    k_BSKH: keys, each serving N // K query heads (GQA, Ainslie et al., 2023).
    v_BSKH: values.
    segment_BS: segment of each position; 0 is padding, whose output means nothing.
    order_S: the place in the row of each position, as S is laid out over devices.
    blocks: queries and keys that the kernel of a TPU holds at once.

  Returns:
    [B, S, N, H] in the type of q.
  """
  mesh = jax.sharding.get_abstract_mesh()
  batch, seq, heads, _ = jax.typeof(q_BSNH).sharding.spec
  wide, at = jax.P(batch, seq, heads, None), jax.P(batch, seq)
  order_S = np.asarray(order_S, np.int32)
  place_S = np.argsort(order_S)
  kernel: Any = jax.reshard(jnp.asarray(order_S), jax.P(seq))
  spec: Any = jax.P(seq)
  local: Callable[..., jax.Array] = _chunked
  if compiler.platform() == "tpu" or _INTERPRET:
    ways = lambda axis: mesh.shape[axis] if axis else 1
    kernel = _splash_kernel(order_S, q_BSNH.shape[2] // ways(heads), ways(seq), blocks)
    spec = kernel.manual_sharding_spec(jax.NamedSharding(mesh, jax.P(None, seq)))
    kernel, local = jax.tree.map(jax.reshard, kernel, spec), _splash

  # Nothing is summed over devices in it, so there is nothing to check; the kernel can't be.
  @functools.partial(jax.shard_map, in_specs=(spec, wide, wide, wide, at), out_specs=wide,
                     check_vma=False)
  def run(kernel, q_BTNH, k_BSKH, v_BSKH, segment_BT):
    key_segment_BS = segment_BT
    if seq:
      k_BSKH, v_BSKH = context.whole(seq, k_BSKH), context.whole(seq, v_BSKH)
      key_segment_BS = jax.lax.all_gather(segment_BT, seq, axis=1, tiled=True)[:, place_S]
    return local(kernel, q_BTNH, k_BSKH, v_BSKH, segment_BT, key_segment_BS)

  return run(kernel, q_BSNH, k_BSKH, v_BSKH, segment_BS)


def _splash_kernel(order_S: np.ndarray, heads: int, ways: int, blocks: tuple[int, int]) -> Any:
  """The TPU's block-sparse kernel (splash attention, of jax) for queries in this order."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash
  S = len(order_S)
  q, k = min(blocks[0], S // ways), min(blocks[1], S)
  if S // ways % q or S % k or q % _LANES or k % _LANES:
    raise ValueError(f"a device has {S // ways} of a row's {S} positions, and model."
                     f"attention_blocks are {blocks}; on a TPU both blocks must be multiples of "
                     f"{_LANES} and divide those: change data.positions or the blocks.")
  # Each block of keys gives a part of the gradient of all queries: fewer blocks for long rows, as
  # long as they fit into the 16 MiB of a chip's vector memory.
  wide = max(k, min(S // 16, 2048))
  sizes = splash.BlockSizes(
    block_q=q, block_kv=k, block_kv_compute=min(k, 512), block_q_dkv=q, block_kv_dkv=wide,
    block_kv_dkv_compute=min(k, 512), use_fused_bwd_kernel=True)
  mask = splash.CausalMask((S, S))
  mask.q_sequence = order_S
  return splash.make_splash_mha(splash.MultiHeadMask([mask] * heads), block_sizes=sizes,
                                head_shards=1, q_seq_shards=ways, residual_checkpoint_name=SAVED,
                                interpret=_INTERPRET)


def _splash(kernel: Any, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array,
            segment_BT: jax.Array, key_segment_BS: jax.Array) -> jax.Array:
  """Attention of one device's queries on a TPU; head dims are padded to whole vectors."""
  from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds
  H = q_BTNH.shape[-1]

  def lead(x):
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -H % _LANES)))
    return jnp.moveaxis(x, 2, 1)

  o_BNTH = _kernel(kernel, lead(q_BTNH * H**-0.5), lead(k_BSKH), lead(v_BSKH),
                   SegmentIds(segment_BT, key_segment_BS))
  return jnp.moveaxis(o_BNTH, 1, 2)[..., :H]


@jax.custom_vjp
def _kernel(kernel: Any, *args: Any) -> jax.Array:
  return jax.vmap(kernel)(*args)


def _kernel_forward(kernel: Any, *args: Any) -> tuple[jax.Array, Any]:
  return jax.vjp(jax.vmap(kernel), *args)


def _kernel_backward(vjp: Any, slope: jax.Array) -> tuple[Any, ...]:
  # The gradients of queries come in parts, one for each block of keys.
  return None, *sums.by_addition(vjp)(slope)


_kernel.defvjp(_kernel_forward, _kernel_backward)


def _chunked(index_T: jax.Array, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array,
             segment_BT: jax.Array, key_segment_BS: jax.Array) -> jax.Array:
  """Attention of one device's queries in plain operations, not quadratic in memory.

  Long rows are taken a chunk of queries at a time, whose scores are made again in the backward
  pass.
  """
  B, T, N, H = q_BTNH.shape
  last_BT = jnp.broadcast_to(index_T[None], (B, T))
  chunks = -(-T // _CHUNK)
  if chunks == 1:
    return _plain(q_BTNH, k_BSKH, v_BSKH, segment_BT, key_segment_BS, last_BT)

  def split(x):
    x = jnp.pad(x, ((0, 0), (0, chunks * _CHUNK - T), *((0, 0),) * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(B, chunks, _CHUNK, *x.shape[2:]), 1, 0)

  one = jax.checkpoint(lambda part: _plain(part[0], k_BSKH, v_BSKH, part[1], key_segment_BS,
                                           part[2]))
  o_CBTNH = jax.lax.map(one, tuple(map(split, (q_BTNH, segment_BT, last_BT))))
  return jnp.moveaxis(o_CBTNH, 0, 1).reshape(B, -1, N, H)[:, :T]


def _plain(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segment_BT: jax.Array,
           key_segment_BS: jax.Array, last_BT: jax.Array) -> jax.Array:
  """Softmax attention to keys of the same segment up to the last one, softmax in float32."""
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  G = N // K
  # Told at every reshape: jax 0.12 forgets how a batch of one row is sharded.
  rows, _, heads, _ = jax.typeof(q_BTNH).sharding.spec
  lead = lambda x, *shape: jax.lax.reshape(
    x, (B, K, *shape), out_sharding=jax.P(rows, heads, *[None] * len(shape)))
  # Heads lead, so that every product is of plain matrices: twice as fast on a CPU.
  q_BTKGH = jax.lax.reshape(q_BTNH * H**-0.5, (B, T, K, G, H),
                            out_sharding=jax.P(rows, None, heads, None, None))
  q_BKMH = lead(jnp.moveaxis(q_BTKGH, 1, 3), G * T, H)
  k_BKSH, v_BKSH = jnp.moveaxis(k_BSKH, 1, 2), jnp.moveaxis(v_BSKH, 1, 2)
  s_BKMS = jnp.einsum("bkmh,bksh->bkms", q_BKMH, k_BKSH, preferred_element_type=jnp.float32)
  causal_BTS = jnp.arange(S)[None, None] <= last_BT[:, :, None]
  same_BTS = segment_BT[:, :, None] == key_segment_BS[:, None]
  keep_B11TS = (causal_BTS & same_BTS)[:, None, None]
  s_BKGTS = jnp.where(keep_B11TS, lead(s_BKMS, G, T, S), MASKED)
  e_BKGTS = jnp.exp(s_BKGTS - jax.lax.stop_gradient(jnp.max(s_BKGTS, -1, keepdims=True)))
  # Divided by the sum after the values are added up: H numbers a query instead of S.
  o_BKMH = jnp.einsum("bkms,bksh->bkmh", lead(e_BKGTS.astype(v_BKSH.dtype), G * T, S), v_BKSH,
                      preferred_element_type=jnp.float32)
  o_BKGTH = lead(o_BKMH, G, T, H) / jnp.sum(e_BKGTS, -1, keepdims=True)
  return jax.lax.reshape(jnp.moveaxis(o_BKGTH, 3, 1).astype(q_BTNH.dtype), (B, T, N, H),
                         out_sharding=jax.P(rows, None, heads, None))


def cached(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *, segment_BT: jax.Array,
           key_segment_BS: jax.Array, first_B: jax.Array) -> jax.Array:
  """Attention of new positions [B, T, N, H] against a cache that they have been written to.

  Args:
    q_BTNH: queries; query t of batch row b stands at index first_B[b] + t among the keys.
    k_BSKH, v_BSKH: keys and values of the cache.
    segment_BT: segment of each query.
    key_segment_BS: segment of each key.
    first_B: index of the first query among the keys.
  """
  last_BT = first_B[:, None] + jnp.arange(q_BTNH.shape[1])[None]
  return _plain(q_BTNH, k_BSKH, v_BSKH, segment_BT, key_segment_BS, last_BT)
