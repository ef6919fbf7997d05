"""`omnijax plan` on the real compiler of TPUs: `pytest -m tpu`, with the extra `tpu` installed."""

import importlib.util
import json
import pathlib
import re
import sys

import pytest

from omnijax import cli

EXPERIMENT = '''
import dataclasses
from experiments import omni_8b
from omnijax import config
def run():
  base = omni_8b.run()
  model = dataclasses.replace(base.model, layers=2, dim=512, heads=4, kv_heads=2, mlp=1024,
                              depth_layers=1, depth_dim=128, depth_heads=2, depth_mlp=256)
  sizes = dataclasses.replace(base.tokenizers, text_size=7936, image_size=8192)
  data = dataclasses.replace(base.data, rows=8, positions=1024, frames=256)
  return dataclasses.replace(base, name="small", model=model, tokenizers=sizes, data=data,
                             mesh=config.Mesh(fsdp=4))
'''


@pytest.fixture
def experiment(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[2]))
  (tmp_path / "small.py").write_text(EXPERIMENT)
  return tmp_path / "small.py"


@pytest.mark.tpu
def test_a_small_run_is_compiled_and_read(experiment, tmp_path, capsys):
  paths = [f"--{kind}={tmp_path / kind}" for kind in ("json", "html", "hlo")]
  assert cli.main(["plan", str(experiment), "--topology", "v5p:2x2x1", *paths]) == 0
  figures = json.loads((tmp_path / "json").read_text())
  assert figures["fits"] and 0.05 < figures["hbm_gib"] < 20
  assert figures["hlo_flops_per_chip"] > 0.9 * figures["model_flops_per_chip"]
  assert 0 < figures["mfu_estimate"] < 1
  parts = figures["memory_gib"]
  assert sum(parts.values()) == pytest.approx(figures["hbm_gib"]) and min(parts.values()) >= 0
  assert {c["kind"] for c in figures["collectives"]} >= {"all-gather", "reduce-scatter"}
  assert "splash" in (tmp_path / "hlo").read_text()
  assert "<svg" in (tmp_path / "html").read_text()
  assert "fits" in capsys.readouterr().out


@pytest.mark.tpu
def test_a_step_of_generation_is_compiled_and_read(experiment, tmp_path, capsys):
  assert cli.main(["plan", str(experiment), "--topology", "v5p:2x2x1", "--decode", "--mesh.fsdp",
                   "2", "--mesh.tensor", "2", "--data.rows", "64", "--data.positions", "8192",
                   "--json", str(tmp_path / "json"), "--html",
                   str(tmp_path / "html")]) == 0
  f = json.loads((tmp_path / "json").read_text())
  # Of 64 streams 32 on a chip, and one of 2 heads of keys and of values in each of 2 layers.
  cache = 2 * 2 * 32 * 1 * 8192 * 128 * 2
  assert f["memory_gib"]["cache"] * 2**30 == cache
  assert f["memory_gib"]["buffers"] * 2**30 < cache / 2  # no other copy of it
  assert f["step_s_of_memory"] < f["text_step_s_estimate"] < f["step_s_estimate"] < 0.01
  assert f["speech_per_second"] == pytest.approx(0.08 / f["step_s_estimate"])
  assert f["tokens_per_s_per_chip"] == pytest.approx(16 / f["text_step_s_estimate"])
  said = capsys.readouterr().out
  assert "decode step of small" in said and "where none speaks" in said
  assert "<svg" in (tmp_path / "html").read_text()


@pytest.mark.tpu
def test_variants_are_compiled_and_the_best_can_be_planned(experiment, tmp_path, capsys):
  out = tmp_path / "best.py"
  assert cli.main(["plan", str(experiment), "--topology", "v5e:2x2", "--search", str(out),
                   "--tries", "2", "--data.rows", "8", "--model.layers", "1", "--mesh.fsdp", "4",
                   "--json", str(tmp_path / "json")]) == 0
  tries = json.loads(out.with_suffix(".json").read_text())["tries"]
  assert [t["outcome"] for t in tries] == ["fits", "fits"]
  rates = [t["tokens_per_s"] for t in tries]
  assert min(rates) > 0 and rates[0] != rates[1]
  figures = json.loads((tmp_path / "json").read_text())
  assert figures["tokens_per_s_per_chip"] == max(rates)
  capsys.readouterr()
  assert cli.main(["plan", str(out), "--topology", "v5e:2x2"]) == 0
  assert f"{max(rates):,.0f} a second" in capsys.readouterr().out


