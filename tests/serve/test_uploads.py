"""What clients send never takes more than the limits, whatever its headers claim."""

import base64
import io
import resource
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from fake_service import FakeService
from hypothesis import given, settings
from hypothesis import strategies as st
from media_of import picture_file, sound_file

from omnijax.serve import pixels, sounds, uploads
from omnijax.serve.context import Context
from omnijax.serve.errors import Refused
from omnijax.serve.settings import Settings


def refusal(function, *args):
  with pytest.raises(Refused) as caught:
    function(*args)
  assert caught.value.status_code == 400 and caught.value.param == "p"
  return caught.value.code


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["", "\n", " \r\n"]), st.integers(1, 80))
def test_base64(data, blank, every):
  text = base64.b64encode(data).decode()
  text = blank.join(text[i : i + every] for i in range(0, len(text), every))
  assert uploads.base64(text, "p") == data


@pytest.mark.parametrize("text", ["a", "ab=c", "ab==ab==", "a\u00e9==", "@@@@", "====", "abcd=",
                                  "ab==" + "a" * (1 << 19)])
def test_what_is_no_base64(text):
  assert refusal(uploads.base64, text, "p") == "invalid_base64"


def test_long_base64_is_decoded_in_pieces():
  data = np.random.default_rng(0).bytes(1_000_001)
  assert uploads.base64(base64.b64encode(data).decode(), "p") == data


@pytest.mark.parametrize("url, code", [
  ("http://a.org/a.png", "invalid_url"), ("file:///etc/passwd", "invalid_url"),
  ("data:image/png", "invalid_url"), ("data:image/png,abc", "invalid_url"),
  ("abc", "invalid_url"), ("data:;base64,@", "invalid_base64")])
def test_urls(url, code):
  assert refusal(uploads.data_url, url, "p") == code
  assert uploads.data_url("data:;base64,YWI=", "p") == b"ab"


def media(**limits):
  return uploads.Uploads(Context.of(FakeService(), Settings(**limits)))


def test_all_pictures_of_a_request_count():
  some = media(max_megapixels=0.0003)  # 300 pixels
  assert some.picture(picture_file(16, 16), "p").shape == (16, 16, 3)
  assert refusal(some.picture, picture_file(16, 16), "p") == "image_too_large"


def test_all_sounds_of_a_request_count():
  some = media(max_audio_s=1.0)
  some.sound(sound_file(0.6), "wav", "p")
  assert refusal(some.sound, sound_file(0.6), "wav", "p") == "audio_too_long"


def bomb(w, h):
  """A picture of so many pixels in a few hundred bytes: its data are not there."""
  content = bytearray(picture_file(8, 8))
  content[16:24] = struct.pack(">II", w, h)
  content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
  return bytes(content)


@pytest.mark.parametrize("w, h", [(5000, 5000), (20_000, 20_000), (60_000, 60_000)])
def test_a_picture_is_refused_by_its_header(w, h, monkeypatch):
  def decode(*_):
    raise AssertionError("it was decoded")

  monkeypatch.setattr(pixels.media, "decode_image", decode)
  assert refusal(media().picture, bomb(w, h), "p") == "image_too_large"
  with pytest.raises(AssertionError, match="it was decoded"):
    media().picture(bomb(1000, 1000), "p")


def test_broken_pictures():
  whole = picture_file(64, 64, kind="JPEG")
  for content in (b"", b"abc", whole[:100], picture_file()[:45], bomb(1000, 1000),
                  b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"):
    assert refusal(media().picture, content, "p") == "invalid_image"


def test_transparent_and_deep_and_turned_pictures():
  def file(image, kind="PNG", **more):
    with io.BytesIO() as out:
      image.save(out, kind, **more)
      return out.getvalue()

  clear = media().picture(file(PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0))), "p")
  assert (clear == 255).all()
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  turned = media().picture(file(PIL.Image.new("RGB", (32, 16)), "JPEG", exif=exif), "p")
  assert turned.shape == (32, 16, 3)
  deep = media().picture(file(PIL.Image.fromarray(np.full((8, 8), 65535, np.uint16))), "p")
  assert (deep == 255).all()


def test_a_size_for_pictures_can_be_set():
  assert media(image_size=16).picture(picture_file(64, 32), "p").shape == (8, 16, 3)
  assert media().picture(picture_file(3, 3), "p").shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
