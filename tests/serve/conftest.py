"""One server of a fake service, for all tests of a file."""

import pytest
from fake_service import FakeService
from serving import client_of, serving


@pytest.fixture(scope="module")
def service():
  return FakeService()


@pytest.fixture(scope="module")
def server(service):
  with serving(service) as running:
    yield running


@pytest.fixture(scope="module")
def client(server):
  with client_of(server) as one:
    yield one
