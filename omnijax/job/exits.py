"""How a process of a job ends, for whatever started it.

0 done, or stopped on request with everything saved; 2 bad input, and 42 no checkpoint is good or
going back to one did not help: the same again would fail again; 75 try again (EX_TEMPFAIL of
sysexits.h); 76 stuck, try again; 130 interrupted; 1 anything else.

An engine that starts again what has not ended for good sets OMNIJAX_STOPPED_CODE=75: a run that was
stopped before its last step then ends with that, for 0 would tell the engine that it is done.
"""

import os

DONE, OTHER, BAD_INPUT, NEVER, AGAIN, STUCK, INTERRUPTED = 0, 1, 2, 42, 75, 76, 130
STOPPED = "OMNIJAX_STOPPED_CODE"


def stopped() -> int:
  """The code of a run that was stopped on request.

  Raises:
    ValueError: OMNIJAX_STOPPED_CODE is no exit code.
  """
  code = os.environ.get(STOPPED, str(DONE))
  if not code.isdecimal() or int(code) > 255:
    raise ValueError(f"{STOPPED} is {code!r}; wanted an exit code, such as {AGAIN}.")
  return int(code)


class Never(RuntimeError):
  """No try will end better than this one."""


class Again(RuntimeError):
  """The same command may do better: what failed lies outside of the run."""


ENDS = (Never, Again)
