"""A service: turns and dialogues at once, who waits, who is ended, what fails."""

import dataclasses
import faulthandler
import json
import os
import queue
import subprocess
import sys
import threading
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import test_generate
import tiny
from flax import nnx

from omnijax import config, sharding
from omnijax.data.encode import Tokenizers
from omnijax.generate import decode, step
from omnijax.generate import slots as slots_lib
from omnijax.generate.events import End, Frame, Full, Picture, Sound, Text
from omnijax.generate.prompts import Prompts
from omnijax.generate.sample import GREEDY
from omnijax.generate.service import Service
from omnijax.generate.slots import Slots, Work
from omnijax.generate.turns import Goal
from omnijax.model.transformer import Omni

VOCAB = dataclasses.replace(test_generate.VOCAB, code_dim=6, image_dim=5)
RATE, SIZE = 16_000, 1280


class Codec(test_generate.Audio):
  """The fake codec of whole clips, frame by frame too; its sound is late by 10 samples."""

  delay = 10

  def init_state(self, rows):
    return types.SimpleNamespace(phase=types.SimpleNamespace(guess_BV=np.full((rows, 10), 0.5)))

  def reset(self, state, mask_B):
    return state

  def encode_step(self, state, wave_BL, mask_B):
    return state, self.encode(wave_BL)[:, 0]

  def decode_step(self, state, codes_Bq, mask_B):
    return state, self.decode(codes_Bq[:, None])


@pytest.fixture(scope="module")
def model() -> Omni:
  with jax.set_mesh(sharding.make_mesh(config.Mesh(data=1, fsdp=1))):
    return jax.jit(lambda key: Omni(tiny.MODEL, VOCAB, sharding.RULES, rngs=nnx.Rngs(key)))(
      jax.random.key(0))


def fakes() -> Tokenizers:
  return Tokenizers(test_generate.Text(), test_generate.Image(), Codec())


def make_service(model: Omni, **options) -> Service:
  run = tiny.run(data=dict(positions=64))
  return Service(model, run, fakes(), **{"slots": 4, "positions": 96} | options)


@pytest.fixture(scope="module")
def service(model):
  made = make_service(model)
  made.warm()
  yield made
  made.close()


class Box(queue.Queue):
  """Where events go."""

  def rest(self) -> list:
    """All up to the end."""
    out = []
    while not out or not isinstance(out[-1], End):
      out.append(self.get(timeout=60))
    return out


def wave(*codes: int) -> np.ndarray:
  """Sound of which each frame has a code."""
  return (np.array(codes, np.float32) / 64).repeat(SIZE)


def collect(events: list) -> tuple[str, str, np.ndarray, list]:
  """Text, words of speech, sound, and pictures of a turn."""
  text = "".join(e.delta for e in events if isinstance(e, Text) and not e.spoken)
  words = "".join(e.delta for e in events if isinstance(e, Text) and e.spoken)
  waves = [e.wave_L for e in events if isinstance(e, Sound)]
  pictures = [e.pixels_HWC for e in events if isinstance(e, Picture)]
  return text, words, np.concatenate(waves or [np.zeros(0)]), pictures


def test_turns_are_those_of_the_generator(service, model):
  """All at once, and token by token."""
  prompts = [[{"text": "a red bus"}], [{"text": "ab"}], [{"image": np.zeros((8, 8), np.uint8)}],
             [{"audio": wave(3, 4, 5)}, {"text": "c"}]]
  kinds = ("text", "audio", "image", "audio")
  generator = decode.Generator(model, VOCAB, service.prompts.data, service.prompts.tokenizers,
                               max_positions=96, max_batch=1)
  boxes = [Box() for _ in prompts]
  for parts, to, box in zip(prompts, kinds, boxes, strict=True):
    service.write(parts, to=to, sampling=GREEDY, max_new=20, image_size=(8, 8), emit=box.put)
  for parts, to, box in zip(prompts, kinds, boxes, strict=True):
    events = box.rest()
    text, words, sound, pictures = collect(events)
    want, = generator.generate([parts], to=to, sampling=GREEDY, max_new=20, image_size=(8, 8))
    assert text == (want.text or "") and words == (want.monologue or "")
    assert (want.image is None) == (not pictures)
    if pictures:
      np.testing.assert_array_equal(pictures[0], want.image)
    if to == "audio":  # the decoder's first samples lie before the speech, its last come at the end
      want_L = np.concatenate([want.audio[10:], np.full(10, 0.5)])
      np.testing.assert_allclose(sound, want_L)
    assert events[-1].reason in ("stop", "length")
    assert events[-1].prompt > 2 and events[-1].written > 2


