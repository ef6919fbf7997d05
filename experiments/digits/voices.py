"""Who speaks in the digits data set, and which voices are never trained on.

A voice is a person, or one setting of a synthesiser. Its split is decided here by name and holds
in every language: nobody is heard in training in one language and tested in another. Voices of
two synthesisers built from the same speaker (slt, kal) share a split.
"""

from __future__ import annotations

LANGUAGES = ("en", "es", "fr", "it", "ru")

WORDS = {
  "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
  "es": ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"),
  "fr": ("z\u00e9ro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"),
  "it": ("zero", "uno", "due", "tre", "quattro", "cinque", "sei", "sette", "otto", "nove"),
  # nol' odin dva tri chetyre pyat' shest' sem' vosem' devyat'
  "ru": (
    "\u043d\u043e\u043b\u044c",
    "\u043e\u0434\u0438\u043d",
    "\u0434\u0432\u0430",
    "\u0442\u0440\u0438",
    "\u0447\u0435\u0442\u044b\u0440\u0435",
    "\u043f\u044f\u0442\u044c",
    "\u0448\u0435\u0441\u0442\u044c",
    "\u0441\u0435\u043c\u044c",
    "\u0432\u043e\u0441\u0435\u043c\u044c",
    "\u0434\u0435\u0432\u044f\u0442\u044c",
  ),
}

# Recordings of people: (language, voice, split, path pattern under the unpacked packages, source).
_SOUNDS = "usr/share/asterisk/sounds"
_MENARDI = "asterisk-prompt-it-menardi"
PEOPLE = (
  ("en", "allison", "heldout", f"{_SOUNDS}/en_US_f_Allison/digits/%d.g722", "asterisk-en"),
  ("es", "allison", "heldout", f"{_SOUNDS}/es_MX_f_Allison/digits/%d.g722", "asterisk-es"),
  ("es", "july", "train", f"{_SOUNDS}/es/digits/%d.gsm", "asterisk-prompt-es-co"),
  ("fr", "june", "train", f"{_SOUNDS}/fr_CA_f_June/digits/%d.g722", "asterisk-fr"),
  ("fr", "armelle", "heldout", f"{_SOUNDS}/fr/digits/%d.gsm", "asterisk-prompt-fr-armelle"),
  ("it", "carlo", "train", f"{_SOUNDS}/it_IT_m_Carlo/digits/%d.g722", "asterisk-it"),
  ("it", "paola", "heldout", f"{_SOUNDS}/it_IT_f_Menardi/digits/%d.wav", _MENARDI),
  ("ru", "ivrvoice", "train", f"{_SOUNDS}/ru_RU_f_IvrvoiceRU/digits/%d.g722", "asterisk-ru"),
)

ESPEAK_ACCENTS = {
  "en": ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland"),
  "es": ("es", "es-419"),
  "fr": ("fr-fr", "fr-be", "fr-ch"),
  "it": ("it",),
  "ru": ("ru",),
}
ESPEAK_TRAIN = tuple(
  "m1 m2 m3 m4 m5 m6 m8 f1 f2 f3 f4 Alex Alicia Annie Denis Diogo Gene Henrique Hugo Jacky Lee"
  " Mario adam antonio belinda boris linda max pablo rob".split()
)
ESPEAK_HELDOUT = ("m7", "f5", "Andrea", "edward", "Michael")

