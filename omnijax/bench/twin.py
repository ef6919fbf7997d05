"""The twin: our model and loss in plain PyTorch, as its compiler likes them best.

Parameters have our names and shapes, so that weights and gradients can be compared one by one.

B batch  S positions  D embed  N heads  K kv heads  H head dim  V vocabulary  L positions or frames
F frames  P frames with targets  Q codebooks  E depth embed  M mlp  C codes
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.utils.checkpoint import checkpoint

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib

# (q, k, v [B, S, heads, H], a mask made of the batch's segments) -> [B, S, N, H].
Attend = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


def masked(segment_BS: Tensor) -> Tensor:
  """bool [B, 1, S, S]: the keys that each query sees, those before it in its segment."""
  same_BSS = segment_BS[:, :, None] == segment_BS[:, None]
  return torch.tril(same_BSS)[:, None]


def fused_attention(q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask_B1SS: Tensor) -> Tensor:
  """PyTorch's scaled_dot_product_attention under a mask."""
  q, k, v = (x.transpose(1, 2) for x in (q_BSNH, k_BSKH, v_BSKH))
  grouped = q.shape[1] != k.shape[1]
  return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1SS,
                                        enable_gqa=grouped).transpose(1, 2)


def plain_attention(q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask_B1SS: Tensor) -> Tensor:
  """Two batched products and a softmax: faster where rows are short."""
  N, K, H = q_BSNH.shape[2], k_BSKH.shape[2], q_BSNH.shape[3]
  k, v = (x.repeat_interleave(N // K, 2) if N != K else x for x in (k_BSKH, v_BSKH))
  q, k, v = (x.transpose(1, 2) for x in (q_BSNH, k, v))
  s_BNSS = (q @ k.transpose(-1, -2)).float() * H**-0.5
  p_BNSS = s_BNSS.masked_fill(~mask_B1SS, -1e30).softmax(-1)
  return (p_BNSS.to(v.dtype) @ v).transpose(1, 2)


def flexible_attention(q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask: Any) -> Tensor:
  """PyTorch's flex_attention, on GPUs: skips blocks of keys that no query of a block sees."""
  q, k, v = (x.transpose(1, 2) for x in (q_BSNH, k_BSKH, v_BSKH))
  grouped = q.shape[1] != k.shape[1]
  return flex.flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped).transpose(1, 2)


_create = torch.compile(flex.create_block_mask)


def block_mask(segment_BS: Tensor) -> flex.BlockMask:
  """The blocks that `flexible_attention` must look at."""
  def sees(b, h, query, key):
    return (query >= key) & (segment_BS[b, query] == segment_BS[b, key])

  B, S = segment_BS.shape
  return _create(sees, B, None, S, S, device=segment_BS.device)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
  x32 = x.float()
  return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * gain).to(x.dtype)


