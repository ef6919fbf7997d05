"""The image tokenizer: shapes, losses, resume, damage, and the packaged weights on real digits."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from omnijax.evals import images
from omnijax.tokenizers import image, train_image

TINY = image.ImageConfig(channels=3, downsample=8, levels=(4, 3), widths=(8, 12),
                         encoder_blocks=(0, 1), decoder_blocks=(1, 0))
TRAIN = train_image.ImageTrainConfig(
  model=TINY, steps=6, batch=4, crop=16, shift=1, peak_lr=3e-3, warmup=1, cycles=1,
  weight_decay=0.01,
  ema=0.5, l1=0.5, l2=4.0, ssim=0.1, gradient=0.25, seed=0, save_every=2)
DIGITS = Path(__file__).parents[2] / "experiments" / "digits" / "data"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  out = tmp_path_factory.mktemp("image") / "tok"
  return image.save(image.init(TINY, jax.random.key(0)), out), out


@pytest.fixture(scope="module")
def packaged():
  return image.load()


@pytest.fixture(scope="module")
def digits():
  """Held-out digits [20, 32, 32, 1], two of each."""
  found = []
  for file in sorted(DIGITS.glob("digit?_heldout_*.png")):
    sheet = np.asarray(Image.open(file), np.float32)[:28, :56] / 255
    found += [np.pad(sheet[:, i : i + 28], 2) for i in (0, 28)]
  assert len(found) == 20
  return np.stack(found)[..., None]


@pytest.fixture
def manifest(tmp_path):
  """Four small pictures of different modes and sizes, named by a manifest."""
  rng = np.random.default_rng(0)
  lines = []
  for i, (mode, size) in enumerate([("RGB", (16, 16)), ("L", (24, 20)), ("RGBA", (9, 12))]):
    channels = len(mode)
    pixels = rng.integers(0, 256, (size[1], size[0], channels)).astype(np.uint8)
    Image.fromarray(pixels.squeeze(), mode=None).save(tmp_path / f"{i}.png")
    lines.append({"image": f"{i}.png", "weight": 1.0 + i})
  lines.append({"parts": [{"text": "a thing"}, {"image": "0.png"}]})
  file = tmp_path / "images.jsonl"
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return file


@pytest.mark.parametrize("downsample, channels", [(4, 1), (8, 3), (16, 3)])
def test_shapes_of_every_downsampling(downsample, channels):
  n = {4: 1, 8: 2, 16: 3}[downsample]
  config = image.ImageConfig(channels=channels, downsample=downsample, levels=(3, 2),
                             widths=(4,) * n, encoder_blocks=(0,) * n, decoder_blocks=(0,) * n)
  tok = image.ImageTokenizer(image.init(config, jax.random.key(1)), "none")
  x_BHWC = np.random.default_rng(0).random((3, 32, 48, channels), np.float32)
  codes = tok.encode(x_BHWC)
  assert (codes.shape, codes.dtype) == ((3, 32 // downsample, 48 // downsample), np.int32)
  assert codes.min() >= 0 and codes.max() < tok.codes == 6
  y_BHWC = tok.decode(codes)
  assert (y_BHWC.shape, y_BHWC.dtype) == (x_BHWC.shape, np.float32)
  assert y_BHWC.min() >= 0 and y_BHWC.max() <= 1


def test_fold_and_unfold_undo_each_other():
  x = jnp.arange(2 * 8 * 12 * 3, dtype=jnp.float32).reshape(2, 8, 12, 3)
  folded = image._fold(x, 4)
  assert folded.shape == (2, 2, 3, 48)
  np.testing.assert_array_equal(folded[0, 1, 2].reshape(4, 4, 3), x[0, 4:8, 8:12])
  np.testing.assert_array_equal(image._unfold(folded, 4), x)


def test_training_path_and_tokenizer_path_agree(tiny):
  tok, _ = tiny
  x_BHWC = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
  y_BHWC, codes = jax.jit(lambda model, x: model(x))(tok.model, x_BHWC)
  np.testing.assert_array_equal(codes, tok.encode(x_BHWC))
  np.testing.assert_allclose(np.clip(y_BHWC, 0, 1), tok.decode(codes), atol=1e-5)
  assert np.abs(tok.decode(codes) - tok.decode((codes + 1) % tok.codes)).max() > 1e-3


def test_codes_do_not_depend_on_the_rest_of_the_batch(tiny):
  tok, _ = tiny
  x_BHWC = np.random.default_rng(0).random((5, 16, 16, 3), np.float32)
  whole = tok.encode(x_BHWC)
  assert not (whole[0] == whole[1]).all()
  for i in range(5):
    np.testing.assert_array_equal(tok.encode(x_BHWC[i : i + 1])[0], whole[i])
  assert tok.encode(x_BHWC[:0]).shape == (0, 2, 2)
  assert tok.decode(whole[:0]).shape == (0, 16, 16, 3)


def test_few_shapes_are_compiled(tiny):
  seen = []

  def network(model, batch):
    seen.append(len(batch))
    return batch + 1

  for n in (1, 2, 3, 5, 6, 7, 8, 255, 600):
    batch = np.arange(n)
    np.testing.assert_array_equal(image._bucketed(network, tiny[0].model, batch), batch + 1)
  assert seen == [1, 2, 4, 8, 8, 8, 8, 256, 256, 256, 128]


def test_grey_is_repeated(tiny):
  tok, _ = tiny
  grey = np.random.default_rng(0).random((2, 16, 16, 1), np.float32)
  np.testing.assert_array_equal(tok.encode(grey), tok.encode(np.repeat(grey, 3, -1)))
  assert (tok.encode(grey) != tok.encode(grey * [1, 0, 0])).any()


def test_works_under_a_mesh_of_explicit_axes(tiny, mesh):
  tok, _ = tiny
  codes = tok.encode(np.random.default_rng(0).random((2, 16, 16, 3), np.float32))
  assert tok.decode(codes).shape == (2, 16, 16, 3)


def test_saved_and_loaded_are_the_same(tiny, tmp_path):
  tok, out = tiny
  again = image.load(out)
  codes = np.arange(8).reshape(1, 2, 4)
  np.testing.assert_array_equal(tok.decode(codes), again.decode(codes))
  other = image.save(image.init(TINY, jax.random.key(1)), tmp_path / "other")
  assert again.fingerprint == tok.fingerprint != other.fingerprint


def _copy(out, tmp_path):
  shutil.copytree(out, tmp_path / "copy")
  image.load(tmp_path / "copy")
  return tmp_path / "copy"


def test_damage_is_noticed(tiny, tmp_path):
  tok, out = tiny
  copy = _copy(out, tmp_path)
  data = bytearray((copy / "params.npz").read_bytes())
  data[len(data) // 2] ^= 1
  (copy / "params.npz").write_bytes(bytes(data))
  with pytest.raises(ValueError, match=f"has fingerprint .*{tok.fingerprint}.*restore"):
    image.load(copy)
  (copy / "params.npz").write_bytes(b"")
  with pytest.raises(ValueError, match="fingerprint"):
    image.load(copy)


def test_a_config_of_other_parameters_is_noticed(tiny, tmp_path):
  _, out = tiny
  copy = _copy(out, tmp_path)
  told = json.loads((copy / "config.json").read_text())
  told["config"]["levels"] = [3, 4]  # as many codes, in another order
  (copy / "config.json").write_text(json.dumps(told))
  with pytest.raises(ValueError, match="fingerprint"):
    image.load(copy)
  told["config"]["decoder_blocks"] = [2, 0]  # parameters that the file has not
  told["fingerprint"] = image._fingerprint(told["config"], (copy / "params.npz").read_bytes())
  (copy / "config.json").write_text(json.dumps(told))
  with pytest.raises(ValueError, match="does not hold this network"):
    image.load(copy)
  (copy / "config.json").write_text("{}")
  with pytest.raises(ValueError, match="describes no image tokenizer"):
    image.load(copy)
  (copy / "config.json").unlink()
  with pytest.raises(ValueError, match=r"config\.json is missing"):
    image.load(copy)


@pytest.mark.parametrize("shape, words", [
  ((1, 33, 30, 3), "33x30 .* 8 .*32x24 or 40x32"),
  ((1, 4, 8, 3), "4x8 .* to 8x8$"),
  ((1, 16, 16, 2), r"\[1, 16, 16, 2\]"),
  ((16, 16, 3), r"\[16, 16, 3\]"),
])
def test_wrong_shapes_are_named(tiny, shape, words):
  with pytest.raises(ValueError, match=words):
    tiny[0].encode(np.zeros(shape, np.float32))


def test_wrong_values_are_named(tiny):
  tok, _ = tiny
  x = np.zeros((1, 8, 8, 3), np.float32)
  with pytest.raises(ValueError, match="uint8.*255"):
    tok.encode(x.astype(np.uint8))
  for bad in (2.0, -1.0, np.nan):
    with pytest.raises(ValueError, match=r"want \[0, 1\]"):
      tok.encode(x + np.float32(bad))
  for bad in (-1, 12):
    with pytest.raises(ValueError, match=r"0\.\.11"):
      tok.decode(np.full((1, 1, 1), bad))
  with pytest.raises(ValueError, match="float32"):
    tok.decode(np.zeros((1, 1, 1), np.float32))
  with pytest.raises(ValueError, match="downsample=7"):
    dataclasses.replace(TINY, downsample=7)
  with pytest.raises(ValueError, match="widths=.*2 entries"):
    dataclasses.replace(TINY, widths=(8,))


def test_resumed_training_is_bitwise_that_of_one_go(manifest, tmp_path):
  whole = train_image.train(TRAIN, manifest, tmp_path / "whole")
  kill = RuntimeError("killed")

  def die(state, batch, *, config, step=train_image.train_step):
    if int(state.step) == 3:
      raise kill
    return step(state, batch, config=config)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_image, "train_step", die)
    with pytest.raises(RuntimeError, match="killed"):
      train_image.train(TRAIN, manifest, tmp_path / "parts")
  resumed = train_image.train(TRAIN, manifest, tmp_path / "parts")
  assert resumed.fingerprint == whole.fingerprint
  logs = [(tmp_path / x / "metrics.jsonl").read_text() for x in ("whole", "parts")]
  assert logs[0] == logs[1] and len(logs[0].splitlines()) == TRAIN.steps
  with pytest.raises(ValueError, match="seed=0 there, 1 here"):
    train_image.train(dataclasses.replace(TRAIN, seed=1), manifest, tmp_path / "parts")


def test_training_lowers_the_loss_and_ema_trails(manifest):
  data = train_image.pictures(manifest)
  state, losses = train_image.init_state(TRAIN), []
  for _ in range(40):  # the schedule starts again every 6 steps
    state, metrics = train_image.train_step(state, data.batch(TRAIN, 0), config=TRAIN)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.8 * losses[0]
  state, _ = train_image.train_step(state, data.batch(TRAIN, 0), config=TRAIN)
  gap = jax.tree.map(lambda a, b: float(abs(a - b).max()), state.model, state.ema)
  assert 0 < max(jax.tree.leaves(gap)) < 0.1


def test_settings_that_make_no_sense_are_named():
  for change in ({"crop": 20}, {"crop": 8}, {"steps": 0}, {"ema": 1.0}, {"warmup": 7},
                 {"cycles": 4}):
    (name,) = change
    with pytest.raises(ValueError, match=str(change[name])):
      dataclasses.replace(TRAIN, **change)


def test_pictures_are_drawn_by_weight_and_step(manifest):
  data = train_image.pictures(manifest)
  np.testing.assert_allclose(data.share, np.array([1, 2, 3, 1]) / 7)
  first, again, other = (data.batch(TRAIN, step) for step in (0, 0, 1))
  assert first.shape == (4, 16, 16, 3) and first.dtype == np.uint8
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_transparency_is_over_white(tmp_path):
  Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
  Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(tmp_path / "red.png")
  assert (train_image.read(tmp_path / "clear.png", 3) == 255).all()
  np.testing.assert_array_equal(train_image.read(tmp_path / "red.png", 3)[0, 0], [255, 0, 0])


def test_bad_pictures_are_left_out_and_named(manifest, tmp_path):
  good = len(train_image.pictures(manifest).files)
  (tmp_path / "text.png").write_text("no picture")
  whole = (tmp_path / "0.png").read_bytes()
  (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
  with manifest.open("a") as file:
    for name in ("text.png", "absent.png", "cut.png"):
      file.write(json.dumps({"image": name, "weight": 20.0}) + "\n")
  data = train_image.pictures(manifest)
  assert [Path(b).name for b in data.bad] == ["text.png", "absent.png"]
  assert len(data.files) == good + 1  # its header is sound
  assert data.batch(TRAIN, 0).shape == (4, 16, 16, 3)
  assert Path(data.bad[-1]).name == "cut.png"
  manifest.write_text('{"image": "absent.png"}\n')
  with pytest.raises(ValueError, match="0 readable pictures"):
    train_image.pictures(manifest)
  manifest.write_text("[1]\n")
  with pytest.raises(ValueError, match=r"jsonl:1: .*want \{"):
    train_image.pictures(manifest)


def test_ssim_of_training_is_that_of_evaluation():
  rng = np.random.default_rng(0)
  a = rng.random((2, 20, 20, 3), np.float32)
  b = np.clip(a + 0.2 * rng.standard_normal(a.shape, np.float32), 0, 1)
  want = images.ssim(a, b)
  assert 0.3 < want.mean() < 0.99
  got = train_image.ssim(jnp.asarray(a), jnp.asarray(b))
  np.testing.assert_allclose(got, want.mean(), rtol=1e-4)
  np.testing.assert_allclose(images.ssim(a, a), 1)


def test_figures_on_cases_done_by_hand():
  a = np.zeros((2, 16, 16, 1))
  b = a + np.array([0.1, 0.01]).reshape(2, 1, 1, 1)
  np.testing.assert_allclose(images.psnr(a, b), [20, 40])
  # constant pictures: contrast terms are 1, so only the luminance term is left
  np.testing.assert_allclose(images.ssim(a, b)[0], 1e-4 / (0.01 + 1e-4))
  usage = images.code_usage(np.array([0, 0, 1, 1]), 8)
  assert usage == {"used": 0.25, "entropy_bits": 1.0, "perplexity": 2.0}
  with pytest.raises(ValueError, match=r"0\.\.7"):
    images.code_usage(np.array([8]), 8)
  with pytest.raises(ValueError, match="same"):
    images.psnr(a, b[:1])
  with pytest.raises(ValueError, match="at least 11"):
    images.ssim(a[:, :8], a[:, :8])


def test_evaluate_crops_skips_and_counts(tiny, manifest, tmp_path):
  (tmp_path / "bad.png").write_text("no picture")
  files = [tmp_path / f"{i}.png" for i in range(3)] + [tmp_path / "bad.png"]
  figures = images.evaluate(tiny[0], files)
  assert (figures["n"], figures["skipped"]) == (2, 2)  # 9 x 12 is cropped to 8 x 8: too small
  assert figures["codes"]["size"] == 12
  assert figures["bits_per_pixel"] == pytest.approx(np.log2(12) / 64)
  with pytest.raises(ValueError, match="none of 1"):
    images.evaluate(tiny[0], [tmp_path / "bad.png"])


def test_packaged_tokenizer_keeps_held_out_digits(packaged, digits):
  assert (packaged.codes, packaged.downsample, packaged.channels) == (1000, 8, 3)
  codes = packaged.encode(digits)
  assert codes.shape == (20, 4, 4)
  y_BHWC = packaged.decode(codes)
  x_BHWC = np.repeat(digits, 3, -1)
  assert images.psnr(x_BHWC, y_BHWC).mean() > 20
  assert images.ssim(x_BHWC, y_BHWC).mean() > 0.85
  # the other arm: another digit's codes are no reconstruction
  assert images.psnr(x_BHWC, np.roll(y_BHWC, 2, 0)).mean() < 14
  assert np.ptp(y_BHWC, -1).mean() < 0.03  # a grey picture stays grey
