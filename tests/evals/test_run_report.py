"""The page about a run: every modality, source and sample is on it."""

import json
import re

import numpy as np
import pytest

from omnijax.cli import main
from omnijax.evals import run_report
from omnijax.generate import command


def line(step, **more):
  return {"step": step, "loss": 5.0 - 0.1 * step, "loss/text": 4.0, "loss/image": None,
          "loss/audio": 6.0 - 0.1 * step, "loss/source/a": 3.0, "loss/source/b <b>": 2.0,
          "tokens/a": 30, "tokens/b <b>": 10, "tokens_per_s": 100.0, "mfu": 0.25, **more}


@pytest.fixture
def run_dir(tmp_path):
  run = tmp_path / "run"
  (run / "samples" / "0000010").mkdir(parents=True)
  (run / "samples" / "0000020").mkdir()
  write = lambda name, lines: (run / name).write_text("".join(json.dumps(x) + "\n" for x in lines))
  write("metrics.jsonl", [line(t) for t in range(20)])
  write("eval.jsonl", [{"step": t, "eval/loss": 4.5, "eval/loss/text": 4.2, "eval/loss/image": None,
                        "eval/loss/audio": 6.1, "eval/loss/source/a": 3.3} for t in (10, 20)])
  last = run / "samples" / "0000020"
  (last / "text.txt").write_text("text_0: (image) -> a <cat>\n")
  command.write_png(last / "image_0.png", np.full((8, 8, 3), 200, np.uint8), {"prompt": "draw it"})
  command.write_wav(last / "audio_0.wav", np.zeros(8000), 16_000, {"prompt": "say it"})
  return run


def test_everything_is_on_the_page(run_dir):
  assert main(["report", str(run_dir)]) == 0
  page = (run_dir / "report.html").read_text("utf-8")
  for text in ("Losses by modality", "Loss of audio: training ends at", "held out ends at 6.1",
               "Loss of a: training", "Loss of b &lt;b&gt;", "Held-out loss of a", "a, held out",
               "<td>600</td><td>75.0%</td>", "After 20 steps", "After 10 steps", "a &lt;cat&gt;",
               "draw it", "prompt: say it", "25.0%", "3.1"):
    assert text in page, text
  assert "<b>" not in page and "Loss of image: nothing was recorded" in page
  assert len(re.findall(r'src="data:image/png', page)) == 2 and "data:audio/flac" in page
  assert not re.findall(r'(?:src|href)="(?!data:|#)', page), "no other file is needed"
  assert page.index("After 20 steps") < page.index("After 10 steps")


def test_a_run_of_one_source_without_samples_has_less(run_dir):
  for name in ("eval.jsonl", "samples"):
    (run_dir / name).rename(run_dir / f"no-{name}")
  plain = {k: x for k, x in line(0).items() if "source" not in k and "tokens/" not in k}
  (run_dir / "metrics.jsonl").write_text(json.dumps(plain) + "\n")
  run_report.write(run_dir, run_dir / "report.html")
  page = (run_dir / "report.html").read_text("utf-8")
  assert "Losses by source" not in page and "Samples" not in page and "Speed" in page


def test_messages(run_dir, tmp_path, capsys):
  assert main(["report", str(tmp_path)]) == 2
  assert "has no metrics.jsonl" in capsys.readouterr().err
  assert main(["report", str(run_dir), "--out", str(tmp_path / "no" / "x.html")]) == 2
  assert "can't write" in capsys.readouterr().err
  (run_dir / "metrics.jsonl").write_text("")
  assert main(["report", str(run_dir)]) == 2
  assert "no finished step yet" in capsys.readouterr().err
