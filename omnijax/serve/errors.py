"""Errors in the shape that OpenAI's clients know: {"error": {message, type, param, code}}."""

from collections.abc import Mapping
from typing import Any

import pydantic
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_MOST_SHOWN = 300  # characters of a validator's message


class Refused(HTTPException):
  """What a client is told instead of an answer.

  A subclass of HTTPException, for FastAPI lets those through while it reads a body.

  Args:
    status: of HTTP.
    message: says what was got, what was wanted and what to change.
    code: for programs.
    param: the field that it is about, such as messages[0].content.
    retry_after: seconds after which the same may be done.
  """

  def __init__(self, status: int, message: str, *, code: str | None = None,
               param: str | None = None, retry_after: float | None = None):
    headers = None if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    super().__init__(status, message, headers)
    self.code, self.param = code, param

  def body(self) -> dict[str, Any]:
    """The answer's JSON."""
    kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
    if self.status_code == 429:
      kind = "requests"
    return {"error": {"message": self.detail, "type": kind, "param": self.param,
                      "code": self.code}}

  def response(self) -> JSONResponse:
    """The whole answer."""
    return JSONResponse(self.body(), self.status_code, self.headers)


class Failed(Refused):
  """Something broke that is not the client's fault; what, is in the server's log only."""

  def __init__(self) -> None:
    super().__init__(500, "The server failed to answer; its log says why.", code="internal_error")


class Stopping(Refused):
  """The server is about to end."""

  def __init__(self) -> None:
    super().__init__(503, "The server is stopping; ask again, another one may answer.",
                     code="stopping", retry_after=5)


class ErrorDetail(pydantic.BaseModel):
  """What went wrong."""

  message: str
  type: str
  param: str | None
  code: str | None


class ErrorBody(pydantic.BaseModel):
  """The body of every answer that is an error."""

  error: ErrorDetail


# For the OpenAPI document.
RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody},
                                              "5XX": {"model": ErrorBody}}


def add(app: FastAPI) -> None:
  """Makes all errors of an app look alike."""
  app.add_exception_handler(Refused, _refused)
  app.add_exception_handler(HTTPException, _http)
  app.add_exception_handler(RequestValidationError, _invalid)


def _refused(_: Request, error: Exception) -> JSONResponse:
  assert isinstance(error, Refused)
  return error.response()


def _http(request: Request, error: Exception) -> JSONResponse:
  """Errors of the framework itself."""
  assert isinstance(error, HTTPException)
  where = f"{request.method} {request.url.path}"
  message, code = {
    404: (f"There is no {where}; /docs lists what there is.", "unknown_url"),
    405: (f"{where} is not done this way; /docs lists what is.", "method_not_allowed"),
  }.get(error.status_code, (str(error.detail).rstrip(".") + ".", "invalid_body"))
  told = Refused(error.status_code, message, code=code)
  told.headers = error.headers
  return told.response()


def _invalid(_: Request, error: Exception) -> JSONResponse:
  """A body that is no JSON, or whose fields are not what they should be."""
  assert isinstance(error, RequestValidationError)
  found = error.errors()
  if found[0]["type"] == "json_invalid":
    where = found[0]["loc"][-1]
    return Refused(400, f"The body is no JSON: {found[0]['ctx']['error']} at character {where}.",
                   code="invalid_json").response()
  if isinstance(error.body, bytes):
    return Refused(400, "The body was not read as JSON; send it with the header Content-Type: "
                   "application/json.", code="invalid_json").response()
  # Of the alternatives of a field, the one that the body follows furthest is the one meant.
  paths = [_path(e["loc"][1:], error.body, e["type"] == "missing") for e in found]
  best = max(range(len(found)), key=lambda i: (len(paths[i]), -i))
  kind, text, param = found[best]["type"], found[best]["msg"], _shown(paths[best])
  code = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}.get(
    kind, "invalid_value")
  if kind == "extra_forbidden":
    text = "this field is unknown; leave it out"
  message = f"{param}: {text}" if param else text
  return Refused(400, f"{message[:_MOST_SHOWN].rstrip('.')}.", code=code,
                 param=param or None).response()


def _path(where: tuple[int | str, ...], body: Any, missing: bool) -> list[int | str]:
  """A validator's location without the names of alternatives, which are not in the body."""
  path: list[int | str] = []
  for i, step in enumerate(where):
    if isinstance(body, Mapping) and step in body:
      body = body[step]
    elif isinstance(body, list) and isinstance(step, int) and step < len(body):
      body = body[step]
    elif not (missing and i == len(where) - 1):
      continue
    path.append(step)
  return path


def _shown(path: list[int | str]) -> str:
  text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
  return text.removeprefix(".")