def test_a_dialogue_gives_a_frame_for_each_that_it_hears(service):
  boxes = [Box(), Box()]
  talks = [service.talk(emit=box.put) for box in boxes]
  assert service.active() == {"write": 0, "talk": 2, "queued": 0, "slots": 4}
  write = Box()
  service.write([{"text": "b"}], to="text", max_new=30, emit=write.put)
  # The same sound in pieces of any size; the other one hears something else.
  sound = wave(*range(20))
  for at in range(0, len(sound), 777):
    talks[0].hear(sound[at : at + 777])
  talks[1].hear(wave(*range(40, 60)))
  frames = [[box.get(timeout=60) for _ in range(20)] for box in boxes]
  write.rest()
  for some in frames:
    assert [f.index for f in some] == list(range(20))
    assert all(isinstance(f, Frame) and f.wave_L.shape == (SIZE,) and f.took_s > 0 for f in some)
  again = Box()
  talk = service.talk(emit=again.put)
  talk.hear(sound)
  for first, second in zip(frames[0], [again.get(timeout=60) for _ in range(20)], strict=True):
    np.testing.assert_array_equal(first.wave_L, second.wave_L)
    assert first.text == second.text
  assert any((a.wave_L != b.wave_L).any() for a, b in zip(*frames, strict=True))
  for one in (*talks, talk):
    one.close()
  assert [box.rest()[-1] for box in (*boxes, again)] == [End("cancelled", written=20)] * 3