def test_long_sounds_are_not_read_to_their_end(kind):
  content = sound_file(wave=np.zeros(100 * 8000, np.float32), rate=8000, kind=kind)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert refusal(sounds.decode, content, kind, 16_000, 2.0, "p") == "audio_too_long"
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000


def test_headers_of_sounds_may_lie():
  whole = bytearray(sound_file(0.5))
  for at, value in ((4, 2**31), (40, 2**31), (24, 4_000_000_000), (22, 60_000)):
    lie = bytes(whole[:at] + struct.pack("<I", value) + whole[at + 4 :])
    try:
      wave = sounds.decode(lie, "wav", 16_000, 60.0, "p")
    except Refused as refused:
      assert refused.code == "invalid_audio"
    else:
      assert len(wave) == 8000


def test_rates_and_channels_that_would_take_much_memory():
  for wave, rate in ((np.zeros(100), 1_000_000), (np.zeros(100), 500), (np.zeros((100, 9)), 8000)):
    content = sound_file(wave=wave.astype(np.float32), rate=rate)
    assert refusal(sounds.decode, content, "wav", 16_000, 60.0, "p") == "invalid_audio"


@pytest.mark.parametrize("value, code", [
  (np.nan, "invalid_audio"), (np.inf, "invalid_audio"), (20_000.0, "invalid_audio")])
def test_samples_that_are_no_sound(value, code):
  wave = np.zeros(1000, np.float32)
  wave[500] = value
  content = sound_file(wave=wave, subtype="FLOAT")
  assert refusal(sounds.decode, content, "wav", 16_000, 60.0, "p") == code
  assert refusal(sounds.decode, sound_file(wave=wave[:0]), "wav", 16_000, 60.0, "p") == code


def test_channels_are_mixed_and_loud_ones_clipped():
  wave = np.stack([np.full(1600, 0.5), np.full(1600, -0.25)], 1).astype(np.float32)
  got = sounds.decode(sound_file(wave=wave, subtype="FLOAT"), "wav", 16_000, 60.0, "p")
  assert got.dtype == np.float32 and np.allclose(got, 0.125)
  loud = sounds.decode(sound_file(wave=np.full(1600, 1.5, np.float32), subtype="FLOAT"), "wav",
                       16_000, 60.0, "p")
  assert (loud == 1).all()


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(content):
  for kind in ("wav", "webm"):
    with pytest.raises(Refused):
      sounds.decode(content, kind, 16_000, 1.0, "p")
  with pytest.raises(Refused):
    media().picture(content, "p")


def test_mp4_and_webm_by_pyav():
  av = pytest.importorskip("av")
  for kind, codec in (("mp4", "aac"), ("webm", "libopus")):
    with io.BytesIO() as file:
      with av.open(file, "w", format=kind) as out:
        stream = out.add_stream(codec, rate=48_000, layout="mono")
        samples = np.sin(np.arange(48_000) / 20).astype(np.float32)[None] / 2
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 48_000
        for some in (frame, None):
          for packet in stream.encode(some):
            out.mux(packet)
      content = file.getvalue()
    wave = sounds.decode(content, kind, 16_000, 2.0, "p")
    assert abs(len(wave) / 16_000 - 1) < 0.1 and 0.3 < np.abs(wave).max() < 0.7
    assert refusal(sounds.decode, content, kind, 16_000, 0.5, "p") == "audio_too_long"


@settings(deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=6))
def test_a_stream_of_samples_equals_the_whole(sizes):
  wave = np.sin(np.arange(sum(sizes)) / 5).astype(np.float32)
  stream, at, out = sounds.Stream(16_000), 0, b""
  for n in sizes:
    out += stream.feed(wave[at : at + n])
    at += n
  out += stream.end()
  assert out == sounds.encode(wave, 16_000, "pcm")
  assert abs(len(out) // 2 - 1.5 * len(wave)) <= 1


def test_samples_of_the_same_rate_stay():
  wave = np.array([0, 1, -1, 0.5, 2], np.float32)
  got = np.frombuffer(sounds.Stream(24_000).feed(wave), "<i2")
  assert got.tolist() == [0, 32767, -32767, 16384, 32767]
