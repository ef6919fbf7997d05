"""Pictures by OpenAI's own client."""

import base64
import io

import numpy as np
import PIL.Image
import pytest
from serving import error_of

PATH = "/v1/images/generations"


def opened(image):
  return PIL.Image.open(io.BytesIO(base64.b64decode(image.b64_json)))


def test_pictures_are_drawn(client, service):
  answer = client.images.generate(prompt="a red bus", model="fake", n=2, size="24x16",
                                  response_format="b64_json", quality="high", user="me",
                                  extra_body={"guidance": 2.5, "seed": 7})
  first, second = map(opened, answer.data)
  assert first.size == (24, 16) and answer.size == "24x16" and first.format == "PNG"
  assert np.unique(first).tolist() == [7] and np.unique(second).tolist() != [7]
  assert answer.data[0].revised_prompt == "a red bus" and answer.data[0].url is None
  assert answer.usage.to_dict() == dict(
    type="tokens", input_tokens=5, output_tokens=4, total_tokens=9,
    input_tokens_details={"text_tokens": 5, "image_tokens": 0})
  call = service.calls[-1]
  assert call["parts"] == [{"role": "user", "text": "a red bus"}] and call["to"] == "image"
  assert call["image_size"] == (16, 24) and call["guidance"] == 2.5


@pytest.mark.parametrize("size", ["auto", None])
def test_the_model_may_choose_the_size(size, client, service):
  more = {} if size is None else {"size": size}
  assert client.images.generate(prompt="a", **more).size == "32x32"
  assert service.calls[-1]["image_size"] is None and service.calls[-1]["guidance"] == 1.0


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats(kind, client):
  answer = client.images.generate(prompt="a", output_format=kind)
  assert opened(answer.data[0]).format == kind.upper() and answer.output_format == kind


def test_an_address_has_the_picture_in_it(client):
  answer = client.images.generate(prompt="a", response_format="url").data[0]
  assert answer.b64_json is None and answer.url.startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize("body, status, code, param", [
  ({}, 400, "missing_required_parameter", "prompt"),
  ({"prompt": ""}, 400, "invalid_value", "prompt"),
  ({"prompt": "a", "size": "large"}, 400, "invalid_value", "size"),
  ({"prompt": "a", "size": "24x17"}, 400, "invalid_value", "size"),
  ({"prompt": "a", "size": "0x8"}, 400, "invalid_value", "size"),
  ({"prompt": "a", "n": 9}, 400, "invalid_value", "n"),
  ({"prompt": "a", "stream": True}, 400, "unsupported_parameter", "stream"),
  ({"prompt": "a", "background": "transparent"}, 400, "unsupported_parameter", "background"),
  ({"prompt": "a", "output_format": "gif"}, 400, "invalid_value", "output_format"),
  ({"prompt": "a", "model": "dall-e-3"}, 404, "model_not_found", "model"),
  ({"prompt": "a " * 600}, 400, "context_length_exceeded", "prompt"),
  ({"prompt": "fail"}, 500, "internal_error", None),
])
def test_what_can_not_be_drawn(body, status, code, param, server):
  got, error = error_of(server, PATH, body)
  assert (got, error["code"], error["param"]) == (status, code, param), error


def test_a_size_near_by_is_named(server):
  assert "such as 24x16" in error_of(server, PATH, {"prompt": "a", "size": "25x17"})[1]["message"]
