"""What the help of each command says."""

PATH = """\
Trains, and then runs, one Transformer that natively reads and writes text, images and speech.

  omnijax quickstart --dir quickstart_run         the whole path on small real data, minutes
  omnijax prepare SOURCE --out DATA               raw files -> tokenised records
  omnijax data show EXPERIMENT --step 0           what a batch of training holds, seen and heard
  omnijax train EXPERIMENT --run-dir RUN          records -> a trained model
  omnijax sweep EXPERIMENT                        many runs, begun again and compared as one
  omnijax generate RUN --text "..." --to image    a trained model -> text, a picture or sound
  omnijax serve RUN                               OpenAI's interface to it, over HTTP
  omnijax plan EXPERIMENT --topology v5p:4x4x4    what it needs on TPUs that aren't here
  omnijax bench step EXPERIMENT --against torch   how fast it is on what is here
"""
EPILOG = """\
`omnijax COMMAND --help` shows an example and what comes out. Wrong input ends with one line and
exit code 2; --debug (or OMNIJAX_TRACEBACK=1) shows where it was noticed.
"""

QUICKSTART = """\
Trains a model of spoken and written digits in five languages, from the files that ship with
omnijax, and judges all six directions between text, images and speech. Run again to resume.

  omnijax quickstart --dir quickstart_run

Writes DIR/report.html (curves, pictures, playable sound) and DIR/report.json (all figures).
"""
PREPARE = """\
Tokenises the documents of a source into a directory of records, which training reads.

  omnijax prepare captions.jsonl --out data/captions

SOURCE is JSON lines, paths relative to their file:
    {"parts": [{"text": "a red bus"}, {"image": "bus.png"}]}
    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
    {"text": "..."}  or  {"audio": "hello.wav", "text": "hello"}
  a text, or a folder of texts;
  WebDataset shards (.tar), or Parquet tables as on Hugging Face, or a folder of them;
  or a folder where cat.png and cat.txt, hello.flac and hello.txt belong together.

A bad item is counted, named in OUT/rejects.jsonl and skipped. Run again to resume. OUT/report.html
tells what is in the records: hours, megapixels, tokens, lengths, rejects by reason, and examples as
the tokenizers keep them; OUT/report.json has the figures.
"""
DATA = "Shows what training reads.\n"
DATA_SHOW = """\
Draws the batch of a step as a page: rows in colour by modality and document, what is learnt and
what is only read, padding and budgets, sources and epochs; and every document to read, see and
hear, its tokens decoded back from the very arrays that training gets.

  omnijax data show runs/first --step 100
  omnijax data show experiments/quickstart.py --step 0 --rows 8 --out batch.html

Of a run it is what that step read, whatever changed since: what happened to the run is known up to
its newest checkpoint. Of an experiment fields can be given, as to `omnijax train`. The page is one
file that needs no other and no script. Changes nothing; takes no accelerator.
"""
TOKENIZER_TRAIN = """\
Trains a tokenizer, or resumes its training.

  omnijax tokenizer train text  --data corpus.txt     --out tok/text --size 8000
  omnijax tokenizer train image --data pictures.jsonl --out tok/image --steps 20000
  omnijax tokenizer train audio --data speech.jsonl   --out tok/audio --steps 100000

text: UTF-8 files, one sentence a line. image, audio: JSON lines {"image": path} and {"audio":
path, "transcript": "..."}. OUT can be used as --tokenizers.text (image, audio) elsewhere.
"""
TOKENIZER_EVAL = """\
Measures what a tokenizer loses, on data that it was not trained on.

  omnijax tokenizer eval audio tok/audio --data heldout.jsonl --json

PATH may be `packaged`. text: bytes a piece, exact round trips; image: PSNR, SSIM, use of codes;
audio: mel distance, STOI, SI-SDR, use of codes, bitrate, word error rate of reconstructions.
"""
CHECKPOINT = """\
Lists, checks and compares checkpoints. Reads only.

  omnijax checkpoint ls runs/first
  omnijax checkpoint verify runs/first
  omnijax checkpoint diff runs/first/checkpoints/500 runs/first/checkpoints/1000

`verify` compares every file with its size and checksum, and every array with its fingerprint, and
ends with exit code 2 if something is damaged.
"""
TRAIN = """\
Trains the run that EXPERIMENT, a Python file with `run() -> Run`, describes; resumes by default.

  omnijax train experiments/quickstart.py --run-dir runs/first --optim.peak-lr 3e-4

Every field of the run can be given; `omnijax train EXPERIMENT --help` lists them with their
values. RUN_DIR gets config.json, metrics.jsonl, TensorBoard events, checkpoints and samples.

A directory of another run is refused. With --change settings of data, loss and optim may be others
than before, as may the records: the run goes on with them from its newest checkpoint, data from the
row of the plan where it was, and that is saved with every checkpoint from then on.

The same command on every host of a job makes one job of them, found as jax finds them (TPU, SLURM,
...) or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. SIGTERM to any process
makes all save the same step and end. Exit codes: 0 done or stopped on request (of the latter
OMNIJAX_STOPPED_CODE, where it is set), 2 bad input, 42 no checkpoint is good, 75 try again, 76
stuck, try again.
"""
SWEEP = """\
Runs what the `sweep()` of EXPERIMENT gives, each a trial with a directory of its own, and compares
them. Run again to go on: what is done is not run again, what failed is tried again.

  omnijax sweep experiments/quickstart.py --dir sweeps/first --jobs 2 --train.steps 100

sweep() gives Runs with names of their own, one by one or as
`omnijax.sweep.space.grid(run(), {"optim.peak_lr": (1e-3, 3e-3), "train.seed": (0, 1)})`, or
`space.random` with ranges. Fields that are given here change all of them. Of a grid or a random
draw Optuna can choose instead, one after another, by what came of those before, and stop those that
are worse than others at the same step (extra `optuna`):

  omnijax sweep experiments/quickstart.py --dir sweeps/tpe --optuna tpe --trials 20 --pruner median

DIR gets manifest.json (ids, settings, states), trials/ID as `omnijax train` makes them (also for
`tensorboard --logdir DIR/trials`), results.csv, and report.html with curves and final losses of
each modality. A trial that is killed is started again, and resumes. Ctrl-C or SIGTERM makes all
trials save and end; no local trial outlives this command. Exit codes: 0 all done, 1 some failed, 2
bad input, 75 stopped by SIGTERM, 130 by Ctrl-C.

Engines: local processes; ray, on the cluster of RAY_ADDRESS or one on this machine (extra `ray`);
slurm, arrays of jobs, whose partition and time come from SBATCH_PARTITION, SBATCH_TIMELIMIT and
sbatch's other variables; these outlive this command, which finds them when it is called again. All
machines must see DIR and the data under the same names.
"""
GOODPUT = """\
Where the time of a run went, over all its starts: steps that count, and everything else.

  omnijax goodput runs/first --html goodput.html
"""
EVAL = """\
Held-out loss of each modality of a run's newest checkpoint, in nats and in physical units.

  omnijax eval runs/first --data data/heldout
"""
GENERATE = """\
Continues any mix of inputs, in the order given, in any modality.

  omnijax generate runs/first --text "a red bus" --to image --out bus.png
  omnijax generate runs/first --audio question.wav --to text
  omnijax generate runs/first --image seven.png --to audio --out seven.wav

Text is printed; a picture is written as PNG, sound as WAV. What the model writes before a picture
or says in sound goes to stderr. How tokens are drawn: --KIND.temperature X (0: the most likely),
--KIND.top-k N, --KIND.top-p X, where KIND is text, image, first-codebook or acoustic.
"""
SERVE = """\
Serves a run's newest checkpoint over HTTP, with OpenAI's interface.

  omnijax serve runs/first
  OMNIJAX_API_KEY=secret omnijax serve runs/first --host 0.0.0.0 --port 8000 --slots 8

OpenAI's clients work unchanged:

  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="secret")
  client.chat.completions.create(model="first", messages=[{"role": "user", "content": "hello"}])

POST /v1/chat/completions takes text, pictures (data URLs) and sounds, and answers in text or
speech, whole or as a stream; /v1/images/generations draws; /v1/audio/speech says a text and
/v1/audio/transcriptions writes down what is said. GET /docs describes every field, /health says
whether requests are taken, /metrics has figures for Prometheus.

The model has --slots answers under way at a time; more wait in a queue. With keys (several may be
given, in the variable separated by commas, where other users of this machine can't see them) every
request under /v1/ needs one. SIGTERM: no new requests; those that run have --drain-s seconds to
end. Needs the extra `serve`.
"""
PLAN = """\
Compiles an experiment's real train step for TPUs that aren't here and says what it needs and does:
memory of a chip, FLOPs, collectives, time of a step, MFU. Takes minutes. Needs the extra `tpu`.

  omnijax plan experiments/omni_8b.py --topology v5p:4x4x4
  omnijax plan experiments/omni_8b.py --topology v5e:16x16 --slices 4 --mesh.data 4 --mesh.fsdp 256
  omnijax plan experiments/omni_1b.py --topology v5e:2x2 --decode --mesh.fsdp 1 --mesh.tensor 4 \
    --data.rows 64
  omnijax plan experiments/omni_1b.py --topology v5e:8x8 --search best.py --data.rows 128

--search compiles variants in mesh, rows, micro-batches, remat and blocks of attention, those that
promise most first, and writes the best to FILE, an experiment. Fields that are given stay as they
are: without data.rows it may choose another batch. What is compiled is kept in FILE's .json, so a
second call goes on where the first stopped.

Times are estimates of the compiled schedule, to compare plans with each other by: no real step was
timed. Of GPUs (--topology h100:8, with the extra `cuda`) and of this machine's CPU (cpu:8, a dry
run) it tells memory, FLOPs and collectives, and no time. Figures of a chip of tpu7x are of one of
its two cores. Writes nothing but what --json, --html and --hlo ask for.
"""
BENCH_STEP = """\
Times an experiment's real train step on this machine. It needs no prepared data: documents are made
up and packed as real ones are. With --against torch, the same model in plain PyTorch, compiled,
from the same weights and on the same batch, takes its turn after each of our blocks, in a process
of its own; needs the extra `bench`.

  omnijax bench step experiments/quickstart.py --against torch
  omnijax bench step experiments/omni_1b.py --mesh.fsdp 1 --data.rows 4 --json step.json

Prints time of a step, tokens/s, MFU, peak memory, what compiling took, and the ratio of both sides:
the median over pairs of blocks, above 1 where ours is faster, with the least and the most. MFU is
of the vendor's bfloat16 peak on accelerators, on a CPU of a matrix product's measured speed. Other
work on the machine shows as spread: look at it before you believe a figure.
"""
BENCH_DATA = """\
Measures the path of data on synthetic documents (half texts of 50 to 800 tokens, a quarter pictures
of 256 codes, a quarter recordings of 40 to 1,500 frames): how full rows become, how fast they are
read and packed beside grain's own packing of the same records, and what planning and seeking cost.

  omnijax bench data --json data.json

Some three minutes and 2 GB of disk with the default numbers. JSON: packing_efficiency,
frame_efficiency, positions_per_s_per_core, ratio_to_grain_first_fit, plan_100m_s (scaled to a
hundred million documents), plan_peak_gib, seek_s, and what they were measured with.
"""
BENCH_VOICE = """\
Measures dialogues in real time with a run's newest checkpoint: talks at once hear 80 ms of sound
every 80 ms. Beside them, on the same questions in turn, a pipeline is asked: a silence of 500 (and
of 200) ms ends speech, whisper-base recognises it, the same model answers the text, and SVOX Pico
synthesises the answer. For that it needs the extras `eval` and `voice`.

  omnijax bench voice runs/dialogue --scenarios dialogues/scenarios.jsonl --out voice.json

FILE has a user's side of a dialogue a line, one channel at the run's rate, path relative to FILE:
    {"id": "a", "kind": "answer", "audio": "a.wav", "events":
     [{"event": "question", "start": 0.6, "end": 1.2, "language": "en"}]}
kind: answer (one question), pause, interruption (with an event of that name), backchannel, noise.

Prints, and writes to --out with every single answer: the time from the last sample heard to a frame
of sound, and the share of frames that took longer than they last; the time from the end of a
question to the first sound that is heard, and from an interruption to silence, and what of it is
computing; wall time over sound time when fed as fast as it answers; the stages of the pipeline, and
its latency over ours. A question's end is when its last sample is spoken. `fed_late_s` is how late
talks were fed: other work on the machine shows there.
"""
REPORT = """\
Writes a page about a run, finished or not: losses by modality and by source, in training and held
out, speed, and what it wrote, drew and said at the last steps that samples were made after.

  omnijax report runs/first

One file, RUN/report.html, that needs no other.
"""