# Kokoro speaks any phonemes with any voice: first the language's own voices, then guests.
_GUESTS = tuple(
  "ef_dora em_santa ff_siwis if_sara pm_alex pm_santa hf_alpha hf_beta hm_omega hm_psi af_heart"
  " af_nova am_fenrir am_puck bf_isabella bm_george jf_alpha jm_kumo zf_xiaobei zm_yunjian".split()
)
_FEWER_GUESTS = (*_GUESTS[:8], "af_heart", "am_fenrir", "bm_george", "jf_alpha")
KOKORO_TRAIN = {
  "en": tuple(
    "af_heart af_alloy af_aoede af_bella af_jessica af_kore af_nova af_river af_sky am_adam am_echo"
    " am_eric am_fenrir am_liam am_onyx am_puck bf_alice bf_isabella bf_lily bm_daniel bm_fable"
    " bm_george".split()
  ),
  "es": _GUESTS,
  "fr": _FEWER_GUESTS,
  "it": _FEWER_GUESTS,
  "ru": _GUESTS,
}
# Those that the quickstart's model learns to speak in: of the few examples each word has, more
# voices would leave too little of each.
_ROMANCE = tuple("ef_dora em_santa ff_siwis if_sara pm_alex pm_santa".split())
KOKORO_SPOKEN = {
  "en": tuple("af_heart af_bella am_fenrir am_puck bf_isabella bf_lily bm_fable bm_george".split()),
  "es": _ROMANCE,
  "fr": _ROMANCE,
  "it": _ROMANCE,
  "ru": (*_ROMANCE, "hf_alpha", "hm_psi"),
}
KOKORO_HELDOUT = {
  "en": ("af_sarah", "am_michael", "bf_emma", "bm_lewis"),
  "es": ("em_alex", "pf_dora", "af_sarah", "am_michael", "im_nicola"),
  "fr": ("em_alex", "pf_dora", "af_sarah", "am_michael", "bm_lewis"),
  "it": ("im_nicola", "em_alex", "pf_dora", "af_sarah", "am_michael"),
  # whisper-base understands English voices best in Russian, and im_nicola and pf_dora badly.
  "ru": ("af_sarah", "am_michael", "bf_emma", "bm_lewis"),
}
# IPA as Kokoro was trained on (its own letters for English diphthongs).
KOKORO_IPA = {
  "en": "z\u02c8\u026a\u0279O w\u02c8\u028cn t\u02c8u \u03b8\u0279\u02c8i f\u02c8\u0254\u0279"
  " f\u02c8Iv s\u02c8\u026aks s\u02c8\u025bv\u0259n \u02c8At n\u02c8In",
  "es": "s\u02c8e\u027eo \u02c8uno d\u02c8os t\u027e\u02c8es kw\u02c8at\u027eo s\u02c8i\u014bko"
  " s\u02c8e\u026as sj\u02c8ete \u02c8o\u02a7o nw\u02c8e\u03b2e",
  "fr": "ze\u0281\u02c8o \u02c8\u0153\u0303 d\u02c8\u00f8 t\u0281w\u02c8a k\u02c8at\u0281"
  " s\u02c8\u025b\u0303k s\u02c8is s\u02c8\u025bt \u02c8\u0265it n\u02c8\u0153f",
  "it": "\u02a3\u02c8\u025b\u027eo \u02c8uno d\u02c8ue t\u027e\u02c8e kw\u02c8at\u02d0\u027eo"
  " \u02a7\u02c8inkwe s\u02c8\u025bi s\u02c8\u025bt\u02d0e \u02c8\u0254t\u02d0o n\u02c8\u0254ve",
  "ru": "n\u02c8ol\u02b2 \u0250d\u02b2\u02c8in dv\u02c8a tr\u02b2\u02c8i"
  " \u02a7\u02b2\u026at\u02c8\u0268r\u02b2\u026a p\u02b2\u02c8\u00e6t\u02b2"
  " \u0282\u02c8\u025bs\u02b2t\u02b2 s\u02b2\u02c8em\u02b2"
  " v\u02c8os\u02b2\u026am\u02b2 d\u02b2\u02c8ev\u02b2\u026at\u02b2",
}

# Voices between Kokoro's training voices: so many in each language, none of them anybody's.
KOKORO_BLENDS = 20
# How else a digit is said, Castilian or British for example; blends take turns.
KOKORO_OTHER_IPA = {
  "en": {
    0: "z\u02c8\u026a\u0279O z\u02c8\u026a\u0259\u0279Q z\u02c8i\u0279O",
    3: "\u03b8\u0279\u02c8i \u03b8\u0279\u02c8i\u02d0",
    4: "f\u02c8\u0254\u0279 f\u02c8\u0254\u02d0",
    7: "s\u02c8\u025bv\u0259n s\u02c8\u025bvn",
  },
  "es": {
    0: "s\u02c8e\u027eo \u03b8\u02c8e\u027eo",
    5: "s\u02c8i\u014bko \u03b8\u02c8i\u014bko",
    6: "s\u02c8e\u026as s\u02c8ejs",
    9: "nw\u02c8e\u03b2e nw\u02c8eve",
  },
  "fr": {1: "\u02c8\u0153\u0303 \u02c8\u025b\u0303", 4: "k\u02c8at\u0281 k\u02c8at\u0281\u0259"},
  "it": {
    0: "\u02a3\u02c8\u025b\u027eo \u02a3\u02c8\u025bro \u02a6\u02c8\u025bro",
    3: "t\u027e\u02c8e tr\u02c8e",
    6: "s\u02c8\u025bi s\u02c8\u025bj",
  },
  "ru": {},
}

FLITE = (("kal16", "train"), ("awb", "train"), ("rms", "train"), ("slt", "heldout"))
FESTIVAL = (
  ("en", "kal_diphone", "train"),
  ("en", "ked_diphone", "train"),
  ("en", "cmu_us_slt_arctic_hts", "heldout"),
  ("it", "lp_diphone", "train"),
  ("it", "pc_diphone", "train"),
  ("ru", "msu_ru_nsh_clunits", "heldout"),
)
# One voice a language, two for English. The French and the American one are the hardest to hear.
PICO = (
  ("en", "en-US", "heldout"),
  ("en", "en-GB", "train"),
  ("es", "es-ES", "train"),
  ("fr", "fr-FR", "heldout"),
  ("it", "it-IT", "heldout"),
)
