"""An engine whose trials only pretend to train, a step each time it is asked who ended."""

import json

import tiny

from omnijax import config

STEPS = 10


def run(name="tiny", **changes):
  """A run of the length that trials here have."""
  train = {"steps": STEPS} | changes.pop("train", {})
  return config.from_json(config.to_json(tiny.run(train=train, **changes)).replace(
    '"name": "tiny"', f'"name": "{name}"'))


class Show:
  """Keeps what is said."""

  def __init__(self):
    self.said = []

  def say(self, text):
    self.said.append(text)

  def update(self, manifest):
    pass


class Engine:
  """Trains by writing what training writes.

  Args:
    room: trials at once.
    ends: by the name of a run, for each start, the exit code and the step that it ends at with it;
      what isn't said goes to its last step and ends with 0.
    loss: of a run after so many steps.
  """

  def __init__(self, room=2, ends=None, loss=lambda run, step: 5 - 0.1 * step):
    self.room, self._ends, self._loss = room, ends or {}, loss
    self.started, self._running, self._stopped = [], {}, set()

  def start(self, trials):
    for trial in trials:
      assert len(self._running) < self.room and trial.id not in self._running
      self.started.append(trial.run.name)
      self._running[trial.id] = trial

  def ended(self):
    out = {}
    for trial in list(self._running.values()):
      name, total = trial.run.name, trial.run.train.steps
      plans = self._ends.get(name, [])
      start = self.started.count(name) - 1
      code, last = plans[start] if start < len(plans) else (0, total)
      if trial.id in self._stopped:
        code, last = 75, trial.steps
      elif trial.steps < last:
        line = {"step": trial.steps, "loss": self._loss(trial.run, trial.steps + 1), "step_s": 0.1,
                "tokens_per_s": 100.0}
        with (trial.dir / "metrics.jsonl").open("a") as file:
          file.write(json.dumps(line) + "\n")
      if trial.steps >= last:
        if code in (0, 75) and trial.steps:
          (trial.dir / "checkpoints" / str(trial.steps)).mkdir(parents=True, exist_ok=True)
        (trial.dir / "output.txt").write_text(f"omnijax: error: it is {code}\n")
        del self._running[trial.id]
        self._stopped.discard(trial.id)
        out[trial.id] = code
    return out

  def stop(self, trial_ids):
    self._stopped |= set(trial_ids)

  def kill(self):
    self._running.clear()

  def close(self):
    pass
