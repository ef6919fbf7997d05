"""Causal attention within segments: of packed rows, chosen by backend, and against a cache.

B batch  T queries  S keys  K kv heads  G queries per kv head  N = K * G heads  M = G * T
H head dim
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from omnijax.kernels import compiler, context, cudnn, sums

MASKED = -1e30  # finite, so that a query with no key gives a mean and not NaN
SAVED = "attention"  # what the backward pass needs of the forward one, for remat policies
_CHUNK = 512  # queries that the plain attention takes at once
_RUN = 128  # queries that it takes with the keys near them, where there is a window
_LANES = 128  # of a TPU's vector unit
_INTERPRET = False  # for tests: the TPU's kernel in plain operations


def rows(q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segment_BS: jax.Array, *,
         order_S: np.ndarray, blocks: tuple[int, int], documents: int = 0, window: int = 0
         ) -> jax.Array:
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
    documents: most of a row that a GPU's kernel may count on; 0 is any number.
    window: positions that each sees, itself included; 0 is all before it.

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
  near = window and not seq and 2 * window < q_BSNH.shape[1]
  local: Callable[..., jax.Array] = functools.partial(_near if near else _chunked, window)
  splash = compiler.platform() == "tpu" or _INTERPRET
  if splash:
    ways = lambda axis: mesh.shape[axis] if axis else 1
    kernel = _splash_kernel(order_S, q_BSNH.shape[2] // ways(heads), ways(seq), blocks,
                            window)
    spec = kernel.manual_sharding_spec(jax.NamedSharding(mesh, jax.P(None, seq)))
    kernel, local = jax.tree.map(jax.reshard, kernel, spec), _splash
  elif compiler.platform() == "gpu" and not seq and not window and cudnn.usable(q_BSNH):
    local = functools.partial(_packed, documents)

  # Nothing is summed over devices in it, so there is nothing to check; the kernel can't be.
  @functools.partial(jax.shard_map, in_specs=(spec, wide, wide, wide, at), out_specs=wide,
                     check_vma=False)
  def run(kernel, *args):
    if not splash:
      return some(kernel, *args)
    # One row after the other: what the gradient of one needs meanwhile is there once.
    return jnp.concatenate([some(kernel, *(x[b : b + 1] for x in args))
                            for b in range(len(args[0]))])

  def some(kernel, q_BTNH, k_BSKH, v_BSKH, segment_BT):
    key_segment_BS = segment_BT
    if seq:
      k_BSKH, v_BSKH = context.whole(seq, k_BSKH), context.whole(seq, v_BSKH)
      key_segment_BS = jax.lax.all_gather(segment_BT, seq, axis=1, tiled=True)[:, place_S]
    return local(kernel, q_BTNH, k_BSKH, v_BSKH, segment_BT, key_segment_BS)

  return run(kernel, q_BSNH, k_BSKH, v_BSKH, segment_BS)


def _splash_kernel(order_S: np.ndarray, heads: int, ways: int, blocks: tuple[int, int],
                   window: int) -> Any:
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
  mask = splash.LocalMask((S, S), (window - 1, 0), 0) if window else splash.CausalMask((S, S))
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


def _packed(documents: int, index_S: jax.Array, q_BSNH: jax.Array, k_BSKH: jax.Array,
            v_BSKH: jax.Array, segment_BS: jax.Array, key_segment_BS: jax.Array) -> jax.Array:
  """Attention of whole rows on a GPU."""
  o_BSNH = cudnn.attend(_whole, segment_BS, q_BSNH, k_BSKH, v_BSKH, most=documents)
  return checkpoint_name(o_BSNH, SAVED)


def _whole(segment_BS: jax.Array, q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array
           ) -> jax.Array:
  index_S = jnp.arange(q_BSNH.shape[1])
  return _chunked(0, index_S, q_BSNH, k_BSKH, v_BSKH, segment_BS, segment_BS)


@jax.custom_vjp
def _kernel(kernel: Any, *args: Any) -> jax.Array:
  return jax.vmap(kernel)(*args)


def _kernel_forward(kernel: Any, *args: Any) -> tuple[jax.Array, Any]:
  return jax.vjp(jax.vmap(kernel), *args)


def _kernel_backward(vjp: Any, slope: jax.Array) -> tuple[Any, ...]:
  # The gradients of queries come in parts, one for each block of keys.
  return None, *sums.by_addition(vjp)(slope)


_kernel.defvjp(_kernel_forward, _kernel_backward)


def _chunked(window: int, index_T: jax.Array, q_BTNH: jax.Array, k_BSKH: jax.Array,
             v_BSKH: jax.Array, segment_BT: jax.Array, key_segment_BS: jax.Array) -> jax.Array:
  """Attention of one device's queries in plain operations, not quadratic in memory.

  Long rows are taken a chunk of queries at a time, whose scores are made again in the backward
  pass.
  """
  B, T, N, H = q_BTNH.shape
  last_BT = jnp.broadcast_to(index_T[None], (B, T))
  chunks = -(-T // _CHUNK)
  if chunks == 1:
    o_BTNH = _plain(q_BTNH, k_BSKH, v_BSKH, segment_BT, key_segment_BS, last_BT, window)
    return checkpoint_name(o_BTNH, SAVED)

  def split(x):
    x = jnp.pad(x, ((0, 0), (0, chunks * _CHUNK - T), *((0, 0),) * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(B, chunks, _CHUNK, *x.shape[2:]), 1, 0)

  one = jax.checkpoint(lambda part: _plain(part[0], k_BSKH, v_BSKH, part[1], key_segment_BS,
                                           part[2], window))
  o_CBTNH = jax.lax.map(one, tuple(map(split, (q_BTNH, segment_BT, last_BT))))
  return checkpoint_name(jnp.moveaxis(o_CBTNH, 0, 1).reshape(B, -1, N, H)[:, :T], SAVED)


def _near(window: int, index_S: jax.Array, q_BSNH: jax.Array, k_BSKH: jax.Array,
          v_BSKH: jax.Array, segment_BS: jax.Array, key_segment_BS: jax.Array) -> jax.Array:
  """Attention of whole rows to what lies near: runs of queries, each with the keys that it sees."""
  B, S = segment_BS.shape
  runs, before = -(-S // _RUN), -(-window // _RUN) * _RUN
  pad = lambda x, lead: jnp.pad(x, ((0, 0), (lead, runs * _RUN - S), *((0, 0),) * (x.ndim - 2)))
  queries = lambda x: pad(x, 0).reshape(B * runs, _RUN, *x.shape[2:])

  def keys(x: jax.Array) -> jax.Array:
    x = pad(x, before).reshape(B, -1, _RUN, *x.shape[2:])
    parts = [x[:, i : i + runs] for i in range(before // _RUN + 1)]
    return jnp.stack(parts, 2).reshape(B * runs, before + _RUN, *x.shape[3:])

  last_RT = jnp.broadcast_to(before + jnp.arange(_RUN)[None], (B * runs, _RUN))
  o_RTNH = _plain(queries(q_BSNH), keys(k_BSKH), keys(v_BSKH), queries(segment_BS),
                  keys(key_segment_BS), last_RT, window)
  return checkpoint_name(o_RTNH.reshape(B, -1, *q_BSNH.shape[2:])[:, :S], SAVED)


def _plain(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segment_BT: jax.Array,
           key_segment_BS: jax.Array, last_BT: jax.Array, window: int) -> jax.Array:
  """Softmax attention to keys of the same segment up to the last one, softmax in float32."""
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  G = N // K
  q_BKMH, lead, back = _by_head(q_BTNH, K)
  k_BKSH, v_BKSH = jnp.moveaxis(k_BSKH, 1, 2), jnp.moveaxis(v_BSKH, 1, 2)
  s_BKMS = jnp.einsum("bkmh,bksh->bkms", q_BKMH, k_BKSH, preferred_element_type=jnp.float32)
  causal_BTS = jnp.arange(S)[None, None] <= last_BT[:, :, None]
  if window:
    causal_BTS &= jnp.arange(S)[None, None] > last_BT[:, :, None] - window
  same_BTS = segment_BT[:, :, None] == key_segment_BS[:, None]
  keep_B11TS = (causal_BTS & same_BTS)[:, None, None]
  s_BKGTS = jnp.where(keep_B11TS, lead(s_BKMS, G, T, S), MASKED)
  e_BKGTS = jnp.exp(s_BKGTS - jax.lax.stop_gradient(jnp.max(s_BKGTS, -1, keepdims=True)))
  # Divided by the sum after the values are added up: H numbers a query instead of S.
  o_BKMH = jnp.einsum("bkms,bksh->bkmh", lead(e_BKGTS.astype(v_BKSH.dtype), G * T, S), v_BKSH,
                      preferred_element_type=jnp.float32)
  o_BKGTH = lead(o_BKMH, G, T, H) / jnp.sum(e_BKGTS, -1, keepdims=True)
  return back(o_BKGTH)


def _by_head(q_BTNH: jax.Array, K: int) -> tuple[jax.Array, Callable[..., jax.Array],
                                                Callable[[jax.Array], jax.Array]]:
  """Scaled queries [B, K, M, H], a reshape to [B, K, ...], and the way back of [B, K, G, T, H].

  Heads lead, so that every product is of plain matrices: twice as fast on a CPU. Sharding is told
  at every reshape: jax 0.12 forgets how a batch of one row is sharded.
  """
  B, T, N, H = q_BTNH.shape
  G = N // K
  rows, _, heads, _ = jax.typeof(q_BTNH).sharding.spec

  def lead(x: jax.Array, *shape: int) -> jax.Array:
    return jax.lax.reshape(x, (B, K, *shape), out_sharding=jax.P(rows, heads, *[None] * len(shape)))

  def back(o_BKGTH: jax.Array) -> jax.Array:
    o_BTKGH = jnp.moveaxis(o_BKGTH, 3, 1).astype(q_BTNH.dtype)
    return jax.lax.reshape(o_BTKGH, (B, T, N, H), out_sharding=jax.P(rows, None, heads, None))

  q_BTKGH = jax.lax.reshape(q_BTNH * H**-0.5, (B, T, K, G, H),
                            out_sharding=jax.P(rows, None, heads, None, None))
  return lead(jnp.moveaxis(q_BTKGH, 1, 3), G * T, H), lead, back


class Lengths(NamedTuple):
  """Where each row of a cache of S positions is. The cache is a ring: position a lies at a % S."""

  length_B: jax.Array  # positions so far
  # Most that there ever were: what a later position wrote over is gone, also where a row went back.
  high_B: jax.Array
  count_B: jax.Array  # of the new positions that are given, how many are real, from the left


def cached(q_BTNH: jax.Array, old: tuple[jax.Array, ...], new_k_BTKH: jax.Array,
           new_v_BTKH: jax.Array, *, at: Lengths, window: int) -> jax.Array:
  """Attention of new positions [B, T, N, H] to those in a cache and to each other.

  The cache is only read: what is new is written for all layers at once afterwards, so that a step
  touches no more of it than it must.

  Args:
    q_BTNH: queries.
    old: keys and values [B, K, S, H] of the cache, heads leading; and, if those are of 8 bits, what
      each is to be multiplied with [B, K, S, 1].
    new_k_BTKH, new_v_BTKH: those of the new positions, each seen by itself and later ones.
    at: how far the rows are.
    window: positions that each sees, itself included; 0 is as many as the cache holds.
  """
  B, T, N, H = q_BTNH.shape
  k_BKSH, v_BKSH, *scales = old
  K, S = k_BKSH.shape[1:3]
  G, window = N // K, window or S
  q_BKMH, lead, back = _by_head(q_BTNH, K)
  k_scale, v_scale = [jnp.moveaxis(x, 3, 2) for x in scales] or (None, None)  # [B, K, 1, S]
  new_k_BKTH, new_v_BKTH = jnp.moveaxis(new_k_BTKH, 1, 2), jnp.moveaxis(new_v_BTKH, 1, 2)
  score = lambda k: jnp.einsum("bkmh,bksh->bkms", q_BKMH, k.astype(q_BKMH.dtype),
                               preferred_element_type=jnp.float32)
  last_B1 = at.length_B[:, None] - 1
  place_BS = last_B1 - (last_B1 - jnp.arange(S)[None]) % S  # which position lies where
  there_BS = place_BS >= jnp.maximum(at.high_B - S, 0)[:, None]
  own_BT = at.length_B[:, None] + jnp.arange(T)[None]
  seen_BTS = there_BS[:, None] & (place_BS[:, None] > own_BT[:, :, None] - window)
  old_BKMS = score(k_BKSH) if k_scale is None else score(k_BKSH) * k_scale
  old_BKMS = lead(jnp.where(seen_BTS[:, None, None], lead(old_BKMS, G, T, S), MASKED), G * T, S)
  ones_TT = jnp.ones((T, T), bool)
  causal_TT = (jnp.tril(ones_TT) & ~jnp.tril(ones_TT, -window))[None, None, None]
  new_BKMT = lead(jnp.where(causal_TT, lead(score(new_k_BKTH), G, T, T), MASKED), G * T, T)
  most_BKM1 = jnp.maximum(jnp.max(old_BKMS, -1, keepdims=True),
                          jnp.max(new_BKMT, -1, keepdims=True))
  total_BKM1, o_BKMH = jnp.float32(0), jnp.float32(0)
  for s_BKMS, values, scale in ((old_BKMS, v_BKSH, v_scale), (new_BKMT, new_v_BKTH, None)):
    e_BKMS = jnp.exp(s_BKMS - most_BKM1)
    total_BKM1 += jnp.sum(e_BKMS, -1, keepdims=True)
    e_BKMS = e_BKMS if scale is None else e_BKMS * scale
    o_BKMH += jnp.einsum("bkms,bksh->bkmh", e_BKMS.astype(q_BTNH.dtype),
                         values.astype(q_BTNH.dtype), preferred_element_type=jnp.float32)
  return back(lead(o_BKMH / total_BKM1, G, T, H))


def append(cache_LBKSH: jax.Array, new_LBTKH: jax.Array, at: Lengths) -> jax.Array:
  """The cache of all layers with new positions after those of each row, written in place.

  Row by row: a scatter makes a TPU copy all of the cache to another layout and back.

  Args:
    cache_LBKSH: keys, or values.
    new_LBTKH: those of the new positions, T <= S.
    at: how far the rows are, and how many of the new positions are real.
  """
  like, new_like = jax.typeof(cache_LBKSH).sharding.spec, jax.typeof(new_LBTKH).sharding.spec
  rows = jax.typeof(at.length_B).sharding.spec

  @functools.partial(jax.shard_map, in_specs=(like, new_like, rows, rows), out_specs=like,
                     check_vma=False)
  def local(cache_LBKSH, new_LBTKH, length_B, count_B):
    new_LBKTH = jnp.moveaxis(new_LBTKH, 2, 3).astype(cache_LBKSH.dtype)
    L, B, K, T, H = new_LBKTH.shape
    S = cache_LBKSH.shape[3]

    def write(b, cache_LBKSH):
      begin = length_B[b] % S
      new_L1KTH = jax.lax.dynamic_slice_in_dim(new_LBKTH, b, 1, 1)
      # Windows of T: one at the end begins earlier, and what finds no room goes on at the start.
      for wraps in (False, True) if T > 1 else (False,):
        first = jnp.zeros_like(begin) if wraps else jnp.minimum(begin, S - T)
        zero = jnp.zeros_like(first)
        where = (zero, b.astype(first.dtype), zero, first, zero)
        old_L1KTH = jax.lax.dynamic_slice(cache_LBKSH, where, (L, 1, K, T, H))
        place_T = first + jnp.arange(T)
        fresh_T = ((place_T < begin) == wraps) & ((place_T - begin) % S < count_B[b])
        moved_L1KTH = jnp.roll(new_L1KTH, begin - first - S * wraps, 3)
        kept_L1KTH = jnp.where(fresh_T[None, None, None, :, None], moved_L1KTH, old_L1KTH)
        cache_LBKSH = jax.lax.dynamic_update_slice(cache_LBKSH, kept_L1KTH, where)
      return cache_LBKSH

    return jax.lax.fori_loop(0, B, write, cache_LBKSH)

  return local(cache_LBKSH, new_LBTKH, at.length_B, at.count_B)