@pytest.mark.tpu
def test_what_does_not_fit_says_what_would(experiment, capsys):
  arguments = ["plan", str(experiment), "--topology", "v5e:2x2", "--data.rows", "512",
               "--model.remat", "minimal", "--model.layers", "12"]
  cli.main(arguments)
  said = capsys.readouterr()
  assert "RESOURCE_EXHAUSTED" not in said.err, said.err
  assert "DOES NOT FIT" in said.out and "model.remat full" in said.out


CPU = ["--topology", "cpu:4", "--data.positions", "128", "--data.frames", "32", "--loss.chunk",
       "128", "--tokenizers.text-size", "1024", "--tokenizers.image-size", "1024"]


@pytest.mark.parametrize("more,parts", [
  (["--mesh.fsdp", "4"], {"parameters", "optimizer", "gradients", "activations", "buffers"}),
  (["--mesh.fsdp", "2", "--mesh.tensor", "2", "--decode"], {"parameters", "cache", "buffers"}),
])
def test_a_dry_run_on_cpus_tells_all_but_time(experiment, tmp_path, capsys, more, parts):
  paths = [f"--{kind}={tmp_path / kind}" for kind in ("json", "html")]
  assert cli.main(["plan", str(experiment), *CPU, *more, *paths]) == 0
  f = json.loads((tmp_path / "json").read_text())
  assert f["chips"] == 4 and f["fits"] is None and f["hbm_of_chip_gib"] is None
  assert set(f["memory_gib"]) == parts and 0.001 < f["memory_gib"]["buffers"] < f["hbm_gib"] < 2
  assert f["model_flops_per_chip"] > 1e6
  sent = {c["axis"]: c["bytes"] for c in f["collectives"]}
  assert sent["fsdp"] > 0 and "seconds" not in f["collectives"][0]
  assert "step_s_estimate" not in f and "mfu_estimate" not in f
  assert "not estimated" in capsys.readouterr().out
  assert "<svg" in (tmp_path / "html").read_text()


@pytest.mark.parametrize("arguments,message", [
  (["--topology", "h100:12"], "12 GPUs; wanted at most 8, or hosts of 8, such as 8"),
  (["--topology", "cpu:8", "--slices", "2"], "only TPUs come in slices"),
  (["--topology", "v5p:4x4"], r"unknown|wired in 3"),
  (["--topology", "v7:2x2"], "unknown topology"),
  ([], "--topology is missing"),
  (["--topology", "v5p:2x2x1", "--json", "/nowhere/at/all.json"], "no directory"),
  (["--topology", "v5p:2x2x1", "--mesh.fsdpp", "4"], "did you mean --mesh.fsdp"),
  (["--topology", "v5p:2x2x1", "--decode", "--document", "9"], "--document has no effect"),
  (["--topology", "v5p:2x2x1", "--price", "-1"], "--price is -1.0; it must be greater than 0"),
  (["--topology", "v5p:2x2x1", "--data.frames", "2000"], "frames is 2000, more than .* 1024"),
])
def test_bad_input_is_one_line(experiment, arguments, message, capsys):
  assert cli.main(["plan", str(experiment), *arguments]) == 2
  assert re.search(message, capsys.readouterr().err)


def test_without_the_compiler_it_says_how_to_get_it(experiment, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  assert cli.main(["plan", str(experiment), "--topology", "v5p:2x2x1"]) == 2
  assert 'pip install "omnijax[tpu]"' in capsys.readouterr().err


@pytest.mark.skipif(any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
                    reason="the compiler for GPUs is installed")
def test_without_the_compiler_for_gpus_it_says_how_to_get_it(experiment, capsys):
  assert cli.main(["plan", str(experiment), "--topology", "h100:8"]) == 2
  assert 'pip install "omnijax[cuda]"' in capsys.readouterr().err


@pytest.mark.tpu
@pytest.mark.parametrize("arguments,message", [
  (["--topology", "v5e:3x3"], r"knows no topology v5e:3x3.*v5e:4x4"),
  (["--topology", "v5p:4x4x4"], r"mesh .*'fsdp': 4.* and there are 64"),
  (["--topology", "v5p:4x4x4", "--mesh.fsdp", "8", "--mesh.context", "8"],
   r"can't be laid on these devices.*product of the topology's"),
  (["--topology", "v5e:4x4", "--slices", "2", "--mesh.fsdp", "32"],
   r"mesh.data is 1 and there are 2 slices.*multiple of 2"),
  (["--topology", "v5e:2x2", "--data.positions", "1000"],
   r"1000 positions.*attention_blocks are \(1024, 1024\).*multiples of 128"),
])
def test_a_mesh_that_does_not_fit_is_one_line(experiment, arguments, message, capsys):
  assert cli.main(["plan", str(experiment), *arguments]) == 2
  assert re.search(message, capsys.readouterr().err.splitlines()[-1])
