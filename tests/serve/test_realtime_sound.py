"""Sound on its way in and out: resampling, codes, and when somebody speaks."""

import io

import numpy as np
import pytest
import soundfile
import soxr
import voices
from hypothesis import given, settings
from hypothesis import strategies as st

from omnijax.serve import pcm
from omnijax.serve.activity import Activity, Change
from omnijax.serve.resample import Resampler

RATES = [(24000, 16000), (16000, 24000), (8000, 16000), (16000, 8000), (16000, 16000)]


def speech(rate, seconds=0.5, seed=0):
  """Noise without what lies over 3 kHz."""
  noise = np.random.default_rng(seed).standard_normal(round(rate * seconds))
  spectrum = np.fft.rfft(noise)
  spectrum[round(3000 * seconds) :] = 0
  return np.fft.irfft(spectrum, len(noise)).astype(np.float32)


def pieces(wave, cuts):
  return np.split(wave, sorted(cut % (len(wave) + 1) for cut in cuts))


@pytest.mark.parametrize(("a", "b"), RATES)
def test_resampled_as_by_soxr_and_without_a_shift(a, b):
  wave = speech(a)
  resampler = Resampler(a, b)
  out = np.concatenate([resampler.feed(wave), resampler.flush()])
  wanted = soxr.resample(wave, a, b, "VHQ")
  assert out.dtype == np.float32 and len(out) == len(wanted) == len(wave) * b // a
  assert np.abs(out - wanted)[100:-100].max() < 2e-3 * np.abs(wanted).max()


def test_what_the_lower_rate_has_no_room_for_is_filtered():
  wave = voices.tone(0.5, hz=9500, loud=1.0)
  assert np.abs(Resampler(24000, 16000).feed(wave)[100:]).max() < 1e-3
  assert np.abs(Resampler(24000, 16000).feed(voices.tone(0.5, hz=6500, loud=1.0))).max() > 0.95


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 20000), max_size=30), rates=st.sampled_from(RATES))
def test_pieces_make_no_difference_to_resampling(cuts, rates):
  wave = speech(rates[0], 0.1)
  whole, cut = Resampler(*rates), Resampler(*rates)
  for _ in range(2):  # flush begins anew
    wanted = np.concatenate([whole.feed(wave), whole.flush()])
    got = [cut.feed(piece) for piece in pieces(wave, cuts)]
    np.testing.assert_allclose(np.concatenate([*got, cut.flush()]), wanted, atol=1e-6)


@pytest.mark.parametrize(("a", "b"), RATES)
def test_no_more_is_held_back_than_is_said(a, b):
  resampler = Resampler(a, b)
  assert resampler.delay <= 0.002 * a
  wave = speech(a, 0.1)
  for i, sample in enumerate(wave, 1):
    assert len(resampler.feed(sample[None])) <= -(-b // a)
    assert resampler._made >= (i - resampler.delay) * b // a


@pytest.mark.parametrize(("kind", "subtype"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_g711_is_that_of_libsndfile(kind, subtype):
  codes = bytes(range(256))
  raw = {"samplerate": 8000, "channels": 1, "subtype": subtype, "format": "RAW"}
  wanted, _ = soundfile.read(io.BytesIO(codes), dtype="int16", **raw)
  np.testing.assert_array_equal(pcm.decode(codes, kind) * 32768, wanted)
  assert (pcm.decode(pcm.encode(pcm.decode(codes, kind), kind), kind)
          == pcm.decode(codes, kind)).all()
  wave = speech(8000)
  wave *= 0.9 / np.abs(wave).max()
  error = pcm.decode(pcm.encode(wave, kind), kind) - wave
  assert 35 < 10 * np.log10(np.mean(wave**2) / np.mean(error**2)) < 45


def test_pcm_round_trip_and_clipping():
  wave = speech(24000)
  assert np.abs(pcm.decode(pcm.encode(wave / 4, "audio/pcm"), "audio/pcm") - wave / 4).max() < 2e-5
  assert pcm.encode(np.array([-2.0, 0.0, 2.0]), "audio/pcm") == b"\x00\x80\x00\x00\xff\x7f"
  with pytest.raises(ValueError, match="3 bytes of audio/pcm"):
    pcm.decode(b"abc", "audio/pcm")


def changes(activity, *waves):
  return activity.hear(np.concatenate(waves).astype(np.float32))


def test_speech_is_where_it_is_loud():
  still, loud = voices.silence(1, 16000), voices.tone(0.5, rate=16000)
  found = changes(Activity(16000), still, loud, still, loud, still)
  # It stops when 500 ms have been silent.
  assert found == [Change("started", 16000), Change("stopped", 32000),
                   Change("started", 40000), Change("stopped", 56000)]
  assert changes(Activity(16000), loud, still)[0] == Change("started", 0)


@pytest.mark.parametrize(("name", "wave"), [
  ("click", voices.tone(0.02, rate=16000)), ("hum", voices.tone(1, rate=16000, loud=0.003)),
  ("offset", np.full(16000, 0.3, np.float32))])
def test_what_is_no_speech(name, wave):
  still = voices.silence(1, 16000)
  found = changes(Activity(16000), still[:15000], wave, still)
  # A constant is no sound; its edges are clicks.
  assert found == []


def test_a_fan_is_no_speech_for_long_but_who_talks_over_it_is():
  fan = 0.03 * np.random.default_rng(0).standard_normal(16000 * 12)
  talk = np.zeros(16000 * 12)
  talk[16000 * 8 : 16000 * 9] = voices.tone(1, rate=16000, loud=0.5)
  found = changes(Activity(16000), fan + talk)
  assert [c.kind for c in found] == ["started", "stopped"] * 2
  assert found[1].sample < 16000 * 5 and found[2].sample == 16000 * 8


def test_thresholds():
  wave = np.concatenate([voices.silence(1, 16000), voices.tone(0.5, rate=16000, loud=0.06),
                         voices.silence(1, 16000)])  # -27 dBFS
  starts = {t: bool(Activity(16000, threshold=t).hear(wave)) for t in (0.0, 0.5, 0.8, 0.9, 1.0)}
  assert starts == {0.0: True, 0.5: True, 0.8: True, 0.9: False, 1.0: False}
  assert Activity(16000, silence_ms=200).hear(wave)[1] == Change("stopped", 24000 + 3200)
  activity = Activity(16000)
  activity.hear(wave)
  at = (15999, 16000, 23999, 24000)
  assert [activity.spoke_at(n) for n in at] == [False, True, True, False]
  activity.hear(wave)
  assert [activity.spoke_at(n) for n in at] == [False, True, True, False]
  assert activity.spoke_at(len(wave) + 16000) and not activity.spoke_at(len(wave) + 15999)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 100000), max_size=30))
def test_pieces_make_no_difference_to_activity(cuts):
  wave = np.concatenate([voices.silence(0.5, 16000), voices.tone(0.7, rate=16000),
                         voices.silence(0.7, 16000), voices.tone(0.2, rate=16000)])
  activity = Activity(16000)
  found = [change for piece in pieces(wave, cuts) for change in activity.hear(piece)]
  assert found == Activity(16000).hear(wave) and len(found) == 3