def test_a_dialogue_takes_orders(service):
  box = Box()
  talk = service.talk(emit=box.put)
  talk.hear(wave(*range(8)))
  frames = [box.get(timeout=60) for _ in range(8)]
  talk.truncate(3, samples=SIZE // 2)
  talk.insert([{"text": "seven"}, {"image": np.zeros((8, 8), np.uint8)}])
  talk.hush()
  talk.hear(np.zeros(3 * SIZE, np.float32))
  frames += [box.get(timeout=60) for _ in range(3)]
  assert [f.index for f in frames] == list(range(11))
  silence = np.full(SIZE, service.silence_Q[0] / 64)
  np.testing.assert_allclose(frames[-1].wave_L, silence, atol=1e-6)
  talk.close()
  with pytest.raises(ValueError, match="wanted at most 48"):
    talk.insert([{"text": "x" * 60}])
  with pytest.raises(ValueError, match="int16.*wanted float"):
    talk.hear(np.zeros(9, np.int16))
  with pytest.raises(ValueError, match="NaN"):
    talk.hear(np.full(9, np.nan, np.float32))
  assert box.rest() == [End("cancelled", written=11)]


def test_nobody_waits_for_ever(service):
  boxes = [Box() for _ in range(4)]
  talks = [service.talk(emit=box.put) for box in boxes]
  with pytest.raises(Full, match="all 4 rows are taken"):
    service.talk(emit=print)
  waiting = Box()
  ticket = service.write([{"text": "a"}], to="text", max_new=5, emit=waiting.put)
  assert service.active()["queued"] == 1
  ticket.cancel()
  assert waiting.rest() == [End("cancelled", 4, 0)]
  later = Box()
  service.write([{"text": "a"}], to="text", max_new=5, emit=later.put)
  talks[2].close()
  assert later.rest()[-1].reason in ("stop", "length")
  pair = Box()
  service.write([{"text": "a"}], to="image", guidance=2.0, image_size=(8, 8), emit=pair.put)
  talks[3].close()  # a guided picture needs two rows side by side
  assert any(isinstance(e, Picture) for e in pair.rest())
  with pytest.raises(ValueError, match="10 s of sound wait already"):
    for _ in range(99):
      talks[0].hear(np.zeros(RATE * 5, np.float32))
  for talk in talks:
    talk.close()
  for box in boxes:
    box.rest()


def test_a_turn_can_be_cancelled(service):
  box, begun = Box(), threading.Event()

  def emit(event):
    begun.set()
    box.put(event)

  ticket = service.write([{"text": "abc"}], to="audio", max_new=80, emit=emit)
  assert begun.wait(60)
  ticket.cancel()
  end = box.rest()[-1]
  assert end.reason == "cancelled" or end.written > 2


@pytest.mark.parametrize("options", [{"slots": 0}, {"queue": 0}, {"positions": 63}])
def test_too_few_of_anything(model, options):
  (name, value), = options.items()
  with pytest.raises(ValueError, match=f"{name} is {value}; wanted at least"):
    make_service(model, **options)


def test_what_does_not_fit_says_so(service):
  with pytest.raises(ValueError, match="leaves 0 positions"):
    service.write([{"text": "x" * 200}], to="text", emit=print)
  with pytest.raises(ValueError, match="wanted one of"):
    service.write([{"video": "x"}], to="text", emit=print)


def test_nothing_compiles_again(service):
  functions = [getattr(slots_lib, f) for f in ("_step", "_prefill", "_put", "_reset", "_rewind",
                                           "_replace")]
  before = [f._cache_size() for f in functions]
  assert all(before)
  for n in (1, 9, 40):
    box = Box()
    service.write([{"text": "y" * n}], to="any", max_new=n, emit=box.put)
    box.rest()
  box = Box()
  talk = service.talk(emit=box.put)
  talk.hear(wave(*range(50)))
  for _ in range(50):
    box.get(timeout=60)
  talk.truncate(2)
  talk.insert([{"text": "z" * 20}])
  talk.hear(wave(1, 2, 3))
  talk.close()
  box.rest()
  assert [f._cache_size() for f in functions] == before


def test_a_failure_ends_everybody(model, monkeypatch):
  made = make_service(model, slots=2)
  boxes = [Box(), Box()]
  made.talk(emit=boxes[0].put)

  def fails(*args, **kwargs):
    raise RuntimeError("out of order")

  monkeypatch.setattr(made.slots, "step", fails)
  made.write([{"text": "a"}], to="text", emit=boxes[1].put)
  assert [b.rest()[-1] for b in boxes] == [End("failed", error="the service has failed")] * 2
  made._thread.join(60)
  assert not made.alive
  with pytest.raises(RuntimeError, match="has failed; its log says why"):
    made.talk(emit=print)
  made.close()


def test_closing_waits_for_turns_and_ends_the_rest(model):
  made = make_service(model, slots=2)
  talk, turn, waits = Box(), Box(), Box()
  made.talk(emit=talk.put)
  made.write([{"text": "a"}], to="text", max_new=9, emit=turn.put)
  made.write([{"text": "b"}], to="text", max_new=9, emit=waits.put)
  made.close(drain_s=60)
  assert turn.rest()[-1].reason in ("stop", "length")
  assert waits.rest()[-1].reason in ("stop", "length")
  assert talk.rest()[-1].reason == "cancelled"


@pytest.mark.parametrize("to", ["text", "audio"])
def test_eight_bits_are_nearly_the_same_in_less_memory(model, to):
  size = lambda slots: sum(x.nbytes for x in jax.tree.leaves((slots.model, slots.state.cache)))
  made = [Slots(model, tiny.DATA, rows=2, positions=96, silence_Q=np.zeros(2), int8=int8)
          for int8 in (False, True)]
  assert size(made[1]) < 0.75 * size(made[0])
  parts = [{"text": "a red bus"}]
  logits = []
  for slots in made:
    prompts = Prompts(VOCAB, tiny.DATA, fakes())
    streams = prompts.render(prompts.encode([parts])[0])
    for row, piece in slots.begin(0, Work([streams], Goal(to=to), 20, GREEDY, 0)):
      slots.prefill(row, piece)
    with jax.set_mesh(slots.mesh):
      state, then = slots.state, slots.turn.next
      x_B1D = slots.model.embed.at_once(then.main_B[:, None], then.modality_B[:, None],
                                        then.frames_BG[:, None])
      hidden, _ = step._trunk(slots.model, state, x_B1D, then.position_B3[:, None],
                              then.modality_B[:, None], then.takes_B.astype(np.int32))
      logits.append(np.asarray(slots.model.logits(hidden))[0, 0])
  apart = np.abs(logits[0] - logits[1]).max() / logits[0].std()
  assert 1e-4 < apart < 0.2


@pytest.mark.slow
def test_half_an_hour_takes_no_more_memory():
  """In a process that compiles as a server does; its threads share what memory they have freed."""
  faulthandler.cancel_dump_traceback_later()  # longer than any other test may take
  here = Path(__file__)
  path = os.pathsep.join(map(str, (here.parents[1], here.parent, os.environ.get("PYTHONPATH", ""))))
  env = os.environ | {"XLA_FLAGS": "", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": path}
  ran = subprocess.run([sys.executable, here.with_name("half_an_hour.py")], env=env,
                       stdout=subprocess.PIPE, text=True, check=True)
  found = json.loads(ran.stdout.splitlines()[-1])
  assert found["frames"] == 30 * 750
  assert found["compiled"] == found["compiled_at_first"] and min(found["compiled"]) > 0
  assert max(found["mib"][2:]) - found["mib"][2] < 8, found["mib"]
