"""What people say in the dialogues, besides digits: questions, hesitations, back-channels.

A question is a carrier ("what comes after") and a digit. A bare digit asks what comes after it.
Each phrase is (text for the synthesisers that read, IPA as Kokoro was trained on).
"""

from __future__ import annotations

import dataclasses

OPS = ("after", "before", "count")
BARE = "bare"
COUNTED = 4  # words at least: counting goes up to nine, and where that is fewer, on over zero


@dataclasses.dataclass(frozen=True)
class Phrase:
  """A text, and the same in Kokoro's letters."""

  text: str
  ipa: str


CARRIERS = {
  "en": {
    "after": Phrase("what comes after", "wˌʌt kˈʌmz ˈæftəɹ"),
    "before": Phrase("what comes before", "wˌʌt kˈʌmz bəfˈɔɹ"),
    "count": Phrase("count from", "kˈWnt fɹˌʌm"),
  },
  "es": {
    "after": Phrase("qué viene después de", "kˈe βjˈene despwˈes ðe"),
    "before": Phrase("qué viene antes de", "kˈe βjˈene ˈantes ðe"),
    "count": Phrase("cuenta desde", "kwˈenta ðˈesðe"),
  },
  "fr": {
    "after": Phrase("qu'est-ce qui vient après", "kˈɛs ki vjˈɛ̃ apʁˈɛ"),
    "before": Phrase("qu'est-ce qui vient avant", "kˈɛs ki vjˈɛ̃ avˈɑ̃"),
    "count": Phrase("compte à partir de", "kˈɔ̃t a paʁtˈiʁ də"),
  },
  "it": {
    "after": Phrase("cosa viene dopo", "kˈɔza vjˈɛne dˈopo"),
    "before": Phrase("cosa viene prima di", "kˈɔza vjˈɛne pɾˈima di"),
    "count": Phrase("conta da", "kˈonta da"),
  },
  "ru": {
    "after": Phrase("что идёт после числа\u0301", "ʂtˈo ɪdʲˈɵt pˈosʲlʲɪ ʧʲɪslˈa"),
    "before": Phrase("что идёт пе\u0301ред число\u0301м", "ʂtˈo ɪdʲˈɵt pʲˈerʲɪt ʧʲɪslˈom"),
    "count": Phrase("считай от числа\u0301", "ɕːɪtˈaj ɐt ʧʲɪslˈa"),
  },
}

HESITATIONS = {
  "en": (Phrase("uh", "ˈʌː"), Phrase("um", "ˈʌm"), Phrase("hmm", "hˈəmː")),
  "es": (Phrase("eh", "ˈeː"), Phrase("em", "ˈem"), Phrase("hum", "hˈəmː")),
  "fr": (Phrase("euh", "ˈøː"), Phrase("heu", "ˈœː"), Phrase("hum", "ˈœm")),
  "it": (Phrase("eh", "ˈɛː"), Phrase("em", "ˈɛm"), Phrase("um", "ˈum")),
  "ru": (Phrase("э", "ˈɛː"), Phrase("эм", "ˈɛm"), Phrase("хм", "xˈəm")),
}

# The first few are said by everybody, the others by training voices only: what is heard in tests is
# to be told from questions, not remembered. None begins as a question does or is nearly a digit.
TESTED_BACKCHANNELS = 3
BACKCHANNELS = {
  "en": (Phrase("mm hmm", "əmhˈəm"), Phrase("uh huh", "ʌhˈʌ"), Phrase("aha", "ɑhˈɑ"),
         Phrase("yeah", "jˈæə"), Phrase("right", "ɹˈIt"), Phrase("okay", "ˌOkˈA")),
  "es": (Phrase("ajá", "axˈa"), Phrase("vale", "bˈale"), Phrase("um hum", "əmhˈəm"),
         Phrase("bien", "bjˈen"), Phrase("ya", "jˈa"), Phrase("bueno", "bwˈeno")),
  "fr": (Phrase("d'accord", "dakˈɔʁ"), Phrase("ouais", "wˈɛ"), Phrase("ah ah", "aˈa"),
         Phrase("bon", "bˈɔ̃"), Phrase("voilà", "vwalˈa"), Phrase("ah bon", "a bˈɔ̃")),
  "it": (Phrase("già", "ʤˈa"), Phrase("ho capito", "ɔ kapˈito"), Phrase("um um", "əmhˈəm"),
         Phrase("bene", "bˈɛne"), Phrase("va bene", "va bˈɛne"), Phrase("esatto", "ezˈatːo")),
  "ru": (Phrase("ага\u0301", "ɐɡˈa"), Phrase("угу\u0301", "uɡˈu"),
         Phrase("по\u0301нял", "pˈonʲɪl"), Phrase("ве\u0301рно", "vʲˈernə"),
         Phrase("я\u0301сно", "jˈasnə"), Phrase("ла\u0301дно", "lˈadnə")),
}


def answer(op: str, digit: int) -> tuple[int, ...]:
  """The digits that answer a question; nine is followed by zero.

  Counting names the digit itself and goes up to nine, or on over zero until COUNTED are said.
  """
  if op in ("after", BARE):
    return ((digit + 1) % 10,)
  if op == "before":
    return ((digit - 1) % 10,)
  if op == "count":
    return tuple((digit + i) % 10 for i in range(max(10 - digit, COUNTED)))
  raise ValueError(f"unknown operation {op!r}; want one of {', '.join((*OPS, BARE))}")
