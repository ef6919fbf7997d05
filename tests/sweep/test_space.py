"""What a sweep is over: combinations, draws, names, and what is said of unknown fields."""

import dataclasses
import math

import pytest
import tiny

from omnijax import config
from omnijax.sweep import space

RUN = tiny.run()


def settings(runs):
  return [(r.optim.peak_lr, r.train.seed) for r in runs]


def test_a_grid_is_every_combination_by_name():
  made = list(space.grid(RUN, {"optim.peak_lr": (1e-3, 3), "train.seed": [0, 1]}))
  assert settings(made) == [(1e-3, 0), (1e-3, 1), (3.0, 0), (3.0, 1)]
  assert [r.name for r in made] == ["tiny,peak_lr=0.001,seed=0", "tiny,peak_lr=0.001,seed=1",
                                    "tiny,peak_lr=3.0,seed=0", "tiny,peak_lr=3.0,seed=1"]
  back = {"name": RUN.name, "optim": RUN.optim, "train": RUN.train}
  assert all(dataclasses.replace(r, **back) == RUN for r in made)


def test_settings_that_hang_together_are_a_section():
  large = dataclasses.replace(tiny.MODEL, dim=64, mlp=128)
  made = list(space.grid(RUN, {"model": (tiny.MODEL, large), "data.tasks.draw": (2,)}))
  assert [r.model for r in made] == [tiny.MODEL, large]
  assert [r.data.tasks for r in made] == [config.Tasks(draw=2.0)] * 2
  assert [r.name for r in made] == ["tiny,model=same,draw=2.0", "tiny,dim=64,mlp=128,draw=2.0"]


def test_fields_of_one_name_are_told_apart():
  one, = space.grid(RUN, {"eval.every": (3,), "model.dim": (64,), "model.depth_dim": (64,)})
  assert one.name == "tiny,every=3,dim=64,depth_dim=64"
  one, = space.grid(dataclasses.replace(RUN), {"loss.text": (2.0,), "tokenizers.text": ("t",)})
  assert one.name == "tiny,loss.text=2.0,tokenizers.text=t"


def test_draws_are_within_their_ranges_and_as_asked():
  fields = {"optim.peak_lr": space.LogUniform(1e-5, 1e-1), "optim.b2": space.Uniform(0.9, 0.99),
            "train.seed": space.Integers(3, 5), "optim.kind": ("adamw", "muon")}
  made = list(space.random(RUN, fields, trials=300))
  assert len({r.name for r in made}) == 300
  low = sum(r.optim.peak_lr < 1e-3 for r in made)
  assert 120 < low < 180  # half of the decades
  assert all(1e-5 <= r.optim.peak_lr <= 1e-1 and 0.9 <= r.optim.b2 <= 0.99 for r in made)
  assert {r.train.seed for r in made} == {3, 4, 5}
  assert {r.optim.kind for r in made} == {"adamw", "muon"}
  # The name has all digits: what is read in a table can be typed.
  assert all(f"peak_lr={r.optim.peak_lr}" in r.name and len(f"{r.optim.b2}") <= 6 for r in made)
  assert list(space.random(RUN, fields, trials=20)) == made[:20]
  assert list(space.random(RUN, fields, trials=20, seed=1)) != made[:20]
  assert math.isclose(sum(r.optim.b2 for r in made) / 300, 0.945, abs_tol=0.005)


@pytest.mark.parametrize("make, message", [
  (lambda: space.grid(RUN, {"optim.peek_lr": (1.0,)}), "no field 'optim.peek_lr'; did you mean "
                                                       "'optim.peak_lr'?"),
  (lambda: space.grid(RUN, {"lr": (1.0,)}), "no field 'lr'; did you mean '"),
  (lambda: space.grid(RUN, {"optim.peak_lr": 1e-3}), "optim.peak_lr takes 0.001; wanted its"),
  (lambda: space.grid(RUN, {"optim.kind": "muon"}), "optim.kind takes 'muon'; wanted its values"),
  (lambda: space.grid(RUN, {"train.seed": (0.5,)}), "train.seed is 0.5; wanted int."),
  (lambda: space.grid(RUN, {"train.seed": (True,)}), "train.seed is True; wanted int."),
  (lambda: space.grid(RUN, {"train.seed": (1, 1)}), "train.seed takes 1 twice"),
  (lambda: space.grid(RUN, {"model": (RUN.optim,)}), "wanted Model."),
  (lambda: space.grid(RUN, {"model.rope_split": ((1, 2),)}), "model.rope_split is (1, 2); wanted"),
  (lambda: space.grid(RUN, {"optim.kind": ("sgd",)}), "optim.kind is 'sgd'; wanted one of 'adamw'"),
  (lambda: space.grid(RUN, {}), "a sweep over no fields is one run"),
  (lambda: list(space.grid(RUN, {"train.seed": space.Integers(0, 3)})), "train.seed: a grid wants "
                                                                        "values one by one"),
  (lambda: list(space.grid(RUN, {"optim.peak_lr": (1e-3, -1.0)})),
   "tiny with peak_lr=-1.0: Optim.peak_lr is -1.0; it must be greater than 0"),
  (lambda: list(space.grid(RUN, {"model.heads": (4, 3)})), "tiny with heads=3: Model.heads is 3"),
  (lambda: space.random(RUN, {"train.seed": space.Uniform(0, 0.5)}, trials=2), "seed is 0.5"),
  (lambda: space.random(RUN, {"train.seed": (0, 1)}, trials=0), "0 trials were asked for"),
  (lambda: list(space.random(RUN, {"train.seed": (0, 1)}, trials=3)), "after 2 100 draws"),
  (lambda: space.LogUniform(0, 1), "LogUniform is from 0; wanted more than 0"),
  (lambda: space.Uniform(2, 1), "Uniform is from 2 to 1; wanted the smaller number first"),
])
def test_what_makes_no_sweep_is_told(make, message):
  with pytest.raises(ValueError) as error:
    make()
  assert message in str(error.value)