class Twin:
  """Loss of a packed batch as a function of parameters.

  Args:
    cfg, vocab, loss: of the run.
    attend: attention of whole rows.
  """

  def __init__(self, cfg: config_lib.Model, vocab: vocab_lib.Vocab, loss: config_lib.Loss,
               attend: Attend):
    self.cfg, self.vocab, self.weights, self.attend = cfg, vocab, loss, attend
    self.dtype = getattr(torch, cfg.dtype)

  def loss(self, p: Mapping[str, Tensor], batch: Mapping[str, Tensor], mask: Any
           ) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar to minimise and the sums of its parts, as `train.loss.loss` gives them.

    Args:
      p: parameters by our names.
      batch: as the loader's, integers as int64.
      mask: what `attend` is told of its segments.
    """
    cfg, dtype = self.cfg, self.dtype
    tokens_BSD = self._tokens(p, batch["main"])
    x_BSD = tokens_BSD + F.embedding(batch["modality"], p["embed.tag_MD"]).to(dtype)
    x_BSD = self._with_frames(p, x_BSD, batch)
    turn = self._angles(batch["position"])
    layers = {k.removeprefix("blocks."): v.unbind(0) for k, v in p.items()
              if k.startswith("blocks.")}
    for i in range(cfg.layers):
      layer = {k: v[i] for k, v in layers.items()}
      if cfg.remat == "full":
        x_BSD = checkpoint(self._block, layer, x_BSD, turn, mask, use_reentrant=False)
      else:
        x_BSD = self._block(layer, x_BSD, turn, mask)
    hidden_BSD = rms_norm(x_BSD, p["gain_D"], cfg.norm_eps)
    return self._losses(p, hidden_BSD, tokens_BSD, batch)

  def _tokens(self, p: Mapping[str, Tensor], main: Tensor) -> Tensor:
    alike = F.embedding(main, p["embed.fixed_VA"]) @ p["embed.image_AD"]
    return (F.embedding(main, p["embed.main_VD"]) + alike).to(self.dtype)

  def _with_frames(self, p: Mapping[str, Tensor], x_BSD: Tensor, batch: Mapping[str, Tensor]
                   ) -> Tensor:
    """Adds to positions what their frames say."""
    (B, S, D), Q = x_BSD.shape, self.vocab.codebooks
    at_BF, codes_BFG = batch["frame_at"], batch["frames"]
    F_ = at_BF.shape[1]
    there = codes_BFG != self.vocab.no_code
    C = p["embed.code_QCD"].shape[1]
    codes_BFG = codes_BFG + C * torch.arange(Q, device=x_BSD.device).repeat(2)
    speak = F.embedding(codes_BFG[..., :Q], p["embed.code_QCD"].flatten(0, 1)).to(self.dtype)
    speak_BFD = (speak * there[..., :Q, None]).sum(2)
    heard = F.embedding(codes_BFG[..., Q:], p["embed.fixed_QCA"].flatten(0, 1)).to(self.dtype)
    heard = (heard * there[..., Q:, None]).flatten(2)
    listen_BFD = heard @ p["embed.listen_QAD"].flatten(0, 1).to(self.dtype)
    frame_LD = ((speak_BFD + listen_BFD) * (at_BF < S)[..., None]).view(B * F_, D)
    row_B1 = S * torch.arange(B, device=x_BSD.device)[:, None]
    index_L = (row_B1 + at_BF.clamp(max=S - 1)).view(-1)
    return x_BSD.view(B * S, D).index_add(0, index_L, frame_LD).view(B, S, D)

  def _angles(self, position_BS3: Tensor) -> tuple[Tensor, Tensor]:
    cfg = self.cfg
    pairs = cfg.head_dim // 2
    deal = [axis for axis, n in enumerate(cfg.rope_split) for _ in range(n)]
    axis_P = torch.tensor(deal * (pairs // len(deal)), device=position_BS3.device)
    power_P = -torch.arange(pairs, device=position_BS3.device, dtype=torch.float64) / pairs
    speed_P = (cfg.rope_theta ** power_P).float()
    angle_BS1P = (position_BS3.float()[..., axis_P] * speed_P)[:, :, None]
    return angle_BS1P.cos(), angle_BS1P.sin()

  def _rotate(self, x_BSNH: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    a, b = x_BSNH.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x_BSNH.dtype)

  def _block(self, p: Mapping[str, Tensor], x_BSD: Tensor, turn: tuple[Tensor, Tensor], mask: Any
             ) -> Tensor:
    cfg, dtype = self.cfg, self.dtype
    N, K, H = cfg.heads, cfg.kv_heads, cfg.head_dim
    h_BSD = rms_norm(x_BSD, p["attn_gain_D"], cfg.norm_eps)
    # One product for all three.
    w_DO = torch.cat([p[f"attn.w_{k}"].flatten(1) for k in ("q_DNH", "k_DKH", "v_DKH")], 1)
    q, k, v = (h_BSD @ w_DO.to(dtype)).split([N * H, K * H, K * H], -1)
    q_BSNH, k_BSKH, v_BSKH = q.unflatten(-1, (N, H)), k.unflatten(-1, (K, H)), v.unflatten(
      -1, (K, H))
    q_BSNH = self._rotate(rms_norm(q_BSNH, p["attn.q_gain_H"], cfg.norm_eps), turn)
    k_BSKH = self._rotate(rms_norm(k_BSKH, p["attn.k_gain_H"], cfg.norm_eps), turn)
    o_BSNH = self.attend(q_BSNH, k_BSKH, v_BSKH, mask)
    x_BSD = x_BSD + o_BSNH.flatten(2) @ p["attn.w_o_NHD"].flatten(0, 1).to(dtype)
    h_BSD = rms_norm(x_BSD, p["mlp_gain_D"], cfg.norm_eps)
    w_DM = torch.cat([p["mlp.w_gate_DF"], p["mlp.w_up_DF"]], 1).to(dtype)
    gate, up = (h_BSD @ w_DM).chunk(2, -1)
    return x_BSD + (F.silu(gate) * up) @ p["mlp.w_down_FD"].to(dtype)

  def _depth(self, p: Mapping[str, Tensor], hidden_LD: Tensor, main_LD: Tensor, codes_LQ: Tensor
             ) -> Tensor:
    """Logits [Q, L, C] of every code of every frame, in float32."""
    cfg, dtype, Q = self.cfg, self.dtype, self.vocab.codebooks
    w_DX = p["depth.w_in_QDE"].permute(1, 0, 2).flatten(1).to(dtype)
    x_QLE = (hidden_LD @ w_DX).unflatten(1, (Q, -1)).transpose(0, 1)
    x_QLE = x_QLE + main_LD @ p["depth.w_main_DE"].to(dtype)
    before_LQ = F.pad(codes_LQ[:, :-1], (1, 0), value=self.vocab.no_code)
    C = p["depth.code_QCE"].shape[1]
    before_QL = before_LQ.t() + C * torch.arange(Q, device=codes_LQ.device)[:, None]
    x_QLE = x_QLE + F.embedding(before_QL, p["depth.code_QCE"].flatten(0, 1)).to(dtype)
    layers = {k.removeprefix("depth.blocks."): v.unbind(0) for k, v in p.items()
              if k.startswith("depth.blocks.")}
    for i in range(cfg.depth_layers):
      x_QLE = self._depth_block({k: v[i] for k, v in layers.items()}, x_QLE)
    x_QLE = rms_norm(x_QLE, p["depth.gain_QE"][:, None], cfg.norm_eps).float()
    return torch.bmm(x_QLE, p["depth.w_out_QEC"])

  def _depth_block(self, p: Mapping[str, Tensor], x_QLE: Tensor) -> Tensor:
    cfg, dtype = self.cfg, self.dtype
    N, eps = cfg.depth_heads, cfg.norm_eps
    h_QLE = rms_norm(x_QLE, p["attn_gain_QE"][:, None], eps)
    w_QEO = torch.cat([p[f"w_{k}_QENH"].flatten(2) for k in "qkv"], 2).to(dtype)
    q, k, v = (x.unflatten(-1, (N, -1)) for x in torch.bmm(h_QLE, w_QEO).chunk(3, -1))
    q_QLNH, k_QLNH = rms_norm(q, p["q_gain_H"], eps), rms_norm(k, p["k_gain_H"], eps)
    Q, H = q.shape[0], q.shape[-1]
    # So few codebooks that products and sums beat many tiny matrix products.
    s_QQLN = (q_QLNH[:, None] * k_QLNH[None]).float().sum(-1) * H**-0.5
    seen_QQ = torch.ones(Q, Q, dtype=torch.bool, device=q.device).tril()
    p_QQLN = s_QQLN.masked_fill(~seen_QQ[:, :, None, None], -1e30).softmax(1)
    o_QLNH = (p_QQLN[..., None] * v[None]).sum(1).to(dtype)
    x_QLE = x_QLE + torch.bmm(o_QLNH.flatten(2), p["w_o_QNHE"].flatten(1, 2).to(dtype))
    h_QLE = rms_norm(x_QLE, p["mlp_gain_QE"][:, None], eps)
    w_QEM = torch.cat([p["w_gate_QEM"], p["w_up_QEM"]], 2).to(dtype)
    gate, up = torch.bmm(h_QLE, w_QEM).chunk(2, -1)
    return x_QLE + torch.bmm(F.silu(gate) * up, p["w_down_QME"].to(dtype))

  def _losses(self, p: Mapping[str, Tensor], hidden_BSD: Tensor, tokens_BSD: Tensor,
              batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    cfg, Q = self.weights, self.vocab.codebooks
    labels_BS, part = targets(batch)
    weight = {"text": cfg.text, "monologue_pad": cfg.text * cfg.monologue_pad, "image": cfg.image}
    frame_weight = batch["frame_weight"]
    B, P = frame_weight.shape[:2]
    audio_Q = torch.full((Q,), cfg.acoustic, device=hidden_BSD.device)
    audio_Q[0] = cfg.first_codebook
    dens = sum(w * part[k].sum() for k, w in weight.items())
    scale = 1 / (dens + (audio_Q * frame_weight.sum((0, 1))).sum()).clamp(min=1)
    head_DV = p["head_DV"] + p["image_AD"].t() @ p["embed.fixed_VA"].t()
    weight_BS = scale * sum(w * part[k] for k, w in weight.items())
    z_BS = scale * cfg.z * sum(part.values())
    flat = lambda x: x.flatten(0, 1)
    total, nll_L = cross_entropy(flat(hidden_BSD), head_DV, labels_BS.flatten(),
                                 weight_BS.flatten(), z_BS.flatten(), cfg.chunk)
    at_BP = batch["frame_at"][:, :P]
    S = hidden_BSD.shape[1]
    row_B1 = S * torch.arange(B, device=at_BP.device)[:, None]
    before_L = (row_B1 + (at_BP - 1).clamp(min=0)).flatten()
    at_L = (row_B1 + at_BP.clamp(max=S - 1)).flatten()
    codes_LQ = batch["frames"][:, :P, :Q].reshape(-1, Q)
    logits_QLC = self._depth(p, flat(hidden_BSD)[before_L], flat(tokens_BSD)[at_L], codes_LQ)
    frame_nll_QL = F.cross_entropy(logits_QLC.flatten(0, 1), codes_LQ.t().flatten().clamp(
      max=logits_QLC.shape[-1] - 1), reduction="none").view(Q, -1)
    sums = {k: (nll_L * part[k].flatten()).sum() for k in part}
    sums["audio"] = (frame_nll_QL * frame_weight.flatten(0, 1).t()).sum(1)
    return total + scale * (audio_Q * sums["audio"]).sum(), sums


def targets(batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
  """The main token that each position must predict, and its weight as a target of each part."""
  after = lambda x: F.pad(x[:, 1:], (0, 1))
  main, modality, segment = (after(batch[k]) for k in ("main", "modality", "segment"))
  inside = (segment == batch["segment"]) & (segment > 0)
  weight = after(batch["weight"]) * inside
  image = modality == vocab_lib.IMAGE
  pad = (modality == vocab_lib.AUDIO) & (main == vocab_lib.PAD)
  return main, {"text": weight * ~(image | pad), "monologue_pad": weight * pad,
                "image": weight * image}


class _ChunkedLoss(torch.autograd.Function):
  """Gradients of a large vocabulary's loss made in the forward pass, a chunk of positions at a
  time, so that no [L, V] exists (as in Liger's fused linear cross-entropy, Hsu et al., 2024).
  """

  @staticmethod
  def forward(hidden_LD, w_DV, labels_L, weight_L, z_weight_L, chunk):
    dtype = hidden_LD.dtype
    whole_DV = w_DV.to(dtype)
    dw_DV = torch.zeros_like(w_DV)
    total, nll, dhidden = torch.zeros((), device=w_DV.device), [], []
    for part in zip(*(x.split(chunk) for x in (hidden_LD, labels_L, weight_L, z_weight_L)),
                    strict=True):
      hidden_CD, labels_C, weight_C, z_weight_C = part
      logits_CV = (hidden_CD @ whole_DV).float()
      log_z_C = logits_CV.logsumexp(-1)
      nll_C = log_z_C - logits_CV.gather(1, labels_C[:, None])[:, 0]
      total = total + (weight_C * nll_C + z_weight_C * log_z_C.square()).sum()
      slope_C = weight_C + 2 * z_weight_C * log_z_C
      hit_CV = labels_C[:, None] == torch.arange(w_DV.shape[1], device=w_DV.device)
      d_CV = ((logits_CV - log_z_C[:, None]).exp() * slope_C[:, None]
              - torch.where(hit_CV, weight_C[:, None], 0.0)).to(dtype)
      dhidden.append(d_CV @ whole_DV.t())
      dw_DV += hidden_CD.t() @ d_CV
      nll.append(nll_C)
    return total, torch.cat(nll), torch.cat(dhidden), dw_DV

  @staticmethod
  def setup_context(ctx, inputs, output):
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[2:])

  @staticmethod
  def backward(ctx, slope, *_):
    dhidden_LD, dw_DV = ctx.saved_tensors
    return dhidden_LD * slope.to(dhidden_LD.dtype), dw_DV * slope, None, None, None, None


def cross_entropy(hidden_LD: Tensor, w_DV: Tensor, labels_L: Tensor, weight_L: Tensor,
                  z_weight_L: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
  """sum(weight * nll + z_weight * log_z ** 2), and nll [L] without gradient."""
  if len(hidden_LD) > chunk:
    return _ChunkedLoss.apply(hidden_LD, w_DV, labels_L, weight_L, z_weight_L, chunk)[:2]
  logits_LV = (hidden_LD @ w_DV.to(hidden_LD.dtype)).float()
  log_z_L = logits_LV.logsumexp(-1)
  nll_L = log_z_L - logits_LV.gather(1, labels_L[:, None])[:, 0]
  return (weight_L * nll_L + z_weight_L * log_z_L.square()).sum(), nll_L.detach()
